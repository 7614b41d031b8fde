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
from pathlib import Path
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
from tests.lab.dns import DnsServer
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
    """A DNS server on loopback, UDP and TCP on one free port; gives `HOST:PORT`. Over TCP, too, None is silence."""
    over = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        response = respond(dns.message.from_wire(await reader.readexactly(size)), True)
        if response is not None:
            writer.write(struct.pack("!H", len(response)) + response)
            await writer.drain()
        else:
            await over.wait()
        writer.close()

    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(respond), local_addr=("127.0.0.1", port))
    try:
        yield f"127.0.0.1:{port}"
    finally:
        over.set()
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


def with_another_letter(wire: bytearray) -> None:
    wire[13] ^= 1


def with_another_id(wire: bytearray) -> None:
    wire[0] ^= 1


def with_two_questions(wire: bytearray) -> None:
    wire[5] = 2


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("change", [with_another_letter, with_another_id, with_two_questions])
async def test_an_answer_to_something_else_is_not_taken(change: Callable[[bytearray], None], tcp: bool) -> None:
    def strange(query: dns.message.Message, by_tcp: bool) -> bytes:
        if tcp and not by_tcp:
            return always_truncated(query, by_tcp)
        wire = bytearray(from_zone(query, by_tcp) or b"")
        change(wire)
        return bytes(wire)

    async with dns_server(strange) as address:
        with pytest.raises(DNSError):
            await LiveResolver([address], timeout=0.3).query("example.com", "A")


def changed_case(wire: bytes | None) -> bytes:
    """The answer with the letters of its question in lower case, as of a server that does not keep them."""
    assert wire is not None
    return wire[:12] + wire[12:29].lower() + wire[29:]


async def test_each_question_has_a_port_an_id_and_letters_of_its_own() -> None:
    asked = []

    def counted(query: dns.message.Message, tcp: bool) -> bytes | None:
        asked.append((query.id, str(query.question[0].name)))
        return from_zone(query, tcp)

    async with dns_server(counted) as address:
        for _ in range(20):
            await LiveResolver([address]).query("Example.COM", "A")
    assert 15 < len({query_id for query_id, _ in asked})
    assert 15 < len({name for _, name in asked})
    assert {"example.com."} == {name.lower() for _, name in asked}


async def test_a_server_that_does_not_keep_the_letters_is_believed_over_tcp_and_asked_in_lower_case() -> None:
    asked = []

    def careless(query: dns.message.Message, tcp: bool) -> bytes:
        asked.append((tcp, str(query.question[0].name)))
        return changed_case(from_zone(query, tcp))

    async with dns_server(careless) as address:
        resolver = LiveResolver([address])
        for _ in range(3):
            assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
    assert [False, True, False, False] == [tcp for tcp, _ in asked]
    assert ["example.com."] * 2 == [name for _, name in asked[2:]]


async def test_a_server_that_neither_keeps_the_letters_nor_knows_tcp_is_believed() -> None:
    class Careless(_Datagrams):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self._transport.sendto(changed_case(from_zone(dns.message.from_wire(data), False)), addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Careless(silent), local_addr=("127.0.0.1", 0)
    )
    host, port = transport.get_extra_info("sockname")
    try:
        async with asyncio.timeout(15):
            answer = await LiveResolver([f"{host}:{port}"], timeout=90).query("example.com", "A")
        assert ("192.0.2.1",) == answer.records
    finally:
        transport.close()


async def test_a_server_that_neither_keeps_the_letters_nor_answers_over_tcp_is_believed_in_time() -> None:
    def careless(query: dns.message.Message, tcp: bool) -> bytes | None:
        return None if tcp else changed_case(from_zone(query, tcp))

    async with dns_server(careless) as address:
        answer = await LiveResolver([address], timeout=2).query("example.com", "A")
        assert ("192.0.2.1",) == answer.records


