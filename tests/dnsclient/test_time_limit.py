# SPDX-License-Identifier: GPL-3.0-or-later
"""One request waits for the DNS for a bounded time, and knows at once what need not be waited for."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.live import LiveResolver
from gatekeeper.dnsclient.resolver import Answer, DNSError, DNSFailure, DNSTimeout, TableResolver, query_or_error
from gatekeeper.dnsclient.time_limit import SECONDS, SECONDS_WITH_LISTS, RequestResolver
from gatekeeper.dnsclient.zone import Zone
from tests.lab.dns import DnsServer
from tests.support.raised_errors import left_behind

ZONE = Zone.parse("example.com A 192.0.2.1\nslow.example A 192.0.2.2\nslow.example MX 10 mx.example.com")


class Waiting:
    """Answers once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.asked: list[str] = []

    async def query(self, name: str, type: str) -> Answer:
        self.asked.append(name)
        await self.may.wait()
        return Answer(name, type, ("192.0.2.1",), ttl=60)

    async def close(self) -> None:
        pass


async def test_when_the_time_is_up_a_question_fails_and_those_after_it_are_not_asked() -> None:
    inner = Waiting()
    resolver = RequestResolver(inner, 0.02)
    errors = await asyncio.gather(*(resolver.query(name, "A") for name in "ab"), return_exceptions=True)
    assert [DNSTimeout, DNSTimeout] == [type(error) for error in errors]
    with pytest.raises(DNSTimeout, match="A c: the time of this request is up"):
        await resolver.query("c", "A")
    assert ["a", "b"] == inner.asked


async def test_what_was_cut_off_goes_on_and_is_remembered_and_what_is_remembered_is_never_late() -> None:
    inner = Waiting()
    cache = CachingResolver(inner)
    resolver = RequestResolver(cache, 0.02)
    with pytest.raises(DNSTimeout):
        await resolver.query("a", "A")
    inner.may.set()
    await cache.query("a", "A")
    assert ("192.0.2.1",) == (await resolver.query("a", "A")).records
    assert resolver.known("a", "A") is not None
    assert ["a"] == inner.asked


async def test_a_question_that_fails_at_once_leaves_nothing_behind() -> None:
    resolver = RequestResolver(TableResolver(Zone.parse("a A !SERVFAIL")))
    with left_behind() as left:
        assert isinstance(await query_or_error(resolver, "a", "A"), DNSFailure)
    assert [] == left


async def test_when_an_answer_is_slow_what_will_be_needed_is_begun_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper.dnsclient.time_limit.SLOW", 0.01)
    begun: list[str] = []
    inner = Waiting()
    resolver = RequestResolver(inner, 0.1)
    resolver.when_slow = lambda: begun.append("spf")
    await asyncio.gather(*(resolver.query(name, "A") for name in "ab"), return_exceptions=True)
    assert ["spf"] == begun
    quick = RequestResolver(inner)
    inner.may.set()
    quick.when_slow = lambda: begun.append("never")
    await quick.query("a", "A")
    await asyncio.sleep(0.05)
    assert ["spf"] == begun


async def test_lists_have_time_of_their_own() -> None:
    resolver = RequestResolver(Waiting(), 0.01)
    with pytest.raises(DNSTimeout):
        await resolver.query("a", "A")
    assert SECONDS_WITH_LISTS - SECONDS - 1 < resolver.left_for_lists() < SECONDS_WITH_LISTS - SECONDS
    assert SECONDS_WITH_LISTS < 8


async def test_a_table_is_read_without_a_clock() -> None:
    """Of a replay, which jumps through time, and may be stopped by whoever looks at it."""
    resolver = RequestResolver(TableResolver(ZONE), 0.0)
    for _ in range(2):
        assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
        await asyncio.sleep(0.002)


@contextmanager
def silent() -> Iterator[tuple[str, Callable[[], int]]]:
    """A name server that never answers, and how often it has been asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)

        def asked() -> int:
            count = 0
            while True:
                try:
                    sock.recv(4096)
                except BlockingIOError:
                    return count
                count += 1

        yield "{}:{}".format(*sock.getsockname()), asked


async def becomes(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (the resolver tells nobody)
            await asyncio.sleep(0.02)


def seconds_now() -> float:
    return asyncio.get_running_loop().time()


async def test_an_answer_that_comes_after_the_question_was_repeated_counts() -> None:
    with DnsServer(ZONE, delays={"slow.example": 0.5}) as server:
        answer = await LiveResolver([server.address], timeout=0.9).query("slow.example", "A")
    assert ("192.0.2.2",) == answer.records


async def test_a_closed_port_is_an_answer_at_once() -> None:
    began = seconds_now()
    with pytest.raises(DNSFailure, match="no name server listens"):
        await LiveResolver(["127.0.0.1:1", "127.0.0.1:2"], timeout=60).query("example.com", "A")
    assert seconds_now() < began + 10


async def test_a_server_that_is_dead_delays_some_questions_and_not_each() -> None:
    with silent() as (dead, asked), DnsServer(ZONE) as server:
        resolver = LiveResolver([dead, server.address], timeout=3)
        assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
        await becomes(lambda: bool(resolver._silent))
        asked()
        for _ in range(20):
            assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
        assert 0 == asked()
        await resolver.close()


async def test_a_server_that_is_only_slow_about_one_name_is_not_taken_for_dead() -> None:
    with DnsServer(ZONE, delays={"slow.example": 30}) as first, silent() as (second, asked):
        resolver = LiveResolver([first.address, second], timeout=0.3)
        with pytest.raises(DNSTimeout):
            await resolver.query("slow.example", "A")
        await asyncio.sleep(0.1)  # it has answered about the root
        asked()
        for _ in range(5):
            await resolver.query("example.com", "A")
        assert 0 == asked()
        await resolver.close()


async def test_a_server_that_was_dead_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper.dnsclient.live._PROBE_TIMEOUT", 0.1)
    monkeypatch.setattr("gatekeeper.dnsclient.live._PROBE_INTERVAL", 0.1)
    dead = Zone.parse(". ANY !TIMEOUT\nexample.com ANY !TIMEOUT")
    with DnsServer(dead) as first, DnsServer(Zone.parse("example.com A 192.0.2.9")) as second:
        resolver = LiveResolver([first.address, second.address], timeout=0.6)
        await resolver.query("example.com", "A")
        await becomes(lambda: bool(resolver._silent))
        first.zone = ZONE
        await becomes(lambda: not resolver._silent)
        assert ("192.0.2.1",) == (await resolver.query("example.com", "A")).records
        await resolver.close()


async def test_questions_take_no_more_than_their_share_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper.dnsclient.exchange._most_sockets", lambda: 3)
    with silent() as (address, _):
        resolver = LiveResolver([address], timeout=0.9)
        began = seconds_now()
        waiting = [asyncio.create_task(resolver.query("example.com", type)) for type in ("A", "MX", "TXT")]
        await asyncio.sleep(0)
        with pytest.raises(DNSFailure, match="too many questions at once"):
            await resolver.query("example.com", "AAAA")
        assert seconds_now() < began + 0.9
        await asyncio.gather(*waiting, return_exceptions=True)
    with DnsServer(ZONE) as server:  # they have given back what they had
        await LiveResolver([server.address]).query("example.com", "A")


async def test_without_a_descriptor_left_a_question_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    resolver = LiveResolver(["127.0.0.1:1"], timeout=60)
    monkeypatch.setattr("gatekeeper.dnsclient.exchange.socket.socket", no_more)
    with pytest.raises(DNSError, match="Too many open files"):
        await resolver.query("example.com", "A")
