# SPDX-License-Identifier: GPL-3.0-or-later
"""Our reading of DNS messages against dnspython's: the same bytes, whole, cut short, changed and made to harm."""

import struct
import sys
import tracemalloc
from itertools import pairwise
from random import Random
from types import FrameType
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatekeeper.dnsclient import wire
from gatekeeper.dnsclient.names import to_name, to_text, to_wire, wire_to_text
from gatekeeper.dnsclient.resolver import MX, Answer, to_records
from gatekeeper.dnsclient.wire import Truncated, Unusable, read

TYPES = ["A", "AAAA", "MX", "TXT", "PTR", "CNAME", "NS", "SOA"]
NAMES = [
    dns.name.from_text(text)
    for text in ("a.example", "b.example", "Long.Name.example", "example", ".", r"o\.dd\032\"\255.example", "x" * 63)
]
QNAME = NAMES[0]


def by_dnspython(data: bytes, type: str, **options: Any) -> Answer | None:
    """The answer as dnspython reads it; None if it does not."""
    try:
        message = dns.message.from_wire(data, **options)
        assert isinstance(message, dns.message.QueryMessage)
        assert not message.flags & dns.flags.TC
        assert message.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
        result = message.resolve_chaining()
        exists = message.rcode() == dns.rcode.NOERROR
        secure = exists and bool(message.flags & dns.flags.AD)
        return Answer("a.example", type, to_records(result.answer or ()), exists, float(result.minimum_ttl), secure)
    except Exception:  # noqa: BLE001 (hostile bytes let more escape than its own exceptions)
        return None


def by_us(data: bytes, type: str) -> Answer | None:
    """The answer as we read it; None if it is not usable. Raises nothing else."""
    try:
        return read(data, asked(type), "a.example", type)
    except Unusable:
        return None


def asked(type: str) -> bytes:
    return wire.question(to_wire("a.example") or b"", type)


as_today = pytest.mark.skipif(
    not hasattr(dns.message, "NEGATIVE_TTL_WITHOUT_SOA"), reason="this dnspython remembers for ever what has no SOA"
)
SEEDS = st.integers(0, 2**64)
"""A message is made of one number: drawing each of its parts takes hypothesis a hundred times as long as reading it."""


def content(random: Random, type: str) -> bytes:
    """The data of a record, names in full."""
    name, other = (random.choice(NAMES).to_wire() or b"" for _ in range(2))
    match type:
        case "A":
            return random.randbytes(4)
        case "AAAA":
            return b"".join(
                random.choice([b"\0\0"] * 3 + [b"\xff\xff", b"\0\1", random.randbytes(2)]) for _ in range(8)
            )
        case "MX":
            return random.randbytes(2) + name
        case "TXT":
            texts = [random.randbytes(random.choice([0, 1, 20, 255])) for _ in range(random.randint(1, 3))]
            return b"".join(bytes((len(text),)) + text for text in texts)
        case "SOA":
            return (
                name + other + random.randbytes(16) + struct.pack("!I", random.choice([0, 300, 2**31 - 1, 2**32 - 1]))
            )
        case "SRV":
            return random.randbytes(6) + name
    return name


def one_record(random: Random, *types: str) -> dns.rrset.RRset:
    type = random.choice(types)
    class_ = dns.rdataclass.CH if random.random() < 0.1 and type not in ("A", "AAAA", "SRV") else dns.rdataclass.IN
    data = content(random, type)
    ttl = random.choice([0, 60, 300, 2**31 - 1])
    rdata = dns.rdata.from_wire(class_, dns.rdatatype.from_text(type), data, 0, len(data))
    return dns.rrset.from_rdata(random.choice(NAMES[:4] + NAMES), ttl, rdata)


def message(seed: int) -> tuple[str, bytes]:
    """The type in question, and a well-formed response about a.example."""
    random = Random(seed)
    type = random.choice(TYPES)
    response = dns.message.Message(7)
    response.flags = dns.flags.QR | random.choice([0, dns.flags.AD, dns.flags.AA, dns.flags.RA | dns.flags.RD])
    response.question = [dns.rrset.RRset(QNAME, dns.rdataclass.IN, dns.rdatatype.from_text(type))]
    if random.random() < 0.5:
        response.use_edns(0, random.choice([0, dns.flags.DO]), 1232)
    codes = [0] * 6 + [3, 3, 2, 5] + [16] * (response.opt is not None)
    response.set_rcode(dns.rcode.Rcode(random.choice(codes)))
    response.answer = [one_record(random, type, type, "CNAME", "TXT", "SRV") for _ in range(random.randint(0, 8))]
    response.authority = [one_record(random, "SOA", "SOA", "NS") for _ in range(random.randint(0, 3))]
    response.additional = [one_record(random, "A", "AAAA") for _ in range(random.randint(0, 2))]
    return type, response.to_wire(max_size=65535)


