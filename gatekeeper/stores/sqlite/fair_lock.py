# SPDX-License-Identifier: GPL-3.0-or-later
"""Fairness between processes that write to one file: one that has waited for long claims the next turn.

SQLite's lock has no queue: whoever tries while it is free gets it, and a process that tries now and then may never find
it free under the load of others. So before locking, each process looks whether another has claimed the next turn, and
lets it go first. The claim is an flock(2) on the directory of the file: it leaves no file behind, and it ends with the
process that holds it. Where the directory cannot be opened, there are no claims, as if this did not exist.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class FairLock:
    """The claim of one process on the files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._claimed = False
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._folder = -1

    def is_claimed_elsewhere(self) -> bool:
        """Return True if another process has claimed the next turn."""
        if self._claimed or self._folder < 0:
            return False
        try:
            fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._folder, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
        except OSError:  # no such locks on this file system
            return False
        return False

    def claim(self) -> None:
        """Ask all others to wait, unless one of them was faster."""
        if self._claimed or self._folder < 0:
            return
        with suppress(OSError):
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._claimed = True

    def release(self) -> None:
        """Give the claim up: our turn is over."""
        if self._claimed:
            self._claimed = False
            fcntl.flock(self._folder, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the directory."""
        if self._folder >= 0:
            os.close(self._folder)
        self._folder, self._claimed = -1, False
