# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets that the parent holds: which there are, which a plan wants, and how one becomes the other.

All or none: where one cannot be opened, those that were open are as they were. A socket file that is to have another
mode, group or owner is a new socket in its place, since those of an open one cannot be changed without trusting its
path. The old one is accepted on until its workers retire. A policy address that is no longer wanted is shut down, not
only closed: a worker that has not got round to it may still hold it. libmilter ends over a listener that was shut down,
so a milter worker lets go of its own (milter/server.py).
"""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gatekeeper.app.plan import Plan
from gatekeeper.config.schema import MilterSection, PolicySection
from gatekeeper.core.safe_path import place
from gatekeeper.daemon.listening_sockets import open_listener, remove_socket
from gatekeeper.daemon.worker import ProcessUser, WorkerKind, shut_down
from gatekeeper.postfix.listen_address import ListenAddress

logger = logging.getLogger(__name__)

Endpoint = tuple[WorkerKind, ListenAddress]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a socket file."""

    mode: int = 0o660
    group: str = ""
    owner: int = -1


@dataclass(slots=True)
class Endpoints:
    """The open sockets. `sockets` are those in force; `outgoing` those in whose place they were opened."""

    kinds: tuple[WorkerKind, ...]
    sockets: dict[Endpoint, socket.socket] = field(default_factory=dict)
    outgoing: list[tuple[Endpoint, socket.socket]] = field(default_factory=list)
    _access: dict[Endpoint, Access] = field(default_factory=dict)

    def wanted(self, plan: Plan, process_user: ProcessUser | None) -> dict[Endpoint, Access]:
        """Return what `plan` wants, in its order."""
        config, owner = plan.config, -1 if process_user is None else process_user.uid
        sections: dict[WorkerKind, PolicySection | MilterSection] = {
            WorkerKind.POLICY: config.policy,
            WorkerKind.MILTER: config.milter,
        }
        return {
            (kind, address): Access(sections[kind].socket_mode, sections[kind].socket_group, owner)
            if address.path
            else Access()
            for kind in self.kinds
            for address in sections[kind].listen
        }

    def open(self, wanted: dict[Endpoint, Access]) -> list[Endpoint]:
        """Open what is wanted and not open yet, has lost its file, or is to have another access; return those.

        All or none. Raises OSError.
        """
        opened: dict[Endpoint, socket.socket] = {}
        aside: dict[str, str] = {}
        missing = [endpoint for endpoint in wanted if endpoint not in self.sockets or _is_gone(endpoint)]
        changed = [one for one in wanted if one not in missing and self._access[one] != wanted[one]]
        try:
            for endpoint in missing:
                opened[endpoint] = _open(endpoint, wanted[endpoint])
            for endpoint in changed:
                aside[endpoint[1].path] = _put_aside(endpoint[1].path)
                opened[endpoint] = _open(endpoint, wanted[endpoint])
        except OSError:
            for endpoint, listener in opened.items():
                shut(endpoint, listener)
            for path, name in aside.items():
                _move(name, path)
            raise
        for name in aside.values():
            _remove(name)
        # Old ones are dropped only now: a worker that is forked after a refusal needs a listener for each endpoint,
        # even if its file is gone.
        for endpoint in opened.keys() & self.sockets.keys():
            self.outgoing.append((endpoint, self.sockets.pop(endpoint)))
        self.sockets.update(opened)
        self._access.update((endpoint, wanted[endpoint]) for endpoint in opened)
        return [*opened]

    def close(self, endpoints: Sequence[Endpoint]) -> None:
        """Have nobody listen on these any more."""
        for endpoint in endpoints:
            del self._access[endpoint]
            shut(endpoint, self.sockets.pop(endpoint))

    def close_outgoing(self) -> None:
        """Have nobody listen any more on what was replaced."""
        for endpoint, listener in self.outgoing:
            _end(endpoint, listener)
        self.outgoing.clear()


def _is_gone(endpoint: Endpoint) -> bool:
    """Return True if somebody has removed the socket's file, so that nobody can connect any more."""
    path = endpoint[1].path
    return bool(path) and not Path(path).exists()


def _open(endpoint: Endpoint, access: Access) -> socket.socket:
    return open_listener(endpoint[1], access.mode, access.group, access.owner)


def _put_aside(path: str) -> str:
    """Give our socket another name in its folder, under which it can be put back; return that. Raises OSError."""
    name = f"{path}.{os.getpid()}"
    _rename(path, name)
    return name


def _rename(path: str, name: str) -> None:
    """Rename within a folder, which may be somebody else's: nothing is followed. Raises OSError."""
    with place(Path(path)) as where:
        os.rename(where.name, Path(name).name, src_dir_fd=where.folder, dst_dir_fd=where.folder)


def _move(name: str, path: str) -> None:
    try:
        _rename(name, path)
    except OSError as error:
        logger.error("cannot put %s back to %s: %s", name, path, error.strerror)  # noqa: TRY400 (the sentence says it)


def _remove(path: str) -> None:
    """Remove a socket's file. One that stays is found stale by the next start."""
    try:
        remove_socket(path)
    except OSError as error:
        logger.error("cannot remove %s: %s", path, error.strerror)  # noqa: TRY400 (the sentence says it)


def shut(endpoint: Endpoint, listener: socket.socket) -> None:
    """End the listener, and remove its file."""
    _end(endpoint, listener)
    if endpoint[1].path:
        _remove(endpoint[1].path)


def _end(endpoint: Endpoint, listener: socket.socket) -> None:
    if endpoint[0] is WorkerKind.POLICY:
        shut_down([listener])
    listener.close()
