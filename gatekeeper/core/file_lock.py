# SPDX-License-Identifier: GPL-3.0-or-later
"""One process at a time, where a file is read, changed and written again.

The lock is an flock(2) on `.NAME.lock` beside the file, which only its creator can open, so that no other user can hold
us up. It ends with the process that holds it, however that ends; the file is removed when it is released, and one that
is left behind is simply taken. Who waits does so for a limited time and is told who holds it. A process must not take a
lock that it holds already.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gatekeeper.core import safe_files
from gatekeeper.core.safe_path import Place, UnsafePath, place

WAIT = 10.0
"""Seconds to wait for others by default: each holds the lock for milliseconds."""
_PAUSE = 0.02
"""Seconds between two attempts."""


class Locked(OSError):
    """Another process holds the lock; the text says which, if that can be found out."""


@dataclass(slots=True)
class LockedFile:
    """A file that nobody else changes meanwhile. `data` is its content, None if it does not exist."""

    data: bytes | None
    _place: Place
    _status: os.stat_result | None

    def replace(self, data: bytes, mode: int = 0o644) -> None:
        """Write the file anew, with the mode and owner that it had, or with `mode`. Raises OSError."""
        old = self._status
        if old is None:
            safe_files.put(self._place, data, mode)
        else:
            safe_files.put(self._place, data, old.st_mode, (old.st_uid, old.st_gid))


@contextmanager
def changing(path: Path, wait: float | None = None) -> Iterator[LockedFile]:
    """Lock the file at `path`, waiting for `wait` seconds (WAIT), and read it. Raises Locked, UnsafePath, OSError."""
    with place(path) as where, _lock(where, wait):
        with safe_files.opened(where) as file:
            data, status = (None, None) if file is None else (file.read(), os.fstat(file.fileno()))
        yield LockedFile(data, where, status)


@contextmanager
def locked(path: Path, wait: float | None = None) -> Iterator[None]:
    """Hold the lock of `path`, which need not exist, though its folder must. Raises Locked, UnsafePath and OSError."""
    with place(path) as where, _lock(where, wait):
        yield


@contextmanager
def _lock(where: Place, wait: float | None) -> Iterator[None]:
    name = f".{where.name[:200]}.lock"
    lock, deadline = (
        replace(where, path=where.path.with_name(name), name=name),
        time.monotonic() + (WAIT if wait is None else wait),
    )
    while (descriptor := _try(lock, last=time.monotonic() >= deadline)) is None:
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        with suppress(OSError):  # left behind, it is in nobody's way
            os.unlink(name, dir_fd=where.folder)
        os.close(descriptor)


def _try(lock: Place, *, last: bool) -> int | None:
    """Return a descriptor that holds the lock, or None if another has it; in the `last` attempt raise Locked."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(lock.name, flags, 0o600, dir_fd=lock.folder)
    except PermissionError as error:
        if lock.lstat() is None:
            raise  # we may not write in this folder
        if last:
            raise Locked(errno.EAGAIN, f"its lock {lock.path} cannot be opened: {error.strerror}") from None
        return None  # another user's, who may be done in a moment
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        what = "symbolic link" if error.errno == errno.ELOOP else "folder"
        raise UnsafePath(error.errno, f"its lock {lock.path} cannot be used: it is a {what}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafePath(errno.EINVAL, f"its lock {lock.path} cannot be used: it is {safe_files.kind(status)}")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named = lock.lstat()
        if named is not None and os.path.samestat(status, named):
            mine, descriptor = descriptor, -1
            return mine
        # Whoever had it has removed it: only the one that has the name counts.
    except BlockingIOError:
        if last:
            who = _holder(status) or "another process"
            raise Locked(errno.EAGAIN, f"{who} is changing it and holds {lock.path}; try again later") from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return None


def _holder(status: os.stat_result) -> str:
    """Return who holds an flock on this file (proc_locks(5)): `gatekeeper (pid 4711)`; empty if that is not known."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[-3] == device and fields[4].isdecimal():
                return f"{Path(f'/proc/{fields[4]}/comm').read_text().strip()} (pid {fields[4]})"
    return ""
