# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose the file of an SQLite store is, and how root uses it: as its owner.

The workers write the state file, so it and its folder belong to their user, who can put a link in the place of
`state.db-wal`; and a file that root creates there is one that they cannot write. So a command that root starts becomes
the owner before it opens the store, and only for that: what else it reads and writes is root's to read and write.
"""

import errno
import os
import pwd
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gatekeeper.core import safe_files
from gatekeeper.core.other_user import acting_as
from gatekeeper.core.safe_files import Owner
from gatekeeper.core.safe_path import UnsafePath, place
from gatekeeper.stores.store import StoreError
from gatekeeper.stores.store_url import preload, sqlite_path

FOLDER_MODE = 0o750


def make_state_folder(url: str, owner: Owner) -> list[Path]:
    """Create the folder of the store at `url` for `owner`, who could not, if it is missing. Raises OSError.

    Returns what was made. Where others than root may write, it is left to them: whoever opens the store creates it as
    the user that he is.
    """
    path = sqlite_path(url)
    if path is not None:
        with suppress(UnsafePath):
            made = safe_files.make_folders(path.parent, FOLDER_MODE, owner)
            if not path.parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
            return made
    return []


@contextmanager
def acting_as_owner(url: str, user: str, *, create: bool = False) -> Iterator[None]:
    """Be the owner of the store at `url` meanwhile, if we are root and it is a file of somebody else.

    With `create` a missing folder is created, for `user` if there is such a user. Raises StoreError.
    """
    path = sqlite_path(url)
    if path is None or os.geteuid() != 0:
        yield
        return
    try:
        if create and (known := _ids(user)) is not None:
            make_state_folder(url, known)
        owner = _owner(path)
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror}") from None
    if owner[0] == 0:
        yield
        return
    preload(url)  # the owner may not be able to read our code
    with ExitStack() as stack:
        try:
            stack.enter_context(acting_as(*owner))
        except OSError as error:  # a container that does not let root change users
            raise StoreError(f"{path}: root cannot become its owner: {error.strerror}") from None
        yield


def _owner(path: Path) -> Owner:
    """Return who owns the file at `path`, or will: where others can put files, never root. Raises OSError.

    A file that belongs to root there may be a hard link to something else.
    """
    try:
        with place(path) as where:
            found, folder = where.lstat(), os.fstat(where.folder)
    except FileNotFoundError:
        return _owner(path.parent)  # whoever may create it
    if found is not None and (where.private or found.st_uid != 0):
        return found.st_uid, found.st_gid
    if where.private or folder.st_uid != 0:
        return folder.st_uid, folder.st_gid
    raise PermissionError(1, "others than root may write in its folder, and the file is not theirs", str(path))


def _ids(user: str) -> Owner | None:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid
