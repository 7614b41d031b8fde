# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import gc
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.dnsclient.caching import ERROR_TTL, MAX_NEGATIVE_TTL, MAX_TTL, MIN_TTL, CachingResolver
from gatekeeper.dnsclient.datagram import read
from gatekeeper.dnsclient.live import LiveResolver, parse_nameserver
from gatekeeper.dnsclient.resolver import (
    MX,
    Answer,
    DNSError,
    DNSFailure,
    DNSTimeout,
    Record,
    Resolver,
    TableResolver,
    query_or_error,
)
from gatekeeper.dnsclient.zone import Fault, Zone
from tests.support.raised_errors import size_of

BIG = " ".join(f'"{number:0250}"' for number in range(240))
WORLD = Zone.parse(
    rf"""
example.com  600 MX  20 b.example.com
example.com  600 MX  10 A.Example.COM
example.com  600 TXT "v=spf1 " "-all" "\255"
example.com  600 A   192.0.2.1
example.com  600 AAAA 2001:db8::1
example.com  600 NS  ns.example.com
example.com  600 SOA ns.example.com hostmaster.example.com 1 2 3 4 5
null         60  MX  0 .
alias        30  CNAME example.com
dangling     30  CNAME nowhere
loop             CNAME loop
big          60  TXT {BIG}
refused          A   !SERVFAIL
1.2.0.192.in-addr.arpa PTR odd\.host\032name.example
caf\233          A   192.0.2.2
a\032b_c\\d      A   192.0.2.3
xn--bcher-kva    A   192.0.2.4
"""
)

Respond = Callable[[dns.message.Message, bool], bytes | None]


def from_zone(query: dns.message.Message, tcp: bool) -> bytes | None:
    """An honest recursive server; it truncates what the asker did not say it can take."""
    question = query.question[0]
    found = WORLD.lookup(question.name, question.rdtype)
    response = dns.message.make_response(query, recursion_available=True)
    response.answer.extend(found.rrsets)
    if found.fault in (Fault.NXDOMAIN, Fault.SERVFAIL):
        response.set_rcode(dns.rcode.from_text(found.fault))
    if found.fault in (Fault.NXDOMAIN, Fault.NODATA):
        response.authority.append(dns.rrset.from_text(".", 900, "IN", "SOA", "ns. host. 1 2 3 4 77"))
    if not tcp and len(response.to_wire(max_size=65535)) > max(query.payload, 512):
        response.answer.clear()
        response.flags |= dns.flags.TC
    return response.to_wire(max_size=65535)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, respond: Respond) -> None:
        self._respond = respond

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # it is one in spirit, not in class

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = self._respond(dns.message.from_wire(data), False)
        if response is not None:
            self._transport.sendto(response, addr)


@asynccontextmanager
async def dns_server(respond: Respond = from_zone) -> AsyncIterator[str]:
    """A DNS server on loopback, UDP and TCP on one free port; gives `HOST:PORT`."""

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        response = respond(dns.message.from_wire(await reader.readexactly(size)), True)
        if response is not None:
            writer.write(struct.pack("!H", len(response)) + response)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(respond), local_addr=("127.0.0.1", port))
    try:
        yield f"127.0.0.1:{port}"
    finally:
        transport.close()
        server.close()


@asynccontextmanager
async def live() -> AsyncIterator[LiveResolver]:
    async with dns_server() as address:
        yield LiveResolver([address])


@asynccontextmanager
async def table() -> AsyncIterator[TableResolver]:
    yield TableResolver(WORLD)


ResolverOf = Callable[[], AbstractAsyncContextManager[Resolver]]
both = pytest.mark.parametrize("resolver_of", [live, table])


