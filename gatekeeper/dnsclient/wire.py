# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS messages in bytes (RFC 1035 section 4): the query that we send, and the answer in what comes back.

dnspython makes an object of each name and record, which takes 0.1 to 0.3 ms for an answer; what is wanted of it here
takes a twentieth of that. Its rules hold: the records of the name in question, or of the one that its CNAMEs lead to;
names are the same whatever their case; the time to live is the shortest on the way, and that of a negative answer the
SOA's (RFC 2308 section 5).

Every byte is a stranger's. A message must be whole: each record as long as it says, nothing missing at the end, and
nothing left over. Of the records only those that count are looked into. A name has at most 255 bytes, and compression
leads backwards, a few times; so a message takes time and memory in proportion to its length. What is not understood is
no answer (Unusable). Knows no sockets; whether a message answers the question is for its receiver to find out.
"""

import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial

import dns.rcode

from gatekeeper.dnsclient.names import wire_to_text
from gatekeeper.dnsclient.resolver import MX, Answer, Record

HEADER = struct.Struct("!6H")
"""ID, flags, and the number of questions, answers, authority records and additional records."""
_QR, _OPCODE, _TC, _RD, _AD, _RCODE = 0x8000, 0x7800, 0x0200, 0x0100, 0x0020, 0x000F
_NXDOMAIN = 3
_RECORD = struct.Struct("!HHIH")
"""Type, class, TTL and RDLENGTH, which follow the name of a record."""
_OPT_RECORD = struct.Struct("!BHHIH")
"""The same for the OPT record (RFC 6891), preceded by its name, the root."""
_IN, _CNAME, _SOA, _TXT, _OPT, _TSIG = 1, 5, 6, 16, 41, 250
_SPECIAL = (_OPT, _TSIG)
"""What stands in the additional section about the message itself. Nobody has a key to sign messages to us."""
_SINGLE = (_CNAME, _SOA)
"""Of these a name has one; of several the last counts, as in dnspython."""
_POINTER_TO_QUESTION = b"\xc0\x0c"
"""How nearly every answer writes the name in question."""
_MAX_NAME = 254
"""Bytes, without the root."""
_MAX_POINTERS = 16
"""In one name, as in dnspython."""
_MAX_CHAIN = 16
"""CNAMEs to follow before they count as a loop, as in dnspython."""
_MAX_TTL = 2**31 - 1
"""Seconds; what is larger counts as 0 (RFC 2181 section 8)."""
_TTL_WITHOUT_SOA = 300
"""Seconds, as in dnspython."""


class Unusable(Exception):
    """A message is no answer. The text says why, in words of ours."""


class Truncated(Unusable):
    """A message is not whole; over TCP it would be."""


_Place = tuple[int, int, int]
"""A record in a message: its TTL, and where its data begins and ends."""
_Sets = dict[tuple[bytes, int], list[_Place]]
"""The records of one section by name, in wire form and lower case without the root, and type; of class IN alone."""


def question(name: bytes, type: str) -> bytes:
    """Return the question about `name`, which is in wire form."""
    return name + struct.pack("!HH", _TYPES[type], _IN)


def query(query_id: int, question: bytes, size: int) -> bytes:
    """Return the query with this question. `size` is the EDNS payload size to advertise, in bytes.

    AD asks whether the answer has been validated (RFC 6840 section 5.7).
    """
    return HEADER.pack(query_id, _RD | _AD, 1, 0, 0, 1) + question + _OPT_RECORD.pack(0, _OPT, size, 0, 0)


def read(data: bytes, question: bytes, name: str, type: str) -> Answer:
    """Return the answer in the message `data`, which repeats `question`, that for `name` and `type`.

    Raises Unusable.
    """
    try:
        return _read(data, question, name, type)
    except (IndexError, struct.error):
        raise Unusable("malformed answer") from None


def _read(data: bytes, question: bytes, name: str, type: str) -> Answer:
    _, flags, questions, *counts = HEADER.unpack_from(data)
    if not flags & _QR or flags & _OPCODE or questions != 1:
        raise Unusable("malformed answer")
    if flags & _TC:
        raise Truncated("truncated answer")
    owner = question[:-5].lower()
    answers, authority, additional = _sections(data, HEADER.size + len(question), owner, counts)
    code = flags & _RCODE | _extended_code(additional)
    if code not in (0, _NXDOMAIN):
        raise Unusable(dns.rcode.to_text(dns.rcode.Rcode.make(code)))
    exists, secure = code == 0, code == 0 and bool(flags & _AD)
    owner, found, ttl = _follow(data, answers, owner, _TYPES[type])
    if not found:
        return Answer(name, type, (), exists, float(min(ttl, _negative_ttl(data, authority, owner))), secure)
    if not exists:
        raise Unusable("contradictory answer")
    return Answer(name, type, _records(data, found, _TYPES[type]), True, float(min(ttl, _shortest_ttl(found))), secure)


def _sections(data: bytes, at: int, qname: bytes, counts: Sequence[int]) -> list[_Sets]:
    """Return the records of answer, authority and additional section, which begin at offset `at` and fill the rest."""
    sections: list[_Sets] = []
    for count in counts:
        sets: _Sets = {}
        for _ in range(count):
            if data[at : at + 2] == _POINTER_TO_QUESTION:
                name = qname
                at += 2
            else:
                name, at = _name(data, at, len(data))
            type, class_, ttl, length = _RECORD.unpack_from(data, at)
            begin = at + _RECORD.size
            at = begin + length
            if type in _SPECIAL:
                if type != _OPT or name or len(sections) < 2:
                    raise Unusable("malformed answer")
            elif class_ != _IN:
                continue
            if (name, type) in sets:
                sets[name, type].append((ttl, begin, at))
            else:
                sets[name, type] = [(ttl, begin, at)]
        sections.append(sets)
    if at != len(data):
        raise Unusable("malformed answer")
    return sections


def _extended_code(additional: _Sets) -> int:
    """Return the upper bits of the response code, in their place (RFC 6891 section 6.1.3)."""
    options = additional.get((b"", _OPT), ())
    if len(options) > 1:
        raise Unusable("malformed answer")
    return options[0][0] >> 24 << 4 if options else 0


def _follow(data: bytes, answers: _Sets, name: bytes, type: int) -> tuple[bytes, list[_Place], int]:
    """Return the name that the CNAMEs of `name` lead to, its records of `type`, and the shortest TTL on the way."""
    ttl, before = _MAX_TTL, list[bytes]()
    for _ in range(_MAX_CHAIN):
        found = answers.get((name, type))
        if found or type == _CNAME:
            return name, found or [], ttl
        aliases = answers.get((name, _CNAME))
        if aliases is None:
            return name, [], ttl
        ttl = min(ttl, _shortest_ttl(aliases))
        before.append(name)
        name = [_whole_name(data, begin, end) for _, begin, end in aliases][-1]
        if name in before:
            break
    raise Unusable("CNAMEs form a loop")


def _shortest_ttl(places: list[_Place]) -> int:
    return min([ttl if ttl <= _MAX_TTL else 0 for ttl, _, _ in places])


def _negative_ttl(data: bytes, authority: _Sets, name: bytes) -> int:
    """Return for how many seconds it holds that there is nothing at `name` (RFC 2308 section 5)."""
    while (found := authority.get((name, _SOA))) is None:
        if not name:
            return _TTL_WITHOUT_SOA
        name = name[name[0] + 1 :]
    minimum = [_soa(data, begin, end)[1] for _, begin, end in found][-1]
    return min(_shortest_ttl(found), minimum)


def _records(data: bytes, found: list[_Place], type: int) -> tuple[Record, ...]:
    """Return the records in `found`, which are of one type, each once."""
    read_data = _READERS[type]
    if len(found) == 1:
        return (read_data(data, *found[0][1:]),)
    read = [(data[begin:end], read_data(data, begin, end)) for _, begin, end in found]
    if type in _SINGLE:
        return (read[-1][1],)
    # strings may be cut elsewhere
    return tuple({(raw if type == _TXT else record): record for raw, record in read}.values())


def _name(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Return the name at offset `at`, in lower case and without the root, and the offset behind it, at most `end`.

    What a pointer leads to lies before all of the name that has been read (RFC 1035 section 4.1.4).
    """
    parts = []
    size = behind = 0
    for _ in range(_MAX_POINTERS + 1):
        begin = at
        while 0 < (length := data[at]) < 64:
            at += length + 1
            if at - begin > _MAX_NAME:
                raise Unusable("malformed answer")
        parts.append(data[begin:at])
        size += at - begin
        pointer = length >= 0xC0
        if at + 1 + pointer > end or size > _MAX_NAME or (length and not pointer):
            break
        behind = behind or at + 1 + pointer
        if not pointer:
            return b"".join(parts).lower(), behind
        at = (length & 0x3F) << 8 | data[at + 1]
        if at >= begin:
            break
        end = begin
    raise Unusable("malformed answer")


