# SPDX-License-Identifier: GPL-3.0-or-later
"""Where we listen if the configuration does not say: the one rule for `run`, `policy` and `milter`.

For root beside a configured Postfix: on unix sockets in `gatekeeper/` of that Postfix's queue directory, which only
root and Postfix may enter. On TCP every user of the machine can ask us to sign, and count against others. Else on
loopback, which works anywhere. What the configuration says about a section's addresses, mode or group stays as it is.
"""

import grp
import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatekeeper.core import safe_files
from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.postfix.postconf import PostfixSettings

_SOCKETS = {"policy": "policy.sock", "milter": "milter.sock"}


@dataclass(frozen=True, slots=True)
class PostfixSockets:
    """The folder of sockets in a queue directory, and the group of whoever Postfix's processes are."""

    queue_directory: Path
    group: str

    @property
    def folder(self) -> Path:
        """Where the sockets are."""
        return self.queue_directory / "gatekeeper"

    def make_folder_for(self, addresses: Iterable[ListenAddress]) -> list[Path]:
        """Make the folder if one of `addresses` lies in it and it is missing; return what was made. Raises OSError."""
        if all(Path(listen.path).parent != self.folder for listen in addresses):
            return []
        return safe_files.make_folders(self.folder, 0o750, (0, grp.getgrnam(self.group).gr_gid))


def find(tree: Mapping[str, Any], relay: PostfixSettings) -> PostfixSockets | None:
    """Return the sockets that the configuration `tree` leaves to this rule; None if there are none."""
    sections = [tree.get(name, {}) for name in _SOCKETS]
    if os.geteuid() != 0 or all(isinstance(section, Mapping) and "listen" in section for section in sections):
        return None
    try:
        group = grp.getgrgid(pwd.getpwnam(relay.mail_owner).pw_gid).gr_name
    except KeyError:
        return None
    queue_directory = relay.queue_directory
    return PostfixSockets(queue_directory, group) if queue_directory is not None and queue_directory.is_dir() else None


def with_defaults(tree: Mapping[str, Any], sockets: PostfixSockets) -> dict[str, Any]:
    """Return `tree` with the addresses, mode and group of `sockets` in each section that says no address."""
    result = dict(tree)
    for name, file in _SOCKETS.items():
        section = tree.get(name, {})
        if isinstance(section, Mapping) and "listen" not in section:
            default = {"listen": f"unix:{sockets.folder / file}", "socket_mode": "0660", "socket_group": sockets.group}
            result[name] = {**default, **section}
    return result