@both
@pytest.mark.parametrize(
    ("name", "type", "expected"),
    [
        ("example.com", "MX", {MX(10, "a.example.com"), MX(20, "b.example.com")}),
        ("null", "MX", {MX(0, "")}),
        ("EXAMPLE.com.", "TXT", {b"v=spf1 -all\xff"}),
        ("alias", "A", {"192.0.2.1"}),
        ("alias", "CNAME", {"example.com"}),
        ("example.com", "AAAA", {"2001:db8::1"}),
        ("example.com", "NS", {"ns.example.com"}),
        ("example.com", "SOA", {"ns.example.com"}),
        ("1.2.0.192.in-addr.arpa", "PTR", {r"odd\.host\032name.example"}),
        ("caf\udce9", "A", {"192.0.2.2"}),
        (r"a b_c\d", "A", {"192.0.2.3"}),
        ("Bücher", "A", {"192.0.2.4"}),
        ("big", "TXT", {b"".join(b"%0250d" % number for number in range(240))}),
        ("example.com", "PTR", set()),
        ("com", "A", set()),
    ],
)
async def test_records_come_typed_and_names_tidy(
    resolver_of: ResolverOf, name: str, type: str, expected: set[Record]
) -> None:
    async with resolver_of() as resolver:
        answer = await resolver.query(name, type)
    assert expected == set(answer.records)
    assert answer.exists


@both
@pytest.mark.parametrize("name", ["nowhere", "dangling", "example.com.example.com", "a..b", "", "x" * 64, "y." * 200])
async def test_a_name_that_does_not_exist_is_an_answer(resolver_of: ResolverOf, name: str) -> None:
    async with resolver_of() as resolver:
        assert not (await resolver.query(name, "A")).exists


@both
@pytest.mark.parametrize("name", ["refused", "loop"])
async def test_a_server_that_cannot_answer_is_a_failure(resolver_of: ResolverOf, name: str) -> None:
    async with resolver_of() as resolver:
        with pytest.raises(DNSFailure):
            await resolver.query(name, "A")


async def test_the_time_to_live_is_the_shortest_of_the_chain_or_what_the_soa_grants() -> None:
    async with live() as resolver:
        answers = [await resolver.query(name, "A") for name in ("example.com", "alias", "nowhere", "com", "dangling")]
    assert [600, 30, 77, 77, 30] == [answer.ttl for answer in answers]


def silent(query: dns.message.Message, tcp: bool) -> bytes | None:
    return None


def loops(query: dns.message.Message, tcp: bool) -> bytes:
    response = dns.message.make_response(query)
    name = str(query.question[0].name)
    response.answer += [
        dns.rrset.from_text(name, 9, "IN", "CNAME", "b."),
        dns.rrset.from_text("b.", 9, "IN", "CNAME", name),
    ]
    return response.to_wire()


def broken(query: dns.message.Message, tcp: bool) -> bytes:
    return dns.message.make_response(query).to_wire() + b"\x00\x01junk"


def always_truncated(query: dns.message.Message, tcp: bool) -> bytes:
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return response.to_wire()


def rcode(word: str) -> Respond:
    def respond(query: dns.message.Message, tcp: bool) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.from_text(word))
        return response.to_wire()

    return respond


def contradictory(query: dns.message.Message, tcp: bool) -> bytes:
    response = dns.message.from_wire(from_zone(query, tcp) or b"")
    response.set_rcode(dns.rcode.NXDOMAIN)
    return response.to_wire()


def update(query: dns.message.Message, tcp: bool) -> bytes:
    return bytes([*(wire := broken(query, tcp))[:2], 0xA8, *wire[3:]])


@pytest.mark.parametrize(
    ("respond", "expected"),
    [
        (silent, DNSTimeout),
        (loops, DNSFailure),
        (broken, DNSError),
        (update, DNSError),
        (always_truncated, DNSFailure),
        (contradictory, DNSFailure),
        (rcode("SERVFAIL"), DNSFailure),
        (rcode("REFUSED"), DNSFailure),
        (rcode("FORMERR"), DNSFailure),
        (rcode("YXDOMAIN"), DNSFailure),
    ],
)
async def test_whatever_a_server_does_wrong_is_a_dns_error(respond: Respond, expected: type[DNSError]) -> None:
    async with dns_server(respond) as address:
        with pytest.raises(expected):
            await LiveResolver([address], timeout=0.4).query("example.com", "A")


async def test_a_server_that_hangs_on_tcp_costs_no_more_than_the_time_limit() -> None:
    def truncated_then_silent(query: dns.message.Message, tcp: bool) -> bytes | None:
        return None if tcp else always_truncated(query, tcp)

    async with dns_server(truncated_then_silent) as address:
        with pytest.raises(DNSError):
            await LiveResolver([address], timeout=0.4).query("example.com", "A")


