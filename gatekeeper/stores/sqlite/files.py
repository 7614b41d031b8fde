# SPDX-License-Identifier: GPL-3.0-or-later
"""Open SQLite files in a way that cannot lose the locks on which the life of this process depends.

Next to `state.db` there is `state.db-shm`. Each process maps it into memory, and holds an fcntl(2) lock on it while it
is mapped; a process that opens it and finds no lock takes it for a leftover and truncates it (SQLite's os_unix.c,
unixLockSharedMemory). A process that still has it mapped then dies of SIGBUS. So its life depends on this lock, and a
process silently loses all its fcntl locks on a file when it closes any descriptor of it. Two ways to do so were found:

- Code that goes through all open descriptors duplicates SQLite's and closes the duplicate. It was the milter, looking
  for libmilter's socket; the next process that opened the store then killed a worker in the middle of its work.
- `state.db` is replaced while its `-shm` stays. SQLite decides by the inode of `state.db` which connections of a
  process share the files beside it. A connection to the old file and one to the new, as the maintenance thread could
  have, open the same `-shm` twice; the process does not see its own lock, truncates the file, and loses the lock for
  good when the first of the two is closed.

Against the first, there are locks of another kind on the same bytes as SQLite's: they belong to an open file
description (F_OFD_SETLK), closing other descriptors does not release them, and whoever tests the lock sees them, this
process included. The one on `state.db` keeps others from deleting the files beside it, as the last process to close it
does. Against the second, a path stands for one file while any connection to it is open; an attempt to open another file
there is refused. What remains: a program that does not test for locks (`cp` onto the `-shm` of a running service) can
still kill it, and a write lock that is lost in the middle of a transaction is not replaced. So only this module may
open or duplicate these descriptors, and no process may fork with a store open.
"""

import fcntl
import os
import sqlite3
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

Inode = tuple[int, int]

_SHARED_RANGE = 2**30 + 2, 510
"""The bytes of `state.db` that every process with the file open has locked: SHARED_FIRST, SHARED_SIZE."""
_SHM_LOCK_RANGE = 128, 1
"""The same for `-shm`: UNIX_SHM_DMS."""


class FileReplaced(OSError):
    """The path now names another file than the one that this process has open."""


class _OpenFile:
    """A file to which this process has connections, their number, and our own descriptors of it and of its `-shm`."""

    def __init__(self, file: Inode) -> None:
        self.file = file
        self.connections = 0
        self.descriptors: list[int] = []

    def hold_locks(self, real_path: str) -> None:
        """Lock both; `-shm` exists from the first transaction on. Raises OSError."""
        if not self.descriptors:
            self.descriptors.append(os.open(real_path, os.O_RDONLY | os.O_CLOEXEC))
            self.descriptors.append(os.open(f"{real_path}-shm", os.O_RDONLY | os.O_CLOEXEC))
            _set_lock(self.descriptors[1], fcntl.F_RDLCK, _SHM_LOCK_RANGE)
        _set_lock(self.descriptors[0], fcntl.F_RDLCK, _SHARED_RANGE)

    def close(self) -> None:
        """Close our descriptors. SQLite's must be closed before: this releases its locks."""
        for descriptor in self.descriptors:
            os.close(descriptor)


_lock = threading.Lock()
_open_files: dict[str, _OpenFile] = {}
"""By path."""


class SqliteConnection(sqlite3.Connection):
    """A connection to the file that was at `real_path` when it was opened, in autocommit mode."""

    real_path = ""
    file: Inode = (0, 0)

    def hold_locks(self) -> None:
        """Hold locks of our own in case SQLite's are lost, until the last connection is closed. Raises OSError."""
        with _lock:
            _open_files[self.real_path].hold_locks(self.real_path)

    def close(self) -> None:
        """Close, once; the path is free for another file when the last connection is closed."""
        if not self.real_path:
            super().close()
            return
        opened = _open_files[self.real_path]
        with _lock:
            if opened.connections == 1 and opened.descriptors:
                # SQLite cleans up if it can lock the file exclusively.
                _set_lock(opened.descriptors[0], fcntl.F_UNLCK, _SHARED_RANGE)
        super().close()
        with _lock:
            opened.connections -= 1
            if not opened.connections:
                del _open_files[self.real_path]
                opened.close()
            elif opened.descriptors:
                opened.hold_locks(self.real_path)
        self.real_path = ""


def _set_lock(descriptor: int, kind: int, byte_range: tuple[int, int]) -> None:
    """Lock or unlock a range; without effect on systems and file systems that have no such locks."""
    with suppress(AttributeError, OSError):
        struct_flock = struct.pack("hhqqi0q", kind, os.SEEK_SET, *byte_range, 0)  # fcntl(2)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct_flock)


def connect(path: Path, busy_timeout: float, *, read_only: bool = False) -> SqliteConnection:
    """Open the file at `path`, which has to exist; `busy_timeout` is how many seconds SQLite itself waits for locks.

    Raises sqlite3.Error and OSError, among others FileReplaced.
    """
    real_path = os.path.realpath(path)
    uri = f"{Path(real_path).as_uri()}?mode={'ro' if read_only else 'rw'}"
    with _lock:
        file = inode(real_path)
        opened = _open_files.get(real_path) or _OpenFile(file)
        if opened.file != file:
            raise FileReplaced(f"{path} has been replaced")
        db = sqlite3.connect(uri, uri=True, timeout=busy_timeout, isolation_level=None, factory=SqliteConnection)
        if inode(real_path) != file:  # SQLite has opened it, but not yet the files beside it
            db.close()
            raise FileReplaced(f"{path} is being replaced")
        _open_files[real_path] = opened
        opened.connections += 1
        db.real_path, db.file = real_path, file
    return db


def create(path: Path) -> None:
    """Create the file, because SQLite would make it readable for all; the files beside it get the same mode.

    One that exists is not even opened: closing it would release all locks that this process has on it.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass


def inode(path: str | Path) -> Inode:
    """Return device and inode of the file at `path`; (0, 0) if there is none, or none that we may see."""
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


def files(path: Path) -> tuple[Inode, ...]:
    """Return the inodes of the database's files. They stay the same while it is open, unless somebody interferes."""
    return tuple(inode(f"{path}{suffix}") for suffix in ("", "-wal", "-shm"))


_MARK = 60.0
"""Seconds by which `mark_as_checked` sets the time of the last change back."""


def mark_as_checked(path: Path) -> None:
    """Let all processes see that somebody has found the file in order. Raises OSError; follows no link."""
    checked = time.time_ns() - int(_MARK * 1e9)
    os.utime(path, ns=(checked, checked), follow_symlinks=False)


def state_for_people(path: Path) -> tuple[int, ...]:
    """Return what changes when a person does something about the file, and not when a process writes to it.

    That is another inode, or a time of change that was set (`mark_as_checked`, `cp -p`), or mode or owner: only then
    is it older than the last change of the inode. Cheap, and opens nothing.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ()
    was_set = status.st_mtime_ns < status.st_ctime_ns - 10**9
    return (status.st_dev, status.st_ino, status.st_mtime_ns if was_set else 0)