def _whole_name(data: bytes, begin: int, end: int) -> bytes:
    name, behind = _name(data, begin, end)
    if behind != end:
        raise Unusable("malformed answer")
    return name


def _host(data: bytes, begin: int, end: int) -> str:
    return wire_to_text(_whole_name(data, begin, end))


def _mx(data: bytes, begin: int, end: int) -> MX:
    return MX(data[begin] << 8 | data[begin + 1], _host(data, begin + 2, end))


def _txt(data: bytes, begin: int, end: int) -> bytes:
    strings = []
    while begin < end:
        length = data[begin] + 1
        strings.append(data[begin + 1 : begin + length])
        begin += length
    if begin != end or not strings:
        raise Unusable("malformed answer")
    return b"".join(strings)


def _soa(data: bytes, begin: int, end: int) -> tuple[bytes, int]:
    """Return the primary server and the minimum TTL."""
    server, at = _name(data, begin, end)
    _, at = _name(data, at, end)
    if at + 20 != end:
        raise Unusable("malformed answer")
    return server, int.from_bytes(data[end - 4 : end], "big")


def _soa_server(data: bytes, begin: int, end: int) -> str:
    return wire_to_text(_soa(data, begin, end)[0])


def _address(family: int, length: int, data: bytes, begin: int, end: int) -> str:
    if end - begin != length:
        raise Unusable("malformed answer")
    return socket.inet_ntop(family, data[begin:end])


_KINDS: dict[str, tuple[int, Callable[[bytes, int, int], Record]]] = {
    "A": (1, partial(_address, socket.AF_INET, 4)),
    "NS": (2, _host),
    "CNAME": (_CNAME, _host),
    "SOA": (_SOA, _soa_server),
    "PTR": (12, _host),
    "MX": (15, _mx),
    "TXT": (_TXT, _txt),
    "AAAA": (28, partial(_address, socket.AF_INET6, 16)),
}
_TYPES = {name: type for name, (type, _) in _KINDS.items()}
_READERS = dict(_KINDS.values())