async def test_the_next_server_is_asked_when_the_first_one_fails() -> None:
    async with dns_server(rcode("REFUSED")) as refusing, dns_server() as answering:
        answer = await LiveResolver([refusing, answering]).query("example.com", "A")
    assert ("192.0.2.1",) == answer.records


async def test_every_beginning_of_an_answer_is_answered_or_a_dns_error() -> None:
    wire = from_zone(dns.message.make_query("example.com", "MX", use_edns=0, payload=1232), True) or b""
    end = 0

    def cut(query: dns.message.Message, tcp: bool) -> bytes:
        return query.id.to_bytes(2, "big") + wire[2:end]

    async with dns_server(cut) as address:
        resolver = LiveResolver([address], timeout=0.005)
        for end in range(len(wire)):  # noqa: B007 (cut() reads it)
            with pytest.raises(DNSError):
                await resolver.query("example.com", "MX")
        end = len(wire)
        assert 2 == len((await LiveResolver([address]).query("example.com", "MX")).records)


NAMES = st.lists(st.sampled_from(["a", "bl", "2", "example", "x" * 63]), min_size=1, max_size=3).map(".".join)
TTLS = st.integers(0, 2**31 - 1)


@given(
    name=NAMES,
    zone=NAMES,
    code=st.sampled_from([dns.rcode.NXDOMAIN, dns.rcode.NOERROR]),
    ttl=TTLS,
    minimum=TTLS,
    edns=st.booleans(),
    secure=st.booleans(),
    soa=st.booleans(),
)
def test_that_there_is_nothing_is_read_as_dnspython_reads_it(
    name: str, zone: str, code: dns.rcode.Rcode, ttl: int, minimum: int, edns: bool, secure: bool, soa: bool
) -> None:
    query = dns.message.make_query(name, "A", use_edns=0 if edns else -1, payload=1232)
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(code)
    if secure:
        response.flags |= dns.flags.AD
    if soa:
        owner = name.partition(".")[2] if zone in name else zone  # above the name, or anywhere
        response.authority.append(
            dns.rrset.from_text(f"{owner}.", ttl, "IN", "SOA", f"ns.{zone}. who.{zone}. 1 2 3 4 {minimum}")
        )
    expected = dns.message.from_wire(wire := response.to_wire())
    assert isinstance(expected, dns.message.QueryMessage)
    exists = code == dns.rcode.NOERROR
    answer = Answer(name, "A", (), exists, float(expected.resolve_chaining().minimum_ttl), secure and exists)
    assert answer == read(wire, len(query.question[0].name.to_wire() or b"") + 4, name, "A")


@given(junk=st.binary(max_size=80), flags=st.integers(0, 65535), counts=st.tuples(*[st.integers(0, 2)] * 3))
def test_any_datagram_that_repeats_the_question_is_read_or_is_not_a_usual_one(
    junk: bytes, flags: int, counts: tuple[int, int, int]
) -> None:
    question = b"\1a\7example\0\0\1\0\1"
    answer = read(struct.pack("!6H", 7, flags, 1, *counts) + question + junk, len(question), "a.example", "A")
    assert answer is None or (flags & dns.flags.QR and not flags & dns.flags.TC)


async def test_a_usual_answer_takes_one_datagram_and_a_name_server_that_is_down_no_time() -> None:
    asked = []

    def counted(query: dns.message.Message, tcp: bool) -> bytes | None:
        asked.append(str(query.question[0]))
        return from_zone(query, tcp)

    async with dns_server(counted) as address:
        for name, type in (("example.com", "A"), ("example.com", "MX"), ("nowhere", "A"), ("com", "A")):
            await LiveResolver([address]).query(name, type)
        assert 4 == len(asked)
        async with asyncio.timeout(5):
            answer = await LiveResolver(["127.0.0.1:1", address], timeout=30).query("example.com", "A")
        assert ("192.0.2.1",) == answer.records


@pytest.mark.parametrize("late", [b"", b"\0"], ids=["another question's", "another number's"])
async def test_an_answer_to_something_else_is_not_taken(late: bytes) -> None:
    def strange(query: dns.message.Message, tcp: bool) -> bytes:
        wire = bytearray(from_zone(query, tcp) or b"")
        if late:
            wire[0] ^= 1
        else:
            wire[13] ^= 1  # a letter of the name
        return bytes(wire)

    async with dns_server(strange) as address:
        with pytest.raises(DNSError):
            await LiveResolver([address], timeout=0.3).query("example.com", "A")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60), st.text(max_size=300))
