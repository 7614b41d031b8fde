# SPDX-License-Identifier: GPL-3.0-or-later
"""A question to a name server in one datagram, and the usual answers read from it: the short way of the live resolver.

dnspython's resolver takes 0.4 ms to be told that there is no such name, which is what strangers are about: the answer
of a DNS list that does not have them. Here the question is put together and that answer, which holds nothing but the
SOA of a zone, is taken apart by hand; other answers are dnspython's to read. Whatever is not as usual (trouble, a
truncated or contradictory answer, no answer in time) is None, and asked again the long way.

Each question has a socket of its own, with a port chosen by the kernel and connected: an answer that somebody else
makes up has to guess port and number, as everywhere. Only what repeats the question byte by byte is looked at.
"""

import asyncio
import secrets
import socket
import struct

import dns.flags
import dns.message
import dns.name

from gatekeeper.dnsclient.resolver import Answer, to_records

_TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28}
_HEADER = struct.Struct("!6H")
_ASKS = dns.flags.RD | dns.flags.AD
"""AD: tell whether it is validated (RFC 6840 section 5.7)."""
_UNUSUAL = dns.flags.TC | 0x7800
"""Truncated, or no answer to a query (its opcode)."""
_RCODE, _NXDOMAIN = 0x000F, 3
_RECORD = struct.Struct("!HHIH")
"""Type, class, time to live and length of what follows, behind the name of a record."""
_OPT = struct.Struct("!BHHIH")
"""The same with its name, the root's."""
_EDNS = 41
_WITHOUT_SOA = 300
"""Seconds, as dnspython has it."""
_LARGEST = 65535


class Datagrams:
    """Asks the name server at `address`; `size` is what EDNS says that an answer may have, in bytes."""

    def __init__(self, address: str, port: int, size: int) -> None:
        self._address = (address, port)
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._edns = _OPT.pack(0, _EDNS, size, 0, 0)

    async def ask(self, asked: dns.name.Name, name: str, type: str, seconds: float) -> Answer | None:
        """The answer for `asked`, which is `name`, if a usual one comes within `seconds`. Raises OSError where nobody
        listens.
        """
        number = secrets.randbits(16)
        question = b"".join([bytes((len(label),)) + label for label in asked.labels]) + struct.pack(
            "!HH", _TYPES[type], 1
        )
        try:
            with socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.connect(self._address)
                sock.send(_HEADER.pack(number, _ASKS, 1, 0, 0, 1) + question + self._edns)
                data = await _receive(sock, number.to_bytes(2, "big"), question, seconds)
        except TimeoutError:
            return None
        return read(data, len(question), name, type)


async def _receive(sock: socket.socket, number: bytes, question: bytes, seconds: float) -> bytes:
    """The datagram that answers. Raises OSError where nobody listens, TimeoutError after `seconds`."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def ready() -> None:
        try:
            data = sock.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError as error:
            if not answer.done():
                answer.set_exception(error)
            return
        if not answer.done() and data[:2] == number and data[12 : 12 + len(question)] == question:
            answer.set_result(data)

    def late() -> None:
        if not answer.done():
            answer.set_exception(TimeoutError())

    timer = loop.call_later(seconds, late)
    loop.add_reader(sock, ready)
    try:
        return await answer
    finally:
        loop.remove_reader(sock)
        timer.cancel()


def read(data: bytes, asked: int, name: str, type: str) -> Answer | None:
    """What the answer in `data` says, whose question of `asked` bytes was for `name` and `type`; None if it is not
    one of the usual. Raises nothing.
    """
    _, flags, questions, answers, authorities, more = _HEADER.unpack_from(data)
    code = flags & _RCODE
    if not flags & dns.flags.QR or flags & _UNUSUAL or questions != 1 or code not in (0, _NXDOMAIN):
        return None
    exists, secure = code == 0, bool(flags & dns.flags.AD)
    if not answers and (ttl := _negative_ttl(data, 12 + asked, authorities, more)) is not None:
        return Answer(name, type, exists=exists, ttl=ttl, secure=exists and secure)
    if answers and not exists:
        return None
    try:
        message = dns.message.from_wire(data)
        assert isinstance(message, dns.message.QueryMessage)
        result = message.resolve_chaining()
        ttl, records = float(result.minimum_ttl), to_records(result.answer or ())
    except Exception:  # dnspython lets more than its own exceptions escape
        return None
    return Answer(name, type, records, exists, ttl, exists and secure)


def _negative_ttl(data: bytes, at: int, authorities: int, more: int) -> float | None:
    """For how many seconds there is nothing, by the SOA at `at` (RFC 2308 section 5) if there is one, behind which
    stand `more` records: EDNS or none. None if anything else stands there.
    """
    ttl, end = _WITHOUT_SOA, at
    try:
        if authorities:
            pointer = ((data[at] << 8) | data[at + 1]) - 0xC000
            if 12 <= pointer < at:  # most often its name points to where it stands in the question
                at += 2
            elif data[at] == 0:  # the root's
                at += 1
            else:
                return None
            kind, class_, ttl, length = _RECORD.unpack_from(data, at)
            end = at + _RECORD.size + length
            if (kind, class_) != (_TYPES["SOA"], 1) or length < 22:
                return None
            (minimum,) = struct.unpack_from("!I", data, end - 4)
            ttl = min(ttl, minimum)
        if more:
            root, opt, _, _, length = _OPT.unpack_from(data, end)
            if (root, opt) != (0, _EDNS):
                return None
            end += _OPT.size + length
    except (IndexError, struct.error):
        return None
    return float(ttl) if authorities <= 1 and more <= 1 and end == len(data) else None
