# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits on connections: counted at connect, given back at the end however it comes, shared by all relays."""

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.checks.limits.connections import LEASE, Connections
from gatekeeper.checks.limits.ratelimit import Limiter, RateLimit
from gatekeeper.core.request import Client, Request, Stage, parse_address
from gatekeeper.core.verdict import Decision
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import CLIENT, Pipeline
from gatekeeper.replay.smtp import SmtpClient
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.readonly import ReadOnlyStore
from gatekeeper.stores.store import Keys, StoreError
from tests.support.checking import SITE
from tests.support.lab import new_lab
from tests.support.milter_client import MilterClient
from tests.support.redis_server import RedisServer, redis_server
from tests.support.service import Service, need_milter, until

TOO_MANY = "421 4.7.0 Error: too many connections from 192.0.2.1: the limit is 2 at once; try again later"
NONE: dict[str, object] = dict.fromkeys(
    ("client_messages", "client_recipients", "user_messages", "user_recipients"), ()
)


class Down(MemoryStore):
    async def lease(self, leases: object, ttl: object) -> list[int]:
        raise StoreError("gone")


class Relay:
    """One process's connections, on a clock that is set by hand; several may share a store."""

    def __init__(self, store: MemoryStore | None = None, **options: object) -> None:
        self.now = 1_000_000.0
        self.store = store or MemoryStore(lambda: self.now)
        self.alone = MemoryStore(lambda: self.now)
        limiter, _ = Limiter.read(RateLimit.model_validate(NONE | options), Path("/nonexistent"))
        self.connections = Connections(limiter, self.store, self.alone)

    async def decide(self, address: str, name: str, store: MemoryStore | ReadOnlyStore | None = None) -> Decision:
        request = Request(stage=Stage.CONNECT, client=Client(address=parse_address(address)), instance=name)
        resolver = TableResolver(Zone.parse(""))
        context = Context.of(
            site=SITE,
            resolver=resolver,
            store=store or self.store,
            clock=lambda: self.now,
            keys=Keys(b"secret"),
            facts=Facts(resolver, client=request.client, helo=None, sender=None, receiver=""),
            alone=self.alone,
        )
        return await Pipeline({CLIENT: (self.connections,)}).decide(request, context)

    async def opened(self, address: str = "192.0.2.1") -> str:
        """The name of a connection that may stay, or the reason why it may not."""
        name = self.connections.new()
        return (await self.decide(address, name)).verdict.reason or name


async def test_connections_at_once_are_limited() -> None:
    relay = Relay(client_simultaneous=1)
    first = await relay.opened()
    assert ["ratelimit.simultaneous"] == [await relay.opened()]
    relay.connections.closed(first)
    await relay.connections.close()
    assert "ratelimit" not in await relay.opened() + await relay.opened("192.0.2.2") + await relay.opened("10.0.0.1")
    await relay.connections.close()


async def test_new_connections_are_limited_and_refused_ones_do_not_count() -> None:
    relay = Relay(client_connections=["3/1m"], client_simultaneous=1)
    relay.connections.closed(await relay.opened())
    await relay.connections.close()
    await relay.opened()
    assert ["ratelimit.simultaneous"] * 3 == [await relay.opened() for _ in range(3)]
    assert "421 4.7.0" == (await relay.decide("192.0.2.1", "x")).verdict.reply[:9]
    await relay.connections.close()
    assert "ratelimit" not in await relay.opened()
    assert ["ratelimit.connections"] == [await relay.opened()]
    await relay.connections.close()
    assert "try again in 61s" in (await relay.decide("192.0.2.1", "x")).verdict.text


async def test_a_rule_may_limit_a_network_as_well() -> None:
    wide = {"by": "client", "ipv4_prefix": 24, "for": ["192.0.2.0/24", "client:.example.net"], "simultaneous": 2}
    relay = Relay(rules={"wide": wide}, client_simultaneous=1)
    addresses = ("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1")
    stays = [not (await relay.opened(address)).startswith("ratelimit") for address in addresses]
    assert [True, False, True, False, True] == stays
    await relay.connections.close()


async def test_a_lease_is_renewed_while_the_connection_lives() -> None:
    relay = Relay(client_simultaneous=1)
    await relay.opened()
    for _ in range(4):
        relay.now += LEASE * 0.9
        await relay.connections.renew()
    assert ["ratelimit.simultaneous"] == [await relay.opened()]
    relay.now += LEASE + 1  # this process is dead
    assert "ratelimit" not in await relay.opened()
    await relay.connections.close()


async def test_without_a_store_a_process_knows_its_own_connections() -> None:
    relay = Relay(client_simultaneous=2)
    await relay.opened()
    relay.store.__class__ = Down
    assert "ratelimit" not in await relay.opened()
    assert ["ratelimit.simultaneous"] == [await relay.opened()]
    relay.store.__class__ = MemoryStore
    await relay.connections.renew()
    other = Relay(relay.store, client_simultaneous=2)
    assert ["ratelimit.simultaneous"] == [await other.opened()]
    await relay.connections.close()


async def test_explaining_counts_nothing() -> None:
    relay = Relay(client_simultaneous=1, client_connections=["1/1m"])
    decision = await relay.decide("192.0.2.1", "x", ReadOnlyStore(relay.store, lambda: relay.now))
    notes = [(note.what, note.found) for step in decision.steps for note in step.notes]
    assert [
        ("new connections from 192.0.2.1", "1 of 1 in 1m"),
        ("simultaneous connections from 192.0.2.1", "1 of 1 at once"),
    ] == notes
    await relay.connections.close()
    assert "ratelimit" not in await relay.opened()
    await relay.connections.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@contextmanager