def test_any_answer_to_any_name_is_an_answer_or_a_dns_error(junk: bytes, name: str) -> None:
    def respond(query: dns.message.Message, tcp: bool) -> bytes:
        return query.id.to_bytes(2, "big") + junk

    async def ask() -> Answer | DNSError:
        async with dns_server(respond) as address:
            try:
                return await LiveResolver([address], timeout=0.02).query(name, "TXT")
            except DNSError as error:
                return error

    assert asyncio.run(ask())


def test_it_works_under_uvloop_and_leaves_no_socket_behind() -> None:
    async def ask() -> list[Answer]:
        async with live() as resolver:
            return await asyncio.gather(*(resolver.query("big", "TXT") for _ in range(10)))

    assert 10 == len(uvloop.run(ask()))
    gc.collect()  # an unclosed transport would warn here, and warnings of this kind are errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[2001:db8::53]", ("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
    ],
)
def test_a_name_server_may_have_a_port(text: str, expected: tuple[str, int]) -> None:
    assert expected == parse_nameserver(text)


@pytest.mark.parametrize(
    "text", ["", "ns.example.com", "127.0.0.1:0", "127.0.0.1:", "127.0.0.1:65536", "[::1", "[::1]5"]
)
def test_a_name_server_that_is_no_address_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="is not a name server: write"):
        LiveResolver([text])


async def test_after_preload_nothing_is_imported_any_more() -> None:
    script = """
import asyncio, sys
from gatekeeper.dnsclient.live import LiveResolver, preload
preload()
class Refuse:
    def find_spec(self, name, path=None, target=None):
        raise AssertionError(f"import of {name}")
async def main():
    resolver = LiveResolver([sys.argv[1]], timeout=5)
    sys.meta_path.insert(0, Refuse())
    for name, type in [("example.com", t) for t in "A AAAA MX NS PTR SOA TXT CNAME".split()] + [("big", "TXT"),
            ("nowhere", "A"), ("b\\u00fccher.\\U0001f600", "A"), ("caf\\udce9", "A")]:
        await resolver.query(name, type)
asyncio.run(main())
"""
    async with dns_server() as address:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, address, stderr=subprocess.PIPE, env=os.environ
        )
        _, errors = await process.communicate()
    assert (0, "") == (process.returncode, errors.decode())


class Counting:
    """A resolver that counts what it is asked, and answers when it may."""

    def __init__(
        self, answer: Callable[[str, str], Answer | DNSError] = lambda name, type: Answer(name, type, ("192.0.2.1",))
    ) -> None:
        self.asked: list[tuple[str, str]] = []
        self.may = asyncio.Event()
        self.may.set()
        self.answer = answer

    async def query(self, name: str, type: str) -> Answer:
        self.asked.append((name, type))
        await self.may.wait()
        answer = self.answer(name, type)
        if isinstance(answer, DNSError):
            raise answer
        return answer

    async def close(self) -> None:
        pass


class Time:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer("a", "A", ("192.0.2.1",), ttl=60), 60),
        (Answer("a", "A", ("192.0.2.1",), ttl=0), MIN_TTL),
        (Answer("a", "A", ("192.0.2.1",), ttl=2**31), MAX_TTL),
        (Answer("a", "A", ttl=60), 60),
        (Answer("a", "A", ttl=86400), MAX_NEGATIVE_TTL),
        (Answer("a", "A", exists=False, ttl=86400), MAX_NEGATIVE_TTL),
        (DNSTimeout("a"), ERROR_TTL),
    ],
)
async def test_an_answer_is_remembered_as_long_as_it_may_be(answer: Answer | DNSError, expected: float) -> None:
    inner, time = Counting(lambda *_: answer), Time()
    resolver = CachingResolver(inner, time)
    for _ in range(2):
        await asyncio.gather(resolver.query("a", "A"), return_exceptions=True)
        time.now += expected - 0.001
        await asyncio.gather(resolver.query("A.", "A"), return_exceptions=True)
        time.now += 0.002
    assert [("a", "A"), ("a", "A")] == inner.asked