def with_forged_datagrams(query: dns.message.Message, tcp: bool) -> bytes:
    """As if somebody had guessed port and ID, but not the letters."""
    if tcp:
        return from_zone(query, tcp) or b""
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text(query.question[0].name, 600, "IN", "A", "192.0.2.66"))
    return changed_case(response.to_wire())


async def test_an_answer_that_was_forged_but_for_the_letters_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    datagrams = iter([with_forged_datagrams, from_zone, with_forged_datagrams])

    def sometimes_forged(query: dns.message.Message, tcp: bool) -> bytes | None:
        return from_zone(query, tcp) if tcp else next(datagrams)(query, tcp)

    async with dns_server(sometimes_forged) as address:
        resolver = LiveResolver([address])
        for _ in range(3):
            assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
    assert ["was forged, and is not believed"] * 2 == [line[-31:] for line in caplog.messages]


async def test_something_on_the_way_that_changes_all_datagrams_is_no_forger() -> None:
    asked = []

    def on_the_way(query: dns.message.Message, tcp: bool) -> bytes:
        asked.append(tcp)
        answer = from_zone(query, tcp) or b""
        return answer if tcp else changed_case(answer)

    async with dns_server(on_the_way) as address:
        resolver = LiveResolver([address])
        for _ in range(4):
            assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
    assert [False, True, False, True, False, False] == asked


async def test_a_server_that_hangs_on_tcp_leaves_time_for_the_next_one() -> None:
    def truncated_then_silent(query: dns.message.Message, tcp: bool) -> bytes | None:
        return None if tcp else always_truncated(query, tcp)

    async with dns_server(truncated_then_silent) as hanging, dns_server() as answering:
        resolver = LiveResolver([hanging, answering], timeout=1.5)
        assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records


@pytest.mark.parametrize("word", ["SERVFAIL", "REFUSED", "NOTIMP"])
async def test_a_server_that_refuses_is_asked_once_and_the_next_one_at_once(word: str) -> None:
    asked = 0

    def refuses(query: dns.message.Message, tcp: bool) -> bytes:
        nonlocal asked
        asked += 1
        return rcode(word)(query, tcp) or b""

    async with dns_server(refuses) as refusing, dns_server() as answering:
        resolver = LiveResolver([refusing, answering], timeout=60)
        async with asyncio.timeout(15):
            assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
            with pytest.raises(DNSFailure, match=f"A example.com: {word}$"):
                await LiveResolver([refusing], timeout=60).query("example.com", "A")
    assert 2 == asked


async def test_while_one_server_takes_its_time_the_refusal_of_another_is_not_the_end() -> None:
    refuses = DnsServer(Zone.parse("example.com A !SERVFAIL"), delays={"example.com": 1.3})
    with refuses, DnsServer(WORLD, delays={"example.com": 0.8}) as answers:
        answer = await LiveResolver([refuses.address, answers.address], timeout=3).query("example.com", "A")
    assert ("192.0.2.1",) == answer.records


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 192.0.2.53\nnameserver 2001:db8::53\n", [("192.0.2.53", 53), ("2001:db8::53", 53)]),
        (
            "# nameserver 192.0.2.1\n;x\nsearch example\nnameserver\nnameserver\t192.0.2.53  # ours\n",
            [("192.0.2.53", 53)],
        ),
        ("nameserver ns.example.com\nnameserver fe80::1%eth0\noptions edns0", [("fe80::1%eth0", 53)]),
        ("", [("127.0.0.1", 53)]),
        ("nameserver 300.0.0.1\n\xff\0", [("127.0.0.1", 53)]),
        (None, [("127.0.0.1", 53)]),
    ],
)
def test_without_name_servers_those_of_the_system_are_asked(
    text: str | None, expected: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatekeeper.dnsclient.live._RESOLV_CONF", tmp_path / "resolv.conf")
    if text is not None:
        (tmp_path / "resolv.conf").write_text(text, "latin-1")
    assert expected == LiveResolver()._servers


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
