# SPDX-License-Identifier: GPL-3.0-or-later
"""Have another user's rights for a moment: what he could not do himself, root does not do for him either."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Have the rights of this user meanwhile, in all threads; `gid` counts for one who is not known here.

    Only for root, who is root again in the end. Raises OSError.
    """
    groups = os.getgroups()
    try:
        try:
            entry = pwd.getpwuid(uid)
            os.initgroups(entry.pw_name, entry.pw_gid)
            os.setegid(entry.pw_gid)
        except KeyError:
            os.setgroups([gid])
            os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
