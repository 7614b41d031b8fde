# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may read the configuration file, if there is a secret in it: a password, a list's key, a private key."""

import grp
import pwd
import shlex
import stat
from collections.abc import Iterator

from gatekeeper.config.config_file import Config
from gatekeeper.core.problem import Problem
from gatekeeper.core.redaction import holds_secret


def readable_secrets(config: Config) -> Iterator[Problem]:
    """Warn about a file with a secret that others than root and the workers may read, and say what mends it."""
    file = config.file
    if file is None:
        return
    try:
        status = file.stat()
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    who = ""
    if status.st_mode & stat.S_IRGRP and status.st_gid not in _own_groups(config) | {status.st_uid}:
        who = "g"
    if status.st_mode & stat.S_IROTH:
        who += "o"
    if not who or not holds_secret(text):
        return
    readers = "every user of this machine" if "o" in who else f"the group {_group(status.st_gid)}"
    what = f"there is a password or a key in it, and {readers} may read it: chmod {who}-r {shlex.quote(str(file))}"
    yield Problem(str(file), 0, what).opening()


def _own_groups(config: Config) -> set[int]:
    """Return the groups of root and of the workers."""
    groups = {0}
    try:
        groups.add(pwd.getpwnam(config.user).pw_gid)
        if config.group:
            groups.add(grp.getgrnam(config.group).gr_gid)
    except KeyError:
        pass  # another problem tells it
    return groups


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