START = 12 + len(asked("A"))
"""Where the answer begins."""


@as_today
@settings(max_examples=300)
@given(SEEDS)
def test_a_message_is_read_as_dnspython_reads_it(seed: int) -> None:
    type, data = message(seed)
    assert by_dnspython(data, type) == by_us(data, type)


@settings(max_examples=50)
@given(SEEDS)
def test_no_beginning_of_a_message_is_read(seed: int) -> None:
    type, data = message(seed)
    assert {None} == {by_us(data[:end], type) for end in range(len(data))}
    assert by_us(data + b"\0", type) is None


EDITS = st.lists(st.tuples(st.integers(2, 300), st.integers(0, 3), st.integers(0, 255)), min_size=1, max_size=4)


@as_today
@settings(max_examples=300)
@given(SEEDS, EDITS)
def test_a_message_that_was_changed_is_read_as_dnspython_reads_it_or_not_at_all(
    seed: int, edits: list[tuple[int, int, int]]
) -> None:
    type, whole = message(seed)
    changed = bytearray(whole)
    for at, cut, byte in edits:
        if at < 12:
            changed[at] = byte
        else:
            at = START + (at - 12) % max(len(changed) - START, 1)
            changed[at : at + cut] = bytes((byte,))
    data = bytes(changed)
    ours, theirs = by_us(data, type), by_dnspython(data, type)
    if ours != theirs:
        # Records that do not count may be malformed.
        assert ours is not None
        assert ours == by_dnspython(data, type, continue_on_error=True)


@given(junk=st.binary(max_size=80), flags=st.integers(0, 65535), counts=st.tuples(*[st.integers(0, 2)] * 3))
def test_whatever_follows_the_question_is_read_as_dnspython_reads_it(
    junk: bytes, flags: int, counts: tuple[int, int, int]
) -> None:
    data = struct.pack("!6H", 7, flags, 1, *counts) + asked("A") + junk
    ours = by_us(data, "A")
    assert ours is None or ours in (by_dnspython(data, "A"), by_dnspython(data, "A", continue_on_error=True))


def response(*answers: bytes, type: str = "A", flags: int = 0x8000, counts: tuple[int, int] = (0, 0)) -> bytes:
    return struct.pack("!6H", 7, flags, 1, len(answers), *counts) + asked(type) + b"".join(answers)


def record(name: bytes, type: int, data: bytes, ttl: int = 60, length: int | None = None) -> bytes:
    return name + struct.pack("!HHIH", type, 1, ttl, len(data) if length is None else length) + data


IT = b"\xc0\x0c"
ADDRESS = record(IT, 1, b"\xc0\0\2\1")


def pointer(at: int) -> bytes:
    return struct.pack("!H", 0xC000 | at)


