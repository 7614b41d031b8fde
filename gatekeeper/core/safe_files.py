# SPDX-License-Identifier: GPL-3.0-or-later
"""Write, replace, remove and create files so that nobody can turn our rights against others.

Whoever owns a folder can put a link, a FIFO or another file in the place of any name in it, at any moment. So
what we do is done to a name in a folder that is open (core/safe_path.py), and mode and owner are set through the
descriptor of a file that we have just created ourselves.

- A file is **replaced** by rename(2), complete or not at all, and is on the disk when we return. What is not a regular
  file is replaced in folders of others only, where a link or FIFO is in our way; in our own it may be /dev/null.
- What is **read to be written again** has to be a regular file; in a folder of somebody else, one with a single name
  (no hard link to what is not theirs). Mode and owner are kept, but no set-uid bit.

Locks for what is read and written again: core/file_lock.py.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gatekeeper.core.safe_path import Place, UnsafePath, is_sticky, place, unsafe_link

Owner = tuple[int, int]
"""User and group id."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write(path: Path, data: bytes, *, mode: int = 0o644, owner: Owner | None = None) -> os.stat_result:
    """Write the file anew, replacing what is there, and return its status. Raises UnsafePath and OSError."""
    with place(path, over_link=True) as where:
        return put(where, data, mode, owner)


def create(path: Path, data: bytes, *, mode: int = 0o644, owner: Owner | None = None) -> None:
    """Write a file that must not exist. Raises FileExistsError, UnsafePath and OSError."""
    with place(path) as where, _temporary(where, data, mode, owner) as (temporary, _):
        os.link(temporary, where.name, src_dir_fd=where.folder, dst_dir_fd=where.folder, follow_symlinks=False)
        _sync(where.folder)


def put(where: Place, data: bytes, mode: int, owner: Owner | None = None) -> os.stat_result:
    """Do `write` at a place. Raises OSError."""
    found = where.lstat()
    if found is not None and where.private and not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind(found)}, not a file", str(where.path))
    with _temporary(where, data, mode, owner) as (temporary, status):
        os.replace(temporary, where.name, src_dir_fd=where.folder, dst_dir_fd=where.folder)
        _sync(where.folder)
    return status


@contextmanager
def opened(where: Place) -> Iterator[BinaryIO | None]:
    """Open a file to be read, and copied or written again; None if there is none.

    Raises UnsafePath and OSError for anything that is not a file of its own, and never waits for it.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        file = open(  # noqa: SIM115 (closed below; only what opening it raises is for here)
            where.name, "rb", opener=lambda name, _flags: os.open(name, flags, dir_fd=where.folder)
        )
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise unsafe_link(where.path, where.folder) from None
        raise
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"it is {kind(status)}, not a file", str(where.path))
        if status.st_nlink != 1 and not where.private:
            raise UnsafePath(errno.ELOOP, "it has another name elsewhere (a hard link)", str(where.path))
        yield file


def read(path: Path) -> bytes:
    """Read a file as `opened` does. Raises FileNotFoundError, UnsafePath and OSError."""
    with place(path) as where, opened(where) as file:
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return file.read()


def remove(path: Path, *, only: os.stat_result | None = None) -> None:
    """Remove what is there, never what it points to; with `only`, if it still is that file. Raises OSError."""
    with suppress(FileNotFoundError), place(path, over_link=True) as where:
        found = where.lstat()
        if found is not None and (only is None or os.path.samestat(found, only)):
            os.unlink(where.name, dir_fd=where.folder)


def make_folders(path: Path, mode: int, owner: Owner | None = None) -> list[Path]:
    """Create the folder at `path`, with those above it that are missing; return what was made, from above.

    It gets `mode` and `owner`, those above it are root's (or ours). In a folder of somebody else nothing is made: what
    its owner wants there, he can make himself. Raises UnsafePath and OSError; then nothing is left behind.
    """
    missing, made = _missing_folders(path), list[Path]()
    try:
        for folder in missing:
            with place(folder) as where:
                _make_folder(where, mode if folder == path else 0o755, owner if folder == path else None)
            made.append(folder)
    except OSError:
        remove_folders(made)
        raise
    return made


def remove_folders(made: Sequence[Path]) -> None:
    """Take back what `make_folders` made, as far as it is still there and empty."""
    for folder in reversed(made):
        with suppress(OSError), place(folder) as where:
            os.rmdir(where.name, dir_fd=where.folder)


def _missing_folders(path: Path) -> list[Path]:
    """Return the folders to make, from above."""
    missing: list[Path] = []
    while True:
        try:
            with place(path) as where:
                return missing if where.lstat() is not None else [path, *missing]
        except FileNotFoundError:
            missing.insert(0, path)
            path = path.parent


def _make_folder(where: Place, mode: int, owner: Owner | None) -> None:
    if not (where.private or is_sticky(os.fstat(where.folder))):
        raise UnsafePath(errno.EPERM, f"others may write in {where.folder_path}", str(where.path))
    os.mkdir(where.name, 0o700, dir_fd=where.folder)
    try:
        descriptor = os.open(where.name, _FOLDER, dir_fd=where.folder)
        try:
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
    except OSError:
        with suppress(OSError):
            os.rmdir(where.name, dir_fd=where.folder)
        raise


@contextmanager
def private_folder(where: Place) -> Iterator[int]:
    """Yield a descriptor of a new folder beside `where` that only we can enter, and remove it in the end.

    What is made in it keeps its name and nature until we move it away, whoever owns the folder around it. The owner of
    that one could put another folder in its place, but no other that only we can enter, unless it is ours.
    """
    name = f".{where.name[:200]}.{secrets.token_hex(6)}"
    os.mkdir(name, 0o700, dir_fd=where.folder)
    try:
        inside = os.open(name, _FOLDER, dir_fd=where.folder)
        try:
            status = os.fstat(inside)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise UnsafePath(errno.EPERM, f"somebody interferes in {where.folder_path}", str(where.path))
            yield inside
        finally:
            os.close(inside)
    finally:
        with suppress(OSError):
            os.rmdir(name, dir_fd=where.folder)


def kind(status: os.stat_result) -> str:
    """Return what something is, for people: `a folder`, `a FIFO`."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFREG: "a file",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")


@contextmanager
def _temporary(where: Place, data: bytes, mode: int, owner: Owner | None) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the name of a new file beside the place, complete and on the disk, and its status; remove what is left."""
    name = f".{where.name[:200]}.{secrets.token_hex(6)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=where.folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            made = os.fstat(descriptor)
            if owner is not None and owner != (made.st_uid, made.st_gid):
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode & 0o777)
            os.fsync(descriptor)
            status = os.fstat(descriptor)
        yield name, status
    finally:
        with suppress(FileNotFoundError):  # it has been renamed
            os.unlink(name, dir_fd=where.folder)


def _sync(folder: int) -> None:
    """Sync the folder, so that a new name in it survives a power failure before anything relies on it."""
    with suppress(PermissionError):  # one that we may write and not read
        descriptor = os.open(".", _FOLDER, dir_fd=folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
