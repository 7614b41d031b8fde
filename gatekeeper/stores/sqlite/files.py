# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections of this process to SQLite files, and what keeps them from killing it.

Beside `state.db` lies `state.db-shm`. Each process maps it into its memory, and holds a lock on it (fcntl(2)) as long
as it does; who opens it and finds no lock takes it for a leftover and truncates it (SQLite's os_unix.c,
unixLockSharedMemory). A process that still has it mapped then dies of SIGBUS. So it lives by this lock, and a process
loses all its fcntl locks on a file, without a word, when it closes any descriptor of it. Two ways were found to do so:

- Something that looks through all open descriptors duplicates SQLite's and closes the duplicate. It was the milter,
  looking for libmilter's socket; then the next process that opened the store killed a worker in the middle of its work.
- `state.db` is replaced while its `-shm` stays. SQLite knows by the inode of `state.db` which connections of a process
  share what lies beside it. One to the old file and one to the new, as the sweeping one could be, open the same `-shm`
  twice; the process does not see its own lock, truncates, and loses the lock for good with the first that is closed.

Against the first, locks of another kind stand beside SQLite's on the same bytes: they belong to an open file
(F_OFD_SETLK), closing others does not end them, and everybody sees them who asks, this process too. The one on
`state.db` keeps others from deleting what lies beside it, as the last to close it do. Against the second, a path counts
as one file while any connection under it is open; who finds another one there is refused. What is left: who does not
ask for locks (`cp` onto the `-shm` of a service that runs) can still kill it, and a lock for writing that is lost in
the middle of a transaction is not replaced. So nothing may open or duplicate these descriptors but what is here, and
no process may fork with a store open.
"""

import fcntl
import os
import sqlite3
import struct
import threading
from contextlib import suppress
from pathlib import Path

Inode = tuple[int, int]

_SHARED = 2**30 + 2, 510
"""The bytes of `state.db` that all lock who have it open, first and count: SHARED_FIRST, SHARED_SIZE."""
_MAPPED = 128, 1
"""That of `-shm`: UNIX_SHM_DMS."""


class Replaced(OSError):
    """Another file lies under the path than the one that this process has open."""


class _Opened:
    """A file of which this process has connections, and how many; with our own descriptors of it and of its `-shm`."""

    def __init__(self, file: Inode) -> None:
        self.file = file
        self.connections = 0
        self.guards: list[int] = []

    def guard(self, place: str) -> None:
        """Lock both; `-shm` is there from the first transaction on. Raises OSError."""
        if not self.guards:
            self.guards.append(os.open(place, os.O_RDONLY | os.O_CLOEXEC))
            self.guards.append(os.open(f"{place}-shm", os.O_RDONLY | os.O_CLOEXEC))
            _set(self.guards[1], fcntl.F_RDLCK, _MAPPED)
        _set(self.guards[0], fcntl.F_RDLCK, _SHARED)

    def close(self) -> None:
        """Not before SQLite's are closed: that would end its locks."""
        for descriptor in self.guards:
            os.close(descriptor)


_lock = threading.Lock()
_opened: dict[str, _Opened] = {}
"""By path."""


class SqliteConnection(sqlite3.Connection):
    """A connection to the file that was at `place` when it was opened, in autocommit mode."""

    place = ""
    file: Inode = (0, 0)

    def guard(self) -> None:
        """Hold locks that SQLite's own may lose, until the last connection is closed. Raises OSError."""
        with _lock:
            _opened[self.place].guard(self.place)

    def close(self) -> None:
        """Closes once; the path is free for another file when the last connection is closed."""
        if not self.place:
            super().close()
            return
        opened = _opened[self.place]
        with _lock:
            if opened.connections == 1 and opened.guards:
                _set(opened.guards[0], fcntl.F_UNLCK, _SHARED)  # SQLite tidies up if it can have the file for itself
        super().close()
        with _lock:
            opened.connections -= 1
            if not opened.connections:
                del _opened[self.place]
                opened.close()
            elif opened.guards:
                opened.guard(self.place)
        self.place = ""


def _set(descriptor: int, kind: int, where: tuple[int, int]) -> None:
    """Lock or unlock; without effect on systems and file systems that have no such locks."""
    with suppress(AttributeError, OSError):
        struct_flock = struct.pack("hhqqi0q", kind, os.SEEK_SET, *where, 0)  # fcntl(2)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct_flock)


def connect(path: Path, busy: float, *, read_only: bool = False) -> SqliteConnection:
    """Open the file at `path`, which has to exist; `busy` are the seconds that SQLite itself waits for locks. Raises
    sqlite3.Error, and OSError, Replaced among others.
    """
    place = os.path.realpath(path)
    uri = f"{Path(place).as_uri()}?mode={'ro' if read_only else 'rw'}"
    with _lock:
        file = inode(place)
        opened = _opened.get(place) or _Opened(file)
        if opened.file != file:
            raise Replaced(f"{path} has been replaced")
        db = sqlite3.connect(uri, uri=True, timeout=busy, isolation_level=None, factory=SqliteConnection)
        if inode(place) != file:  # SQLite has opened it, but not yet what lies beside it
            db.close()
            raise Replaced(f"{path} is being replaced")
        _opened[place] = opened
        opened.connections += 1
        db.place, db.file = place, file
    return db


def create(path: Path) -> None:
    """Make the file, because SQLite would make it readable for all; the files beside it get the same mode.

    One that exists is not even opened: closing it would drop all locks that this process has on it.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass


def inode(path: str | Path) -> Inode:
    """Which file lies there; (0, 0) if none, or none that we may see."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def files(path: Path) -> tuple[Inode, ...]:
    """Which files the database is made of. They stay the same while it is open, unless somebody meddles."""
    return tuple(inode(f"{path}{suffix}") for suffix in ("", "-wal", "-shm"))