LONG = b"\x3f" + b"x" * 63
BEHIND = START + len(IT) + 10
"""Where the data of the first record begins."""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "malformed answer"),
        (response(ADDRESS)[:11], "malformed answer"),
        (response(ADDRESS, flags=0), "malformed answer"),
        (response(ADDRESS, flags=0xA800), "malformed answer"),
        (response(ADDRESS, flags=0x8200), "truncated answer"),
        (response(ADDRESS, flags=0x8003), "contradictory answer"),
        (response(flags=0x8002), "SERVFAIL"),
        (response(flags=0x8005), "REFUSED"),
        (response(flags=0x8009), "NOTAUTH"),
        (response(flags=0x800F), "15"),
        (response(record(b"\0", 41, b"", 1 << 24), counts=(0, 0)), "malformed answer"),
        (response(counts=(0, 1)) + record(b"\0", 41, b"", 1 << 24), "BADVERS"),
        (response(counts=(0, 1)) + record(b"\0", 41, b"", 0xFF << 24), "4080"),
        (response(counts=(0, 2)) + record(b"\0", 41, b"") * 2, "malformed answer"),
        (response(counts=(0, 1)) + record(IT, 41, b""), "malformed answer"),
        (response(counts=(0, 1)) + record(b"\0", 250, b""), "malformed answer"),
        (response(record(IT, 1, b"\1\2\3")), "malformed answer"),
        (response(record(IT, 1, b"\1\2\3\4\5")), "malformed answer"),
        (response(record(IT, 1, b"\1\2\3\4", length=5)), "malformed answer"),
        (response(record(IT, 1, b"\1\2\3\4", length=65535)), "malformed answer"),
        (response(record(IT, 28, b"\1\2\3\4"), type="AAAA"), "malformed answer"),
        (response(record(IT, 16, b""), type="TXT"), "malformed answer"),
        (response(record(IT, 16, b"\5abcd"), type="TXT"), "malformed answer"),
        (response(record(IT, 16, b"\5abcd"), ADDRESS, type="TXT"), "malformed answer"),
        (response(record(IT, 15, b"\0"), type="MX"), "malformed answer"),
        (response(record(IT, 15, b"\0\1"), type="MX"), "malformed answer"),
        (response(record(IT, 15, b"\0\1" + IT + b"\0"), type="MX"), "malformed answer"),
        (response(record(IT, 6, IT + IT + bytes(19)), type="SOA"), "malformed answer"),
        (response(record(IT, 12, pointer(BEHIND)), type="PTR"), "malformed answer"),  # to itself
        (response(record(IT, 12, pointer(BEHIND + 1)), type="PTR"), "malformed answer"),  # to its own second byte
        (response(record(IT, 12, pointer(0x3FFF)), type="PTR"), "malformed answer"),  # behind the end
        (response(record(IT, 12, b"\1a" + pointer(BEHIND)), type="PTR"), "malformed answer"),  # a name that has no end
        (response(record(IT, 12, b"\x40a"), type="PTR"), "malformed answer"),
        (response(record(IT, 12, b"\x80a"), type="PTR"), "malformed answer"),
        (response(record(IT, 12, b"\x3fa\0"), type="PTR"), "malformed answer"),
        (response(record(IT, 12, LONG * 4 + b"\0"), type="PTR"), "malformed answer"),  # 257 bytes
        (response(record(IT, 12, LONG * 3 + b"\x34" + b"x" * 52 + IT), type="PTR"), "malformed answer"),  # 256
        (response(record(IT, 5, IT)), "CNAMEs form a loop"),
        (response(record(IT, 5, b"\1b\0"), record(b"\1b\0", 5, IT)), "CNAMEs form a loop"),
    ],
)
def test_what_is_no_answer_is_said_in_words_of_ours(data: bytes, why: str) -> None:
    type = {28: "AAAA", 16: "TXT", 15: "MX", 6: "SOA", 12: "PTR"}.get(data[START - 3] if data[START:] else 1, "A")
    with pytest.raises(Unusable) as refused:
        read(data, asked(type), "a.example", type)
    assert why == str(refused.value)
    assert (why == "truncated answer") is isinstance(refused.value, Truncated)
    assert by_dnspython(data, type) is None


@pytest.mark.parametrize("hops", [1, 16, 17, 4000])
def test_a_name_is_followed_backwards_a_few_times(hops: int) -> None:
    first = record(IT, 10, IT + b"".join(pointer(BEHIND + 2 * number) for number in range(hops - 1)))
    answer = by_us(response(first, record(IT, 12, pointer(BEHIND + 2 * hops - 2)), type="PTR"), "PTR")
    assert (("a.example",) if hops < 16 else None) == (answer and answer.records)


@pytest.mark.parametrize("length", [14, 15, 16, 17])
def test_a_chain_of_cnames_is_followed_as_far_as_dnspython_follows_it(length: int) -> None:
    names = [IT, *(b"\1%c\0" % (ord("b") + number) for number in range(length))]
    chain = [record(one, 5, other, ttl=900 - number) for number, (one, other) in enumerate(pairwise(names))]
    data = response(*reversed(chain), record(names[-1], 1, b"\xc0\0\2\1", ttl=1000))
    assert by_dnspython(data, "A") == by_us(data, "A")
    assert (length < 16) is (by_us(data, "A") is not None)


@pytest.mark.parametrize(("ttl", "expected"), [(0, 0), (2**31 - 1, 2**31 - 1), (2**31, 0), (2**32 - 1, 0)])
def test_a_time_to_live_that_is_too_long_is_none(ttl: int, expected: int) -> None:
    data = response(record(IT, 1, b"\xc0\0\2\1", ttl))
    assert float(expected) == read(data, asked("A"), "a.example", "A").ttl
    assert by_dnspython(data, "A") == by_us(data, "A")