async def test_a_clock_that_is_set_back_does_not_keep_an_answer() -> None:
    inner, time = Counting(), Time()
    resolver = CachingResolver(inner, time)
    await resolver.query("a", "A")
    time.now -= 1000
    await resolver.query("a", "A")
    assert 2 == len(inner.asked)


async def test_what_many_want_to_know_is_asked_once() -> None:
    inner = Counting()
    resolver = CachingResolver(inner)
    answers = await asyncio.gather(*(resolver.query("a", type) for type in ("A", "MX") for _ in range(50)))
    assert [("a", "A"), ("a", "MX")] == inner.asked
    assert 100 == len(answers)


async def test_trouble_reaches_all_who_asked_each_with_an_exception_of_its_own() -> None:
    inner = Counting(lambda *_: DNSFailure("SERVFAIL"))
    resolver = CachingResolver(inner)
    errors = await asyncio.gather(*(resolver.query("a", "A") for _ in range(3)), return_exceptions=True)
    assert ["SERVFAIL"] * 3 == [str(error) for error in errors if isinstance(error, DNSFailure)]
    assert 3 == len({id(error) for error in errors})


@pytest.mark.parametrize("type", ["A", "TXT", "MX"])
async def test_a_failure_is_remembered_by_its_class_and_words_alone(type: str) -> None:
    async with dns_server(silent) as mute, dns_server(rcode("SERVFAIL")) as failing, dns_server(broken) as mad:
        for server in (mute, failing, mad, "127.0.0.1:1"):
            resolver = CachingResolver(LiveResolver([server], timeout=0.1))
            found = await query_or_error(resolver, "example.com", type)
            kept = resolver.known("example.com", type)
            assert isinstance(kept, DNSError)
            assert (found.__class__, str(found)) == (kept.__class__, str(kept))
            assert 1024 > size_of(kept)
            assert 1024 > size_of(found)  # an evaluation may keep it, too


async def test_thousands_of_names_that_fail_take_no_more_room_than_the_table_of_bounds_says() -> None:
    resolver = CachingResolver(LiveResolver(["127.0.0.1:1"]), size=2000)
    await query_or_error(resolver, "warm.example.com", "TXT")
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(2000):
            await query_or_error(resolver, f"{number}.example.com", "TXT")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2000 * 1024 > kept


@pytest.mark.parametrize("others", [0, 1])
async def test_an_asker_who_is_cancelled_takes_nobody_along(others: int) -> None:
    inner = Counting()
    inner.may.clear()
    resolver = CachingResolver(inner)
    asking = [asyncio.create_task(resolver.query("a", "A")) for _ in range(1 + others)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.wait(asking[:1])
    inner.may.set()
    await asyncio.gather(*asking[1:])
    assert ("192.0.2.1",) == (await resolver.query("a", "A")).records
    assert 1 == len(inner.asked)


async def test_a_bug_below_reaches_the_asker_and_is_not_remembered() -> None:
    resolver = CachingResolver(Counting(lambda *_: 1 // 0))  # type: ignore[arg-type]  # never an answer
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await resolver.query("a", "A")


@pytest.mark.parametrize("begun", [True, False])
async def test_closing_answers_all_who_still_wait(begun: bool) -> None:
    inner = Counting()
    inner.may.clear()
    resolver = CachingResolver(inner)
    asking = asyncio.create_task(resolver.query("a", "A"))
    await asyncio.sleep(0)
    if begun:
        await asyncio.sleep(0)
    await resolver.close()
    with pytest.raises(DNSFailure, match="closed"):
        await asking


async def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    inner = Counting()
    resolver = CachingResolver(inner, size=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        await resolver.query(name, "A")
    assert ["a", "b", "c", "b"] == [name for name, _ in inner.asked]


async def test_large_answers_take_the_room_of_many() -> None:
    inner = Counting(lambda name, type: Answer(name, type, (b"x" * (60_000 if name == "big" else 10),), ttl=60))
    resolver = CachingResolver(inner, size=50)
    for name in ("a", "big", "a", "big"):
        await resolver.query(name, "TXT")
    assert ["a", "big", "a", "big"] == [name for name, _ in inner.asked]
