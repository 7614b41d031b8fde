# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect to a socket of ours: `policy.peers` and `milter.peers`.

A peer on a unix socket is known by its user (SO_PEERCRED, socket(7)), one on TCP by its address. Nobody is asked for
more: whoever is let in is believed. An empty list lets in whom the socket's mode or the network lets come; any other
lets in only whom it names.
"""

import logging
import pwd
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from gatekeeper.core.units import parse_network, unmap_network

logger = logging.getLogger(__name__)

_PEERCRED = struct.Struct("iII")  # pid, uid, gid
_QUIET = 60.0
"""Seconds for which further refusals are only counted."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Users by their number, and networks. Falsy if it names nobody, which means everybody."""

    uids: frozenset[int] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uids or self.networks)

    @property
    def kinds(self) -> tuple[bool, bool]:
        """Whether anybody could come by a unix socket, and by TCP."""
        return (bool(self.uids), bool(self.networks)) if self else (True, True)


EVERYBODY = Peers()


def parse_peers(words: Sequence[str]) -> Peers:
    """Parse user names, user ids, addresses and networks. Raises ValueError with a sentence for whoever wrote them."""
    uids: set[int] = set()
    networks: list[IPv4Network | IPv6Network] = []
    for word in words:
        if word.isascii() and word.isdigit():
            uids.add(int(word))
        elif "/" in word or ":" in word or word.replace(".", "").isdigit():
            networks.append(unmap_network(parse_network(word)))
        else:
            try:
                uids.add(pwd.getpwnam(word).pw_uid)
            except KeyError:
                raise ValueError(f"there is no user {word!r} on this machine") from None
    return Peers(frozenset(uids), tuple(networks))


class Door:
    """Keeps out whom `peers` does not name, on sockets of `what` ("policy", "milter"), and says so once a minute."""

    def __init__(self, peers: Peers, what: str) -> None:
        self._peers = peers
        self._what = what
        self._quiet_until = 0.0
        self._unsaid = 0

    def lets_in(self, sock: socket.socket) -> bool:
        """Return whether the peer of an accepted connection may stay."""
        if not self._peers or self._is_named(sock):
            return True
        self.refused(sock, f"{self._what}.peers does not name it")
        return False

    def _is_named(self, sock: socket.socket) -> bool:
        try:
            if sock.family == socket.AF_UNIX:
                return _uid(sock) in self._peers.uids
            address = ip_address(sock.getpeername()[0].partition("%")[0])
        except (OSError, ValueError):  # it has gone already, or is none that a list could name
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._peers.networks)

    def refused(self, sock: socket.socket, why: str) -> None:
        """Log that the connection is closed."""
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        more, self._unsaid, self._quiet_until = self._unsaid, 0, now + _QUIET
        logger.warning(
            "a %s connection of %s is closed: %s%s", self._what, _name(sock), why, f"; {more} more before" * bool(more)
        )


def _uid(sock: socket.socket) -> int:
    return int(_PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[1])


def _name(sock: socket.socket) -> str:
    try:
        return f"user id {_uid(sock)}" if sock.family == socket.AF_UNIX else str(sock.getpeername()[0])
    except OSError:
        return "a peer that has gone"
