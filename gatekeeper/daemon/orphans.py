# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers whose parent was killed: they leave by themselves (daemon/worker.py), and a new start waits for that.

An address that another process holds is refused at once. One that an orphan of ours holds is free in a moment, since
it shuts its listeners down as soon as it sees that its parent has gone; a start that did not wait would end with 75.
"""

import time
from collections.abc import Callable
from pathlib import Path

from gatekeeper.daemon.listening_sockets import AddressTaken

PATIENCE = 12.0
"""Seconds that orphans have to let go of an address."""
_PAUSE = 0.05
_UNKNOWN = 3
_COMMANDS = frozenset((b"run", b"policy", b"milter", b"opendkim"))


def wait_for_orphans(open_all: Callable[[], None]) -> None:
    """Call `open_all`; while it raises AddressTaken over an orphan of ours, again.

    Raises what `open_all` raises at last.
    """
    deadline = time.monotonic() + PATIENCE
    unknown = 0
    while True:
        try:
            open_all()
            return
        except AddressTaken as error:
            unknown += not error.process  # one that we may not see, or that was just leaving
            late = time.monotonic() > deadline or unknown > _UNKNOWN
            if late or (error.process and not is_orphan(error.process)):
                raise
        time.sleep(_PAUSE)


def is_service(command: bytes) -> bool:
    """Return whether a command line, as in /proc, is that of a service of gatekeeper's."""
    return b"gatekeeper" in command and not _COMMANDS.isdisjoint(command.split(b"\0"))


def is_orphan(pid: int) -> bool:
    """Whether this is a worker that has lost its parent, or one that has ended meanwhile.

    A worker has the command line of its parent, from which it was forked, and no children of its own: it has lost its
    parent if the one that it has now has another command line.
    """
    process = Path(f"/proc/{pid}")
    try:
        command = (process / "cmdline").read_bytes()
        if not is_service(command):
            return False
        if (process / "task" / str(pid) / "children").read_bytes():
            return False
        parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        return (process.parent / parent / "cmdline").read_bytes() != command
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, IndexError):
        return False
