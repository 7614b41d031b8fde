# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose turn it is to write to a file that several processes share: who has waited for long asks the others to wait.

SQLite's lock has no queue: whoever looks while it is free has it, and one that looks now and then may never find it so
under the load of others. So before they lock, all look whether somebody has claimed the turn, and let it go first. The
claim is an flock(2) on the folder that the file lies in: no file of its own to be left behind, and it ends with the
process that has it. A folder that may not be opened makes no claims; then it is as if this did not exist.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class FairLock:
    """One process's side of it, for files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._claimed = False
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._folder = -1

    def is_anothers(self) -> bool:
        """True if another process has claimed the turn."""
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
        """Ask all others to wait, unless one of them was first."""
        if self._claimed or self._folder < 0:
            return
        with suppress(OSError):
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._claimed = True

    def end(self) -> None:
        """We have had our turn."""
        if self._claimed:
            self._claimed = False
            fcntl.flock(self._folder, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the folder."""
        if self._folder >= 0:
            os.close(self._folder)
        self._folder, self._claimed = -1, False