def test_records_are_the_same_by_their_bytes_and_names_whatever_their_case() -> None:
    texts = [record(IT, 16, data) for data in (b"\2ab\1c", b"\1a\2bc", b"\2ab\1c")]
    hosts = [record(IT, 15, b"\0\1" + name) for name in (b"\1X\0", b"\1x\0", b"\1y\0")]
    assert (b"abc", b"abc") == read(response(*texts, type="TXT"), asked("TXT"), "a.example", "TXT").records
    assert (MX(1, "x"), MX(1, "y")) == read(response(*hosts, type="MX"), asked("MX"), "a.example", "MX").records


@pytest.mark.parametrize("order", ["xy", "xyx", "xxy", "yxyx", "yXx"])
@pytest.mark.parametrize("type", ["CNAME", "SOA"])
def test_of_several_records_where_one_may_be_the_last_counts_even_if_it_came_before(type: str, order: str) -> None:
    number, rest = (5, b"") if type == "CNAME" else (6, bytes(21))
    data = response(*[record(IT, number, b"\1" + one.encode() + b"\0" + rest) for one in order], type=type)
    assert (order[-1],) == read(data, asked(type), "a.example", type).records
    assert by_dnspython(data, type) == by_us(data, type)


def test_a_question_in_mixed_case_is_answered_in_lower_case() -> None:
    question = wire.question(b"\1A\7eXample\0", "MX")
    data = struct.pack("!6H", 7, 0x8000, 1, 1, 0, 0) + question + record(b"\1a\7EXAMPLE\0", 15, b"\0\1\2MX" + IT)
    assert (MX(1, "mx.a.example"),) == read(data, question, "a.example", "MX").records


BIG = 65535
"""Bytes of the largest message."""
FILL = BIG - START


def many(one: bytes) -> bytes:
    return response(*[one] * (FILL // len(one)))


def pointers_to_pointers() -> bytes:
    first = record(IT, 10, IT + b"".join(pointer(BEHIND + 2 * number) for number in range(14)))
    one = record(pointer(BEHIND + 28), 5, pointer(BEHIND + 28))
    return response(first, *[one] * ((FILL - len(first)) // len(one)))


LABELS = b"\1a" * 126
HOSTILE = {
    "many addresses": many(ADDRESS),
    "many aliases": many(record(IT, 5, IT)),
    "aliases that lead on": response(
        *[record(b"\1%c\0" % letter, 5, b"\1%c\0" % (letter + 1)) for letter in range(97, 112)] * 250,
        record(IT, 5, b"\1a\0"),
    ),
    "long names": many(record(LABELS + b"\0", 1, b"")),
    "names without an end": response(b"\1a" * (FILL // 2)),
    "pointers to pointers": pointers_to_pointers(),
    "pointers to long names": response(record(IT, 10, LABELS + b"\0"), *[record(pointer(BEHIND), 1, b"")] * 5000),
    "many strings": response(record(IT, 16, b"\0" * (FILL - 12)), type="TXT"),
    "counts without records": struct.pack("!6H", 7, 0x8000, 1, 65535, 65535, 65535) + asked("A"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_the_worst_message_takes_steps_and_memory_in_proportion_to_its_length(case: str) -> None:
    data = HOSTILE[case]
    type = "TXT" if case == "many strings" else "A"
    assert len(data) <= BIG
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        steps += event == "line"
        return count

    sys.settrace(count)
    try:
        by_us(data, type)
    finally:
        sys.settrace(None)
    assert steps < 40 * BIG
    tracemalloc.start()
    try:
        by_us(data, type)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * BIG


LABEL = st.binary(min_size=1, max_size=63)


@given(st.lists(LABEL, max_size=3))
@example([b"plain", b"host-1", b"_x"])
@example([b"dot.ted"])
@example([b"UPPER"])
def test_a_name_has_the_same_text_from_its_bytes(labels: list[bytes]) -> None:
    name = dns.name.Name([*labels, b""]).canonicalize()
    assert to_text(name) == wire_to_text((name.to_wire() or b"")[:-1])


@given(st.text(max_size=300) | st.text(alphabet=st.sampled_from("a.-_\\ \x00é。ß\udc80\ud800\U0001f600")))
@example("a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 61)
@example("a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 62)
def test_a_text_becomes_the_same_name_in_bytes(text: str) -> None:
    name = to_name(text)
    assert (None if name is None else name.canonicalize().to_wire()) == to_wire(text)
