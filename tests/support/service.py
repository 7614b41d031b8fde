# SPDX-License-Identifier: GPL-3.0-or-later
"""gatekeeper as its own process, for tests that need the real thing, and waiting without guessing."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.needs import OURSELVES, ROOT, missing, needs

# pymilter belongs to an extra: without it, the rest of the service still has to work.
HAS_MILTER = subprocess.run([sys.executable, "-c", "import milter"], capture_output=True).returncode == 0


def need_milter() -> None:
    """For tests of the milter."""
    if not HAS_MILTER:
        missing("pymilter is not installed: apt-get install libmilter-dev, then make clean test")


T = TypeVar("T")


class Service:
    """`gatekeeper` with `arguments`, as its own process, and what it has said so far."""

    def __init__(self, config: Path, *arguments: str, prelude: str = "") -> None:
        needs(OURSELVES)
        # `prelude` is Python to run first: to shorten a time that is too long for a test
        start = ["-m", "gatekeeper"]
        if prelude:
            start = ["-c", f"{prelude}; import sys; from gatekeeper.cli import main; sys.exit(main())"]
        if "COVERAGE_PROCESS_CONFIG" in os.environ:
            run = "import runpy; runpy.run_module('gatekeeper', run_name='__main__', alter_sys=True)"  # as -m does
            start = ["-c", f"import tests.support.libmilter_threads; {start[1] if prelude else run}"]
        self.process = subprocess.Popen(
            [sys.executable, *start, "--config", str(config), *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # Beside a configured Postfix, what is not set would be taken from it, and its queue directory listened in.
            env={"MAIL_CONFIG": "/nonexistent", **os.environ},
            start_new_session=True,
        )
        _started.append(self)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """The `count`-th match of a line, awaited; at once an error if the process ends without it."""
        try:
            return until(lambda: self._find(pattern, count), f"no line with {pattern!r}")
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines])) from None

    def _find(self, pattern: str, count: int) -> re.Match[str] | None:
        if ended := self.process.poll() is not None:
            self._reader.join(5)
        matches = [match for line in tuple(self.lines) if (match := re.search(pattern, line))]
        if len(matches) >= count:
            return matches[count - 1]
        assert not ended, f"gatekeeper has ended with status {self.process.returncode}"
        return None

    def policy(self) -> socket.socket:
        """A connection to the policy daemon."""
        match = self.wait_for(r"^listening policy inet:127\.0\.0\.1:(\d+)$")
        return socket.create_connection(("127.0.0.1", int(match[1])), timeout=60)

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self._reader.join(5)


_started: list[Service] = []


def end_all() -> None:
    """End what tests have left running, as one does that fails."""
    for service in _started:
        if service.process.poll() is None:
            os.killpg(service.process.pid, signal.SIGKILL)


def until(condition: Callable[[], T | None], what: str, timeout: float = 60.0) -> T:
    """What `condition` comes to as soon as it is true. `timeout` only ends a wait for what never comes."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}")
