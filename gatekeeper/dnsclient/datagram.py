# SPDX-License-Identifier: GPL-3.0-or-later
"""Fast path of the live resolver: one question in UDP datagrams, and a parser for the common answers.

dnspython's resolver takes 0.4 ms to process an NXDOMAIN, which is the most common answer: that of a DNS list on which a
client is not listed. Here the query is built, and that answer, which holds nothing but the SOA of a zone, is parsed by
hand; other answers are left to dnspython. Anything unusual (an error, a truncated or contradictory answer) gives None,
and the caller queries again through dnspython.

Each query has a connected socket of its own, with a port chosen by the kernel: to forge an answer, one has to guess the
port and the ID, as with any resolver. Only a datagram that repeats the question byte by byte is looked at. Because it
is connected, a closed port is heard of at once. A socket stays open while others are asked, or the same server once
more: a late answer is an answer. All questions together take no more than half of the descriptors that this process
may have: the rest is for those who ask us.
"""

import asyncio
import errno
import resource
import secrets
import socket
import struct
from functools import cache
from types import TracebackType
from typing import ClassVar, Self

import dns.flags
import dns.message
import dns.name

from gatekeeper.dnsclient.resolver import Answer, to_records

_TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28}
_HEADER = struct.Struct("!6H")
_QUERY_FLAGS = dns.flags.RD | dns.flags.AD
"""AD: ask whether the answer was validated (RFC 6840 section 5.7)."""
_UNUSUAL = dns.flags.TC | 0x7800
"""Truncated, or an opcode other than QUERY."""
_RCODE, _NXDOMAIN = 0x000F, 3
_RECORD = struct.Struct("!HHIH")
"""Type, class, TTL and RDLENGTH, which follow the name of a record."""
_OPT = struct.Struct("!BHHIH")
"""The same for the OPT record, preceded by its name, the root."""
_EDNS = 41
_TTL_WITHOUT_SOA = 300
"""Seconds, as in dnspython."""
_MAX_DATAGRAM = 65535

ServerAddress = tuple[str, int]
"""The IP address and port of a name server."""


class Exchange:
    """One question, and the sockets on which an answer to it may come, from whichever server, until the end.

    `size` is the EDNS payload size that is advertised, in bytes. To be used in a `with` block, on the event loop.
    """

    _open: ClassVar[int] = 0
    """Sockets of all exchanges."""

    def __init__(self, qname: dns.name.Name, type: str, size: int) -> None:
        self.question = b"".join([bytes((len(label),)) + label for label in qname.labels]) + struct.pack(
            "!HH", _TYPES[type], 1
        )
        self.refused: set[ServerAddress] = set()
        """The servers that nothing can be sent to: their port is closed, or there is no way to them."""
        self._end = self.question + _OPT.pack(0, _EDNS, size, 0, 0)
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[socket.socket, tuple[ServerAddress, bytes]] = {}  # with the ID of each query
        self._answer: bytes | None = None
        self._heard: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether an answer may still come."""
        return bool(self._sockets)

    def send(self, server: ServerAddress) -> None:
        """Ask `server`, or find that it cannot be asked (`refused`). Raises OSError if we have no socket left."""
        if Exchange._open >= _most_sockets():
            raise OSError(errno.EMFILE, "too many questions at once")
        sock = socket.socket(
            socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        query_id = secrets.token_bytes(2)
        try:
            sock.connect(server)
            sock.send(_HEADER.pack(int.from_bytes(query_id, "big"), _QUERY_FLAGS, 1, 0, 0, 1) + self._end)
        except OSError:
            sock.close()
            self.refused.add(server)
            return
        self._sockets[sock] = server, query_id
        Exchange._open += 1
        self._loop.add_reader(sock, self._ready, sock)

    async def answer(self, seconds: float) -> bytes | None:
        """Return the datagram that answers; None after `seconds`, and as soon as a server refuses."""
        if self._answer is None and self._sockets:
            self._heard = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._wake)
            try:
                await self._heard
            finally:
                timer.cancel()
        return self._answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sock in tuple(self._sockets):
            self._close(sock)

    def _ready(self, sock: socket.socket) -> None:
        server, query_id = self._sockets[sock]
        try:
            data = sock.recv(_MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError:  # what ICMP has told: nobody listens there
            self.refused.add(server)
            self._close(sock)
            self._wake()
            return
        if data[:2] == query_id and data[12 : 12 + len(self.question)] == self.question:
            self._answer = data
            self._wake()

    def _wake(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    def _close(self, sock: socket.socket) -> None:
        del self._sockets[sock]
        Exchange._open -= 1
        self._loop.remove_reader(sock)
        sock.close()


@cache
def _most_sockets() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def read(data: bytes, question_length: int, name: str, type: str) -> Answer | None:
    """Parse the response in `data` to a question for `name` and `type`; None if it is not one of the common ones.

    `question_length` is in bytes. Raises nothing.
    """
    _, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    code = flags & _RCODE
    if not flags & dns.flags.QR or flags & _UNUSUAL or questions != 1 or code not in (0, _NXDOMAIN):
        return None
    exists, secure = code == 0, bool(flags & dns.flags.AD)
    if not answers and (ttl := _negative_ttl(data, 12 + question_length, authorities, additionals)) is not None:
        return Answer(name, type, exists=exists, ttl=ttl, secure=exists and secure)
    if answers and not exists:
        return None
    try:
        message = dns.message.from_wire(data)
        assert isinstance(message, dns.message.QueryMessage)
        result = message.resolve_chaining()
        ttl, records = float(result.minimum_ttl), to_records(result.answer or ())
    except Exception:  # noqa: BLE001 (dnspython lets more than its own exceptions escape)
        return None
    return Answer(name, type, records, exists, ttl, exists and secure)


def _negative_ttl(data: bytes, at: int, authorities: int, additionals: int) -> float | None:
    """Return for how many seconds the negative answer holds (RFC 2308 section 5).

    At offset `at` there may be an SOA, then `additionals` records, which may be one OPT. None for anything else.
    """
    ttl, end = _TTL_WITHOUT_SOA, at
    try:
        if authorities:
            pointer = ((data[at] << 8) | data[at + 1]) - 0xC000
            if 12 <= pointer < at:  # most often its name is a pointer into the question
                at += 2
            elif data[at] == 0:  # the root
                at += 1
            else:
                return None
            kind, class_, ttl, length = _RECORD.unpack_from(data, at)
            end = at + _RECORD.size + length
            if (kind, class_) != (_TYPES["SOA"], 1) or length < 22:
                return None
            (minimum,) = struct.unpack_from("!I", data, end - 4)
            ttl = min(ttl, minimum)
        if additionals:
            root, opt, _, _, length = _OPT.unpack_from(data, end)
            if (root, opt) != (0, _EDNS):
                return None
            end += _OPT.size + length
    except (IndexError, struct.error):
        return None
    return float(ttl) if authorities <= 1 and additionals <= 1 and end == len(data) else None
