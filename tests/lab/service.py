# SPDX-License-Identifier: GPL-3.0-or-later
"""gatekeeper as a process of its own in the lab: started by root as an administrator would, working as `nobody`.

Its configuration is the one that is asked for, with the lab's addresses, DNS, store and user in the place of its own.
Relative paths keep their meaning: the file stands in a folder of links to what lies beside the original.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from gatekeeper.core import toml_writer
from tests.lab.postfix import LabError

PROJECT = Path(__file__).resolve().parents[2]
STOP_WITHIN = 15.0
"""Seconds: gatekeeper lets its sessions end for ten before it cuts them."""


class Service:
    """One gatekeeper. `start()` returns once policy daemon and milter serve; `log` is what it has said."""

    def __init__(self, config: Path, log: Path) -> None:
        self._config = config
        self.log_file = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id, and the process group, of the supervisor."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All it has written to standard error."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def start(self, began: Callable[[int], None], timeout: float = 20.0) -> None:
        """Start it, tell `began` its process group, and wait for both `listening` lines.

        Raises LabError with what it said instead.
        """
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gatekeeper", "--config", self._config, "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={
                    "MAIL_CONFIG": "/nonexistent",
                    **os.environ,
                    "PYTHONPATH": str(PROJECT),
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                start_new_session=True,
            )
        began(self._process.pid)
        deadline = time.monotonic() + timeout
        while not all(f"listening {side} " in self.log for side in ("policy", "milter")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"gatekeeper did not start:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM, and its exit status. Raises LabError if it does not end in time, and ends it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise LabError(f"gatekeeper did not end on SIGTERM:\n{self.log}") from None

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def kill(self) -> None:
        """SIGKILL for all of it, as the kernel does when memory runs out. The sockets stay, and nobody answers."""
        assert self._process is not None
        for pid in (self.pid, *self.workers):
            with contextlib.suppress(ProcessLookupError):  # a worker leaves by itself when its parent has gone
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def write_config(folder: Path, original: Path, *changes: Mapping[str, object]) -> Path:
    """Write the configuration of `original` with `changes` laid over it, in order, into `folder`, which is made.

    Raises OSError and tomllib.TOMLDecodeError if `original` cannot be read.
    """
    settings = tomllib.loads(original.read_text("utf-8"))
    folder.mkdir()
    for beside in original.resolve().parent.iterdir():
        if beside.name != original.name:
            (folder / beside.name).symlink_to(beside)
    for change in changes:
        settings = _over(settings, change)
    path = folder / original.name
    path.write_text(toml_writer.text(settings), "utf-8")
    return path


def _over(settings: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """`changes` laid over `settings`, table by table; None takes a key away."""
    result = dict(settings)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping):
            result[key] = _over(old if isinstance(old, Mapping) else {}, value)
        else:
            result[key] = value
    return {key: value for key, value in result.items() if value is not None}
