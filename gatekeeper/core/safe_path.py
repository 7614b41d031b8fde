# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the place that a path names, in a way that nobody can mislead us while we may do more than he.

We may be root, in a folder that belongs to the workers' user or to anybody: its owner can put a symbolic link in the
place of any name in it, also between two of our system calls. So no path is handed to the system as a whole. It is
walked name by name with openat(2) and O_NOFOLLOW, and what is to be done is done to a name in the folder that was
opened (core/safe_files.py).

A symbolic link is followed only where nobody but root (or we, if we are not root) could have put it: an administrator's
`/etc/gatekeeper/senders -> /srv/tables/senders` works, a link in a folder of somebody else is refused with a sentence.
In a folder like /tmp the owner of the link decides, as with fs.protected_symlinks of proc_sys_fs(5).

Linux only (O_PATH, /proc).
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as in Linux (path_resolution(7))


class UnsafePath(OSError):
    """The path leads through something that its owner could have put there to mislead us; the text says what."""


@dataclass(frozen=True, slots=True)
class Place:
    """A `name` in a folder that is open. `path` is what the caller called it, for messages.

    `private`: nobody but root and we can put anything there. `stable`: nor change what its real path leads to.
    """

    path: Path
    folder: int
    name: str
    private: bool
    stable: bool

    def lstat(self) -> os.stat_result | None:
        """Return what is there, be it a link; None if nothing is."""
        try:
            return os.lstat(self.name, dir_fd=self.folder)
        except FileNotFoundError:
            return None

    @property
    def folder_path(self) -> Path:
        """The real path of the folder, which says nothing for good unless the place is `stable`."""
        return Path(os.readlink(f"/proc/self/fd/{self.folder}"))


@contextmanager
def place(path: Path, *, over_link: bool = False, link_makers: set[int] | None = None) -> Iterator[Place]:
    """Yield the place that `path` names. Its folder has to exist. Raises UnsafePath and OSError, with `path` in it.

    With `over_link` a symbolic link that may not be followed is no mistake if it is at the end of the path: it is what
    is there, and can be replaced or removed. With `link_makers` such links are followed, and the users who made them
    are added: what is found is theirs to choose (core/safe_reading.py).
    """
    with _named(path):
        walk = _Walk(path, over_link, link_makers)
        try:
            yield walk.find()
        finally:
            os.close(walk.folder)


def real_path(path: Path) -> Path:
    """Return `path` without symbolic links, followed by the rule of this module. Raises UnsafePath and OSError."""
    with place(path) as where:
        return where.folder_path / where.name


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the whole path into errors that name none, or only a part of it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or "/" in str(error.filename):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


class _Walk:
    """The way along a path: `folder` is the descriptor of where we are; nobody can change where `stable` names led."""

    def __init__(self, path: Path, over_link: bool, link_makers: set[int] | None) -> None:
        self._path = path
        self._over_link = over_link
        self._link_makers = link_makers
        self._names = deque(_names(os.fspath(path)))
        self._links = 0
        self._stable = True
        self.folder = os.open("/" if path.is_absolute() else ".", _FOLDER)

    def find(self) -> Place:
        """Go to the folder of the last name."""
        while self._names:
            name = self._names.popleft()
            status = os.fstat(self.folder)
            if self._followed(name, status):
                continue
            private = _is_private(status)
            if not self._names and name != "..":
                return Place(self._path, self.folder, name, private, self._stable and private)
            self._enter(name)
            sticky = is_sticky(status) and is_ours(os.fstat(self.folder))
            self._stable = self._stable and (private or sticky)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _followed(self, name: str, folder: os.stat_result) -> bool:
        """If `name` is a symbolic link, go on with where it points to. Raises UnsafePath if it may not be followed."""
        try:
            found = os.lstat(name, dir_fd=self.folder)
        except FileNotFoundError:
            return False  # it may be the last name; otherwise opening it says the same
        if not stat.S_ISLNK(found.st_mode):
            return False
        if not (_is_private(folder) or (is_sticky(folder) and is_ours(found))):
            if self._over_link and not self._names:
                return False
            if self._link_makers is None:
                raise unsafe_link(self._path, self.folder)
            if found.st_uid != 0:
                self._link_makers.add(found.st_uid)
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(name, dir_fd=self.folder)
        self._names.extendleft(reversed(_names(target)))
        if target.startswith("/"):
            self._enter("/")
        return True

    def _enter(self, name: str) -> None:
        inside = os.open(name, _FOLDER, dir_fd=self.folder)
        os.close(self.folder)
        self.folder = inside


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def unsafe_link(path: Path, folder: int) -> UnsafePath:
    """Return the error for a symbolic link in `folder` that is not followed."""
    whose, where = "root's" if os.geteuid() == 0 else "yours", os.readlink(f"/proc/self/fd/{folder}")
    return UnsafePath(errno.ELOOP, f"there is a symbolic link in {where}, a folder that is not only {whose}", str(path))


def is_ours(status: os.stat_result) -> bool:
    """Return whether something belongs to root or to us."""
    return status.st_uid in (0, os.geteuid())


def is_sticky(folder: os.stat_result) -> bool:
    """Return whether everybody may be able to put something into the folder, and touch only what is his own (/tmp)."""
    return is_ours(folder) and bool(folder.st_mode & stat.S_ISVTX)


def _is_private(folder: os.stat_result) -> bool:
    """Return whether only root and we can change names in the folder; of a user, also the user's own group."""
    own_group = os.geteuid() != 0 and folder.st_gid == os.getegid()
    return is_ours(folder) and not folder.st_mode & (0o002 if own_group else 0o022)
