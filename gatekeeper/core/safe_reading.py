# SPDX-License-Identifier: GPL-3.0-or-later
"""Open what root is to read for others: tables and keys, which the workers are given.

Who owns a folder of keys or tables may put a symbolic link in the place of any of them. Followed with root's rights, it
would give the workers, who may run as the same user, whatever root can read: the key of the web server, say. So a link
that somebody else has put there is followed with his rights, by one that only root could have put there root goes on.
"""

import errno
import os
import pwd
import stat
from pathlib import Path

from gatekeeper.core.other_user import acting_as
from gatekeeper.core.safe_path import Place, UnsafePath, place

# Non-blocking: a FIFO in place of a file must not hold us up.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_to_read(path: str | Path) -> int:
    """Return a descriptor of the file at `path`. Raises OSError, and ValueError for a NUL in the path."""
    if os.geteuid() != 0:  # we have the rights of whoever started us
        return os.open(path, _FLAGS)
    makers: set[int] = set()
    with place(Path(path), link_makers=makers) as where:
        if not makers:
            return _open(where)
    if len(makers) > 1:
        raise UnsafePath(errno.EACCES, "there are symbolic links of several users on the way", str(path))
    return _open_as(makers.pop(), path)


def _open(where: Place) -> int:
    descriptor = os.open(where.name, _FLAGS | os.O_NOFOLLOW, dir_fd=where.folder)
    status = os.fstat(descriptor)
    for_all = status.st_mode & stat.S_IROTH or status.st_uid == os.fstat(where.folder).st_uid
    if status.st_nlink == 1 or where.private or for_all or not stat.S_ISREG(status.st_mode):
        return descriptor
    os.close(descriptor)
    raise UnsafePath(errno.EACCES, "it has another name elsewhere (a hard link)", str(where.path))


def _open_as(uid: int, path: str | Path) -> int:
    try:
        entry = pwd.getpwuid(uid)
        name, gid = entry.pw_name, entry.pw_gid
    except KeyError:  # a user of another machine, or of a container
        name, gid = str(uid), uid
    try:
        with acting_as(uid, gid):
            return os.open(path, _FLAGS)
    except PermissionError:
        what = f"there is a symbolic link of {name} on the way, who may not read what it leads to"
        raise UnsafePath(errno.EACCES, what, str(path)) from None
