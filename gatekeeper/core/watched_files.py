# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files a plan was read from, and when they have changed and come to rest.

Whoever reads a table or key does it with `read`, or says so with `note` before it is opened, so that a change while it
is being read is not missed. `Watch` compares what was noted with what is there: by device, inode, size and times, so
that a file that was replaced, written to, removed, made, or given another owner or mode counts as changed. A change is
taken once two looks in a row have seen the same, so that a file that is still being written is not read.

Polled, because inotify would have to follow every folder of every path and still miss network file systems.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

FileState = tuple[int, ...]
"""What tells one state of a file from another; empty if there is none."""

_noted: ContextVar[dict[str, FileState] | None] = ContextVar("noted", default=None)


def file_state(path: str) -> FileState:
    """The state of `path` now."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def recording() -> Iterator[dict[str, FileState]]:
    """While this is open, files that are read are noted in the dict."""
    noted: dict[str, FileState] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def record(path: str | Path) -> None:
    """`path` is about to be read, or looked for."""
    noted = _noted.get()
    if noted is not None:
        noted.setdefault(str(path), file_state(str(path)))


def read(path: str | Path) -> bytes:
    """The bytes of the file at `path`, which is noted. Raises OSError, also for what is no regular file: opening a FIFO
    would wait for somebody to write into it.
    """
    record(path)
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        return file.read()


class FileWatch:
    """Looks at the noted files from time to time. `clock` is monotonic, in seconds."""

    INTERVAL = 2.0
    """Seconds between two looks; longer where looking takes long, so that it costs at most a thousandth of a core."""
    SETTLED = 1.0
    """Seconds between the look that sees a change and the next."""

    def __init__(self, noted: dict[str, FileState], clock: Callable[[], float] = time.monotonic) -> None:
        self.known = noted
        """The files and the state that counts as theirs."""
        self._seen: dict[str, FileState] | None = None
        self._clock = clock
        self.due = clock() + self.INTERVAL
        """When to look again."""

    def changed(self) -> list[str]:
        """The files that differ from what was noted and did not change since the look before; none before `due`."""
        if self._clock() < self.due:
            return []
        began = time.thread_time()
        now = {path: file_state(path) for path in self.known}
        took = time.thread_time() - began  # of the processor: on a busy machine the clock says nothing
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
