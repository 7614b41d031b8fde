# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands before libmilter on a socket that others than Postfix can reach: whom it lets in, and what of their words.

libmilter dies of a list of macros that has a name without a value: smfi_getsymval(3) steps over the end of the list,
and the process ends by SIGSEGV with all its sessions (docs/reliability.md). pymilter shows nobody the list before it is
asked for. So what comes from a peer is cut into packets here (4 bytes of length, a command, its data), and a peer whose
packets libmilter cannot bear is hung up on; everything else passes as it is, in both directions. No byte of a list of
macros goes on before the list is whole.

Costs CPU, so Postfix's own connections do without (milter/server.py decides). Knows no libmilter, no callbacks.
"""

import asyncio
import logging
import socket
from collections.abc import Callable

from gatekeeper.core.peers import Door

logger = logging.getLogger(__name__)

LONGEST = 1024 * 1024
"""Bytes of a packet with its command; libmilter's MILTER_MDS_1M."""
_LONGEST_MACROS = 64 * 1024
"""Bytes of a list of macros, which is kept until it is whole."""
_CHUNK = 256 * 1024
_MACRO = ord("D")
_RETRY_DELAY = 0.2
"""Seconds before accepting again after an error such as too many open files."""


class BadPacket(Exception):
    """A peer's bytes are not what libmilter can bear; the message says why."""


class Packets:
    """One direction of a conversation, cut into packets."""

    __slots__ = ("_held", "_left")

    def __init__(self) -> None:
        self._held = b""  # a beginning that may not go on yet
        self._left = 0  # bytes that are still to come of a packet that has gone on

    def pass_on(self, data: bytes) -> bytes:
        """Return what of the bytes so far may go on now. Raises BadPacket."""
        if self._held:
            data, self._held = self._held + data, b""
        at, end = self._left, len(data)
        while end - at > 4:  # the length and the command
            length = int.from_bytes(data[at : at + 4])
            if not 1 <= length <= LONGEST:
                # libmilter takes 0 and what looks negative for a packet without data, and reads on elsewhere
                raise BadPacket(f"a packet of {length} bytes")
            next_at = at + 4 + length
            if data[at + 4] == _MACRO:
                if length > _LONGEST_MACROS:
                    raise BadPacket(f"a list of macros of {length} bytes")
                if next_at > end:
                    break
                _check_macros(data, at + 5, next_at)
            at = next_at
        if at >= end:
            self._left = at - end
            return data
        self._left, self._held = 0, data[at:]
        return data[:at]


def _check_macros(data: bytes, start: int, end: int) -> None:
    """Check a list of macros: the command that it is for, then names and values, each with a NUL behind it."""
    if end - start > 1 and (data[end - 1] or data.count(b"\0", start + 1, end) % 2):
        raise BadPacket("a list of macros in which a name has no value")


class Gate:
    """Lets peers through to libmilter, to which `connect` gives a new connection (non-blocking; may raise OSError)."""

    def __init__(self, door: Door, connect: Callable[[], socket.socket]) -> None:
        self._door = door
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self.sessions: set[_Session] = set()

    def open(self, listener: socket.socket) -> None:
        """Accept on `listener` (listening, non-blocking) from now on."""
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def shut(self) -> None:
        """Accept no more; sessions go on."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener = None

    def _resume(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the peer has given up
        except OSError as error:
            logger.error("cannot accept a milter connection: %s", error)  # noqa: TRY400 (too many open files, not a bug)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_RETRY_DELAY, self._resume)
            return
        if not self._door.lets_in(peer):
            peer.close()
            return
        try:
            peer.setblocking(False)
            libmilter = self._connect()
        except OSError as error:
            logger.error("a milter connection is closed, because libmilter takes none: %s", error)  # noqa: TRY400 (nothing broke)
            peer.close()
            return
        self.sessions.add(_Session(self, peer, libmilter))

    def ended(self, session: "_Session") -> None:
        """Forget a session."""
        self.sessions.discard(session)


class _Session:
    """One connection: the peer's socket, libmilter's, and a pipe each way."""

    def __init__(self, gate: Gate, peer: socket.socket, libmilter: socket.socket) -> None:
        self._gate = gate
        self._sockets = peer, libmilter
        self.loop = gate._loop
        _Pipe(self, peer, libmilter, Packets().pass_on)
        _Pipe(self, libmilter, peer, None)

    def end(self, why: BadPacket | None = None) -> None:
        """Hang up on both."""
        if self._sockets[0].fileno() < 0:
            return
        if why is not None:
            self._gate._door.refused(self._sockets[0], str(why))
        for sock in self._sockets:
            self.loop.remove_reader(sock)
            self.loop.remove_writer(sock)
            sock.close()
        self._gate.ended(self)


class _Pipe:
    """Carries bytes from `source` to `target`; reads no more while the target takes none."""

    __slots__ = ("_check", "_session", "_source", "_target", "_waiting")

    def __init__(
        self,
        session: _Session,
        source: socket.socket,
        target: socket.socket,
        check: Callable[[bytes], bytes] | None,
    ) -> None:
        self._session = session
        self._source = source
        self._target = target
        self._check = check
        self._waiting = b""
        session.loop.add_reader(source, self._readable)

    def _readable(self) -> None:
        # All that there is: when the other side has gone (POLLERR), uvloop calls once and, behind bytes that were left
        # unread, never again.
        try:
            while not self._waiting:
                data = self._source.recv(_CHUNK)
                if not data:
                    self._session.end()
                    return
                if self._check is not None:
                    data = self._check(data)
                if data:
                    self._send(data)
        except (BlockingIOError, InterruptedError):
            return
        except BadPacket as bad:
            self._session.end(bad)
        except OSError:  # one of them has gone
            self._session.end()

    def _send(self, data: bytes) -> None:
        try:
            sent = self._target.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            self._waiting = data[sent:]
            self._session.loop.remove_reader(self._source)
            self._session.loop.add_writer(self._target, self._writable)

    def _writable(self) -> None:
        try:
            sent = self._target.send(self._waiting)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._session.end()
            return
        self._waiting = self._waiting[sent:]
        if not self._waiting:
            self._session.loop.remove_writer(self._target)
            self._session.loop.add_reader(self._source, self._readable)