def relay(store: str, *, lease: float = LEASE, workers: int = 2, **limits: object) -> Iterator[tuple[Service, str]]:
    """A milter; its socket."""
    need_milter()
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        ratelimit = "".join(f"{option} = {value}\n" for option, value in limits.items())
        config = (
            f'hostname = "mx.example.org"\nmynetworks = []\n[store]\nurl = "{store or f"sqlite:{folder}/state/s.db"}"\n'
            f'timeout = "30s"\n[milter]\nlisten = "unix:{folder}/milter.sock"\nworkers = {workers}\n'
            f"[checks.ratelimit]\n{ratelimit}"
        )
        (folder / "gatekeeper.toml").write_text(config, "utf-8")
        (folder / "state").mkdir()
        (folder / "state").chmod(0o777)
        prelude = f"import gatekeeper.checks.limits.connections as c; c.LEASE = {lease}"
        service = Service(folder / "gatekeeper.toml", "milter", prelude=prelude)
        service.wait_for("^listening milter")
        yield service, f"{folder}/milter.sock"
        service.end()
        assert [] == [line for line in service.lines if "Traceback" in line or "is gone" in line]


def connect(address: str, client: str = "192.0.2.1") -> tuple[MilterClient, str]:
    milter = MilterClient(address)
    return milter, milter.connect(client)


def opens(address: str, within: ExitStack) -> bool:
    """True if a connection may stay; then it stays."""
    milter, refusal = connect(address)
    if refusal:
        milter.close()
        return False
    within.callback(milter.close)
    return True


def vanish(milter: MilterClient) -> None:
    """End the connection as a dead peer does, without a word."""
    milter.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    milter._stream.close()
    milter.sock.close()


@pytest.mark.parametrize("end", ["quit", "vanish"])
@pytest.mark.integration("gatekeeper")
def test_a_place_is_given_back_however_the_connection_ends(end: str) -> None:
    with relay("", client_simultaneous=2) as (_, address), ExitStack() as others:
        first, _ = connect(address)
        assert opens(address, others)
        assert TOO_MANY == connect(address)[1]
        assert "" == connect(address, "192.0.2.9")[1]
        first.close() if end == "quit" else vanish(first)
        until(lambda: opens(address, others), "the place is free again")
        assert TOO_MANY == connect(address)[1]


@pytest.mark.integration("gatekeeper", "redis-server")
def test_what_a_killed_worker_held_ends_with_its_lease(redis: RedisServer) -> None:
    redis.admin.flushall()
    with relay(redis.tcp_url, lease=3.0, workers=1, client_simultaneous=2) as (service, address), ExitStack() as others:
        assert [True, True, False] == [opens(address, others) for _ in range(3)]
        [worker] = service.children()
        os.kill(worker, signal.SIGKILL)
        service.wait_for("ended with status -9")
        until(lambda: accepts(address, others), "the leases of the dead end")


def accepts(address: str, within: ExitStack) -> bool:
    try:
        return opens(address, within)
    except (ConnectionError, OSError):
        return False


@pytest.mark.integration("gatekeeper", "redis-server")
def test_a_lease_outlives_its_term_while_the_connection_lives(redis: RedisServer) -> None:
    redis.admin.flushall()
    with relay(redis.tcp_url, lease=3.0, client_simultaneous=1) as (_, address), ExitStack() as others:
        assert opens(address, others)
        [key] = redis.admin.keys("gatekeeper:ratelimit:*")
        begun = {score for _, score in redis.admin.zrange(key, 0, -1, withscores=True)}
        later = max(begun) + 0.5
        until(lambda: time.time() > later, "the first term has ended")
        assert not opens(address, others)


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
@pytest.mark.integration("gatekeeper", "redis-server")
def test_all_workers_and_relays_share_one_limit_exactly(kind: str, redis: RedisServer) -> None:
    redis.admin.flushall()
    with TemporaryDirectory(prefix="gatekeeper-test-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o777)  # for workers that are nobody
        store = redis.tcp_url if kind == "redis" else f"sqlite:{folder}/s.db"
        addresses = [stack.enter_context(relay(store, client_simultaneous=10))[1] for _ in range(2)]
        with ThreadPoolExecutor(16) as pool:
            stays = list(pool.map(lambda number: opens(addresses[number % 2], stack), range(40)))
        assert 10 == sum(stays)


@pytest.mark.integration("gatekeeper", "postfix")
def test_postfix_turns_the_connection_away() -> None:
    with new_lab() as lab:
        config = lab.root / "gatekeeper.toml"
        config.write_text('hostname = "mx.example.org"\nmynetworks = []\nrelay_domains = ["example.org"]\n', "utf-8")
        lab.run(config, {"checks": {"ratelimit": {"client_simultaneous": 1}}})

        def greeting() -> tuple[SmtpClient, str]:
            client = SmtpClient("127.0.0.1", lab.postfix.ports.smtp)
            return client, client.greeting

        first, welcome = greeting()
        assert "220 mx.example.org ESMTP Postfix" == welcome
        # Postfix keeps the code, and has words of its own for it; ours are in its log.
        assert "421 mx.example.org Service unavailable - try again later" == greeting()[1]
        said = "CONNECT from unknown[127.0.0.1]: 421 4.7.0 Error: too many connections from"
        until(lambda: said in lab.postfix.why_it_failed(), said)  # Postfix answers first, and then writes it down
        first._socket.close()
        first._lines.close()
        until(lambda: greeting()[1].startswith("220"), "the place of the connection that broke is free")
