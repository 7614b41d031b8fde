# SPDX-License-Identifier: GPL-3.0-or-later
"""Track which files a plan was read from, and notice when they have changed and settled.

Code that reads a table or key uses `read`, or calls `record` before it opens the file, so that a change while it is
being read is not missed. `FileWatch` compares the recorded state with the current one, by device, inode, size and
times, so that a file that was replaced, written to, removed, created, or given another owner or mode counts as changed.
A change is reported once two polls in a row have seen the same state, so that a file that is still being written is not
read.

Files are polled, because inotify would have to follow every directory of every path and still miss network file
systems.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from gatekeeper.core.safe_reading import open_to_read

FileState = tuple[int, ...]
"""What distinguishes one state of a file from another; empty if there is no file."""

_recorded: ContextVar[dict[str, FileState] | None] = ContextVar("recorded", default=None)


def file_state(path: str) -> FileState:
    """Return the current state of the file at `path`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def recording() -> Iterator[dict[str, FileState]]:
    """Collect the files that are read while this context is open, with their states, in the dict that it yields."""
    recorded: dict[str, FileState] = {}
    token = _recorded.set(recorded)
    try:
        yield recorded
    finally:
        _recorded.reset(token)


def record(path: str | Path) -> None:
    """Record the state of the file at `path`, which is about to be read or looked for."""
    recorded = _recorded.get()
    if recorded is not None:
        recorded.setdefault(str(path), file_state(str(path)))


def read(path: str | Path) -> bytes:
    """Record the file at `path` and return its bytes.

    Raises OSError, also for anything but a regular file: opening a FIFO would wait for somebody to write to it.
    """
    record(path)
    with open(path, "rb", opener=lambda path, _flags: open_to_read(path)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return file.read()


class FileWatch:
    """Polls the recorded files. `clock` is monotonic, in seconds."""

    INTERVAL = 2.0
    """Seconds between two polls; more where a poll takes long, so that polling costs at most a thousandth of a core."""
    SETTLED = 1.0
    """Seconds between the poll that sees a change and the next."""

    def __init__(self, recorded: dict[str, FileState], clock: Callable[[], float] = time.monotonic) -> None:
        self.known = recorded
        """The files, with the state in which each was last read."""
        self._seen: dict[str, FileState] | None = None
        self._clock = clock
        self.due = clock() + self.INTERVAL
        """When to poll again."""

    def changed(self) -> list[str]:
        """Return the files that differ from `known` and have not changed since the last poll; none before `due`."""
        if self._clock() < self.due:
            return []
        began = time.thread_time()
        now = {path: file_state(path) for path in self.known}
        took = time.thread_time() - began  # CPU time: on a busy machine, wall-clock time says nothing
        if now == self.known:
            self._seen = None
        elif now == self._seen:
            changed = [path for path, was in self.known.items() if was != now[path]]
            self.known, self._seen = now, None
            return changed
        else:
            self._seen = now
        self.due = self._clock() + max(self.INTERVAL if self._seen is None else self.SETTLED, 1000 * took)
        return []
