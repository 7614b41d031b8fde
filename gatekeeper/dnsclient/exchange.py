# SPDX-License-Identifier: GPL-3.0-or-later
"""One question on its way: datagrams to one server after another, a stream where one asks for it, and what is heard.

Guards against forged answers (RFC 5452): each query has a connected socket of its own, with a port chosen by the
kernel, a random ID, and the letters of the name in random case, which servers repeat ("0x20"). Only a datagram from the
server that repeats ID and question byte by byte is taken. If its letters alone are changed, it may be the guess of a
forger, or the server does not keep them: then the server is asked over TCP, where nobody can guess.

Because sockets are connected, a closed port is heard of at once. One stays open while others are asked, or the same
server once more: a late answer is an answer. All questions together take no more than half of the descriptors that this
process may have: the rest is for those who ask us.
"""

import asyncio
import errno
import os
import resource
import socket
from functools import cache
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from gatekeeper.dnsclient import wire

_MAX_MESSAGE = 65535
_SIZE = 1232
"""Bytes that pass every network unfragmented (DNS flag day 2020)."""
_LETTERS = bytes(0x20 if bytes((byte,)).isalpha() else 0 for byte in range(256))
"""The bit of each byte that is the case of a letter."""

ServerAddress = tuple[str, int]
"""The IP address and port of a name server."""


class Heard(NamedTuple):
    """A message that a server has sent, and the question that it repeats, which is the one that it was asked."""

    server: ServerAddress
    data: bytes
    question: bytes
    is_certain: bool = True
    """False if the letters of the question have changed their case."""


class Exchange:
    """One question, and the sockets on which an answer to it may come. To be used in a `with` block, on the event loop.

    `qname` is `name` in wire form; at `end`, in the loop's time, it is too late.
    """

    _open: ClassVar[int] = 0
    """Sockets of all exchanges."""

    def __init__(self, name: str, type: str, qname: bytes, end: float) -> None:
        self.name, self.type, self.end = name, type, end
        self.refused: dict[ServerAddress, str] = {}
        """The servers that will not answer, each with the reason: its port is closed, its answer is of no use."""
        self._question = wire.question(qname, type)
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[socket.socket, tuple[ServerAddress, bytes]] = {}  # with the query that was sent
        self._heard: list[Heard] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether an answer may still come."""
        return bool(self._sockets)

    def send(self, server: ServerAddress, *, mixed: bool = True) -> None:
        """Ask `server`, or find that it cannot be asked (`refused`). Raises OSError if we have no socket left.

        With `mixed` the letters of the name are in random case.
        """
        sock = self._socket(server, socket.SOCK_DGRAM)
        query = self._query(mixed)
        try:
            sock.connect(server)
            sock.send(query)
        except OSError as error:
            self._close(sock)
            self.refused[server] = why_not(error)
            return
        self._sockets[sock] = server, query
        self._loop.add_reader(sock, self._ready, sock)

    async def hear(self, seconds: float) -> Heard | None:
        """Return the next message that may be an answer; None after `seconds`, and as soon as a server refuses to."""
        if not self._heard and self._sockets:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        return self._heard.pop(0) if self._heard else None

    def refuse(self, server: ServerAddress, why: str) -> None:
        """Expect no answer from `server` any more, for the reason `why`."""
        self.refused[server] = why
        for sock in [sock for sock, (asked, _) in self._sockets.items() if asked == server]:
            self._forget(sock)

    async def ask_by_stream(self, server: ServerAddress, *, mixed: bool = True) -> Heard:
        """Return the answer of `server` over TCP, which takes as long as it takes.

        Raises OSError; wire.Unusable if it answers something else.
        """
        query = self._query(mixed)
        sock = self._socket(server, socket.SOCK_STREAM)
        try:
            await self._loop.sock_connect(sock, server)
            await self._loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query)
            data = await self._receive(sock, int.from_bytes(await self._receive(sock, 2), "big"))
        finally:
            self._close(sock)
        heard = self._repeats(server, query, data)
        if heard is None:
            raise wire.Unusable("answer to another question")
        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sock in tuple(self._sockets):
            self._forget(sock)

    def _query(self, mixed: bool) -> bytes:
        question = self._question
        random = os.urandom(2 + len(question))
        if mixed:
            case = int.from_bytes(question.translate(_LETTERS), "big") & int.from_bytes(random[2:], "big")
            question = (int.from_bytes(question, "big") ^ case).to_bytes(len(question), "big")
        return wire.query(int.from_bytes(random[:2], "big"), question, _SIZE)

    def _ready(self, sock: socket.socket) -> None:
        server, query = self._sockets[sock]
        try:
            data = sock.recv(_MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError as error:  # what ICMP has told
            self.refuse(server, why_not(error))
            self._wake()
            return
        heard = self._repeats(server, query, data)
        if heard is not None:
            self._heard.append(heard)
            self._wake()

    def _repeats(self, server: ServerAddress, query: bytes, data: bytes) -> Heard | None:
        """Return what was heard if it is about what was asked in `query`; None if not."""
        begin, end = wire.HEADER.size, wire.HEADER.size + len(self._question)
        asked, repeated = query[begin:end], data[begin:end]
        if data[:2] != query[:2] or (asked != repeated and asked.lower() != repeated.lower()):
            return None
        return Heard(server, data, repeated, asked == repeated)

    async def _receive(self, sock: socket.socket, size: int) -> bytes:
        """Return the next `size` bytes."""
        data = bytearray()
        while len(data) < size:
            chunk = await self._loop.sock_recv(sock, size - len(data))
            if not chunk:
                raise wire.Unusable("the connection was closed")
            data += chunk
        return bytes(data)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _socket(self, server: ServerAddress, type: socket.SocketKind) -> socket.socket:
        """Return a new socket. Raises OSError if we have none left."""
        if Exchange._open >= _most_sockets():
            raise OSError(errno.EMFILE, "too many questions at once")
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        sock = socket.socket(family, type | socket.SOCK_NONBLOCK)
        Exchange._open += 1
        return sock

    def _forget(self, sock: socket.socket) -> None:
        del self._sockets[sock]
        self._loop.remove_reader(sock)
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        Exchange._open -= 1
        sock.close()


@cache
def _most_sockets() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def why_not(error: OSError) -> str:
    """Return why nothing can be sent, without the address that asyncio puts there."""
    if isinstance(error, ConnectionRefusedError):
        return "no name server listens"
    return os.strerror(error.errno) if error.errno else "unreachable"
