# SPDX-License-Identifier: GPL-3.0-or-later
"""Cleans up after a lab even if the lab's process is killed: `python guard.py FOLDER`.

Reads `+PID` and `-PID` lines (process groups that began and ended) on standard input. At its end, which comes when
the lab's process closes it or dies, the groups that are left are ended and the folder is removed. Imports nothing but
the standard library.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 12.0
"""Seconds that a process has to end after SIGTERM: gatekeeper drains for ten."""


class Guard:
    """The other side: starts the guard process for `folder`, and tells it what runs."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the lab; the guard sees its end
        )

    def began(self, pid: int) -> None:
        """A process group that must not outlive the lab."""
        self._tell(f"+{pid}\n")

    def ended(self, pid: int) -> None:
        """That group is gone; its number may come again for somebody else's."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """Have everything cleaned up, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(2 * PATIENCE)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def end_group(pid: int) -> None:
    """End a process group: SIGTERM, and SIGKILL for what is left of it after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    try:
        os.killpg(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.killpg(pid, 0)
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main(folder: str) -> None:
    """Watch until the end of standard input, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line.startswith("+") else groups.discard)(int(line[1:]))
    for pid in groups:
        end_group(pid)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
