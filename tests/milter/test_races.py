# SPDX-License-Identifier: GPL-3.0-or-later
"""What libmilter's threads share with the event loop bears that they get in each other's way.

A milter worker runs an event loop in its main thread; libmilter runs a thread for each connection, and ends most
messages in it, without the loop. What both touch, and how:

- The DNS cache (CachingResolver): threads read it by `known`, which moves what is read to its end; the loop reads it
  likewise, puts in and forgets.
- What SPF came to (auth/spf.py): both read it, put in, and empty it when it is full.
- lru_caches, by both: records, results and keys as they were parsed (auth/), patterns (signing/key_table.py), networks,
  addresses, seconds and trace ids (core/log.py), and those of Site and App.
- Private keys: parsed at first use, by whoever comes first. - SigningPolicy with its tables, host lists and bindings,
and the Plan: both only read them. - The log: both write lines, through the lock of the one handler. - MilterSession,
MilterMessage, Facts, DkimVerifier and ArcVerifier of one connection: libmilter's thread has the callbacks, and the
  loop what they offered to begin (SPF, iprev, keys), while the next callbacks come. `end_without_waiting` tries in the
  thread and leaves the rest to `end_on_event_loop` on the loop; `settle` and `Facts.close` run there behind the
  thread's back.
- The counts of connections (checks/limits/connections.py): the threads have all of it done on the loop.
- The store, and a decision's ReadAheadStore of it: never touched by threads.
"""

import asyncio
import functools
import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gatekeeper.app.app import App
from gatekeeper.app.plan import prepare
from gatekeeper.auth import spf
from gatekeeper.config import config_file
from gatekeeper.core import log
from gatekeeper.core.message import parse
from gatekeeper.core.request import Client, Request, Stage, parse_address
from gatekeeper.core.verdict import PASS, Decision
from gatekeeper.dnsclient import caching
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.resolver import Answer, RememberedOnly, TableResolver, run_without_waiting
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.milter import edits
from gatekeeper.milter import message as milter_message
from gatekeeper.milter import session as milter_session
from gatekeeper.milter.edits import Edits
from gatekeeper.milter.session import MilterSession
from gatekeeper.pipeline import facts
from gatekeeper.signing import keys
from gatekeeper.signing.keys import PrivateKey
from gatekeeper.stores.memory import MemoryStore
from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.milter_service import OUTBOUND, serving
from tests.support.milter_service import verifies as signature_holds
from tests.support.postconf import no_postfix
from tests.support.signing_world import ed25519_pem, rsa_pem, write_key
from tests.support.threads import Loop, Preempted, at_each_step, storm

SIZE = 4


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Numbers:
    """A name server that knows an address for every name."""

    def __init__(self) -> None:
        self.asked = 0

    async def query(self, name: str, type: str) -> Answer:
        self.asked += 1
        return Answer(name, type, (f"the address of {name}",), ttl=300.0)

    async def close(self) -> None:
        """Nothing to let go of."""


def full(loop: Loop, clock: Callable[[], float] = lambda: 1e9) -> CachingResolver:
    """A cache in which `0.example` is the next to go."""
    cache = CachingResolver(Numbers(), clock, size=SIZE)
    for number in range(SIZE):
        loop.run(cache.query(f"{number}.example", "A"))
    return cache


def is_sound(cache: CachingResolver) -> bool:
    """Whether its books are right, and every entry is that of its question."""
    entries = cache._entries
    right = all(isinstance(one.outcome, Answer) and key[0] == one.outcome.name for key, one in entries.items())
    return right and sum(one.weight for one in entries.values()) == cache._weight <= SIZE


@pytest.mark.parametrize("name", ["0.example", "1.example", "3.example"])
def test_an_answer_is_put_into_a_full_cache_whatever_a_thread_reads_meanwhile(loop: Loop, name: str) -> None:
    def scene(at: Preempted) -> None:
        cache = full(loop)

        async def put_in() -> Answer:
            with at:
                return await cache.query("new.example", "A")

        at.intruder = lambda: cache.known(name, "A")
        assert "new.example" == loop.run(put_in()).name
        assert at.found is None or name == at.found.name
        assert is_sound(cache)

    assert at_each_step(scene, caching) > 50


@pytest.mark.parametrize("name", ["0.example", "3.example"])
def test_an_answer_that_is_forgotten_while_a_thread_reads_it_is_told_or_unknown(loop: Loop, name: str) -> None:
    def scene(at: Preempted) -> None:
        cache = full(loop)
        at.intruder = lambda: [loop.run(cache.query(f"new{number}.example", "A")) for number in range(SIZE)]
        with at:
            found = cache.known(name, "A")
        assert found is None or (isinstance(found, Answer) and name == found.name)
        assert is_sound(cache)

    assert at_each_step(scene, caching) > 20


def test_an_answer_that_has_expired_is_asked_for_again_whatever_a_thread_reads_meanwhile(loop: Loop) -> None:
    def scene(at: Preempted) -> None:
        now = [1e9]
        cache = full(loop, lambda: now[0])
        now[0] += 400

        async def ask_again() -> Answer:
            with at:
                return await cache.query("0.example", "A")

        at.intruder = lambda: cache.known("0.example", "A")
        assert "0.example" == loop.run(ask_again()).name
        assert at.found is None or "0.example" == at.found.name
        assert is_sound(cache)

    assert at_each_step(scene, caching) > 50


def test_threads_that_read_a_full_cache_and_the_loop_that_fills_it_never_fail(loop: Loop) -> None:
    cache = CachingResolver(numbers := Numbers(), size=40)
    told = []
    ended = threading.Event()

    async def fill() -> None:
        for number in range(1_000):
            answer = await cache.query(f"{number}.example", "A")
            assert f"{number}.example" == answer.name

    def fill_to_the_end() -> None:
        try:
            loop.run(fill())
        finally:
            ended.set()

    def read() -> None:
        while not ended.is_set():
            for number in range(max(0, numbers.asked - 45), numbers.asked):
                found = cache.known(f"{number}.example", "A")
                assert found is None or (isinstance(found, Answer) and f"{number}.example" == found.name)
                told.append(found is not None)

    storm([fill_to_the_end, *[read] * 3], loop)
    assert {True, False} == set(told)
    assert 40 == cache._weight == len(cache._entries)


@pytest.mark.parametrize("asked", [0, 1], ids=["remembered", "not yet"])
def test_what_spf_came_to_is_the_same_whoever_else_keeps_and_empties(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    zone = Zone.parse("".join(f'{n}.example TXT "v=spf1 ip4:192.0.2.{n} -all"\n' for n in range(3)))
    cache = CachingResolver(TableResolver(zone))
    client = parse_address("192.0.2.1")

    async def judged(number: int) -> spf.SpfResult:
        found = await spf.check_mail_from(
            cache, address=client, helo="x.example", sender=f"a@{number}.example", receiver="mx.example"
        )
        assert f"{number}.example" == found.domain
        return found.result

    def scene(at: Preempted) -> None:
        spf._outcomes.clear()
        loop.run(judged(0))
        at.intruder = lambda: [loop.run(judged(number)) for number in (0, 1, 2)]
        asking = spf.check_mail_from(
            RememberedOnly(cache), address=client, helo="x.example", sender=f"a@{asked}.example", receiver="mx.example"
        )
        with at:
            assert (spf.SpfResult.FAIL, spf.SpfResult.PASS)[asked] == run_without_waiting(asking).result
        assert not at.done or [spf.SpfResult.FAIL, spf.SpfResult.PASS, spf.SpfResult.FAIL] == at.found

    monkeypatch.setattr(spf, "_MAX_OUTCOMES", 2)
    for number in range(3):
        loop.run(judged(number))
    assert at_each_step(scene, spf) > 50


@pytest.mark.parametrize("pem", [rsa_pem(1024), ed25519_pem()], ids=["rsa", "ed25519"])
def test_a_key_is_the_same_for_all_who_use_it_first(pem: bytes) -> None:
    digest = sha256(b"x").digest()
    expected = PrivateKey(pem, "alone")
    told = (expected.bits, expected.algorithm, expected.record(), expected.sign(digest))

    def use(key: PrivateKey) -> tuple[int, str, str, bytes]:
        return key.bits, key.algorithm, key.record(), key.sign(digest)

    def scene(at: Preempted) -> None:
        key = PrivateKey(pem, "shared")
        at.intruder = lambda: use(key)
        with at:
            assert told == use(key)
        assert not at.done or told == at.found

    assert at_each_step(scene, keys) > 100
    for _ in range(20):
        key = PrivateKey(pem, "shared")
        found: list[object] = []
        storm([lambda key=key, found=found: found.append(use(key))] * 4)  # type: ignore[misc]  # a lambda with defaults
        assert [told] * 4 == found


CONFIG = """\
hostname = "mx.ours.example"
mynetworks = []
[milter]
software_header = true
[signing]
key_table = "{folder}/KeyTable"
signing_table = "refile:{folder}/SigningTable"
[verify]
dmarc = "quarantine"
count = {count}
[checks.ratelimit]
client_simultaneous = 2
"""
DOMAINS = 5


class OnTheLoop:
    """`inner`, whose methods are refused to everybody but the event loop's thread."""

    def __init__(self, inner: Any, loop: Loop) -> None:
        self.called = 0
        self._inner = inner
        self._thread = loop.call(threading.get_ident)

    def __getattr__(self, name: str) -> Any:
        assert self._thread == threading.get_ident(), f"{name} is called by a thread that is not the loop's"
        self.called += 1
        return getattr(self._inner, name)


class Slow:
    """A name server whose answers take a turn of the loop."""

    def __init__(self, zone: str) -> None:
        self._table = TableResolver(Zone.parse(zone))

    async def query(self, name: str, type: str) -> Answer:
        await asyncio.sleep(0)
        return await self._table.query(name, type)

    async def close(self) -> None:
        """Nothing to let go of."""


class World:
    """A milter's App with a cache of `size` answers, and messages with what is to be done about them, as it comes out
    when nobody else is there."""

    def __init__(self, loop: Loop, folder: Path, *, size: int, count: bool = False) -> None:
        self.loop = loop
        write_key(folder / "rsa", rsa_pem(1024))
        write_key(folder / "ed", ed25519_pem())
        (folder / "KeyTable").write_text(f"rsa ours.example:rsa:{folder}/rsa\ned ours.example:ed:{folder}/ed\n")
        (folder / "SigningTable").write_text("ann+*@ours.example rsa\nb*b@*.example ed\n*@ours.example ed\n")
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder, count=str(count).lower()))
        plan = prepare(config_file.load(folder / "gatekeeper.toml", no_postfix))
        records = [f'{name}._domainkey.ours.example TXT "{key.record()}"\n' for name, key in _keys(folder)]
        records += [f'{n}.example TXT "v=spf1 ip4:192.0.2.{n} -all"\n' for n in range(DOMAINS)]
        records += [
            f'_dmarc.{n}.example TXT "v=DMARC1; p=reject; rua=mailto:reports@{n}.example"\n' for n in range(DOMAINS)
        ]
        records += [f"{n}.2.0.192.in-addr.arpa PTR {n}.example\n{n}.example A 192.0.2.{n}\n" for n in range(DOMAINS)]
        self.store = MemoryStore(lambda: 1e9)
        self.guards = OnTheLoop(Slow("".join(records)), loop), OnTheLoop(self.store, loop)
        self.resolver = CachingResolver(self.guards[0], lambda: 1e9, size=size)

        async def opened() -> App:
            return App(plan, self.resolver, self.guards[1], lambda: 1e9)

        self.app = loop.run(opened())
        self.lock = threading.Lock()
        self.in_thread = self.on_loop = 0
        ours = [("ann+x", "ann"), ("bob", "bob"), ("joe", "joe")]
        outbound = [("198.51.100.1", login, _mail(f"{user}@ours.example")) for user, login in ours]
        signed = [_with(self.told(*mail), mail[2]) for mail in outbound]
        self.mail = [
            *outbound,
            *((f"192.0.2.{n}", "", _mail(f"x@{n}.example")) for n in range(DOMAINS)),
            *((f"192.0.2.{(n + 1) % DOMAINS}", "", _mail(f"x@{n}.example")) for n in range(DOMAINS)),
            *((f"192.0.2.{n}", "", raw) for n, raw in enumerate(signed)),
        ]
        self.expected = [self.told(*mail) for mail in self.mail]
        assert [["DKIM-Signature", "DKIM-Filter"]] * 3 == [
            [field.name for field in edits.insertions] for edits in self.expected[:3]
        ]
        assert ["", "HOLD"] == [bool(edits.quarantine) * "HOLD" for edits in (self.expected[3], self.expected[8])]
        assert all("dkim=pass" in edits.insertions[0].value for edits in self.expected[-3:])
        self.in_thread = self.on_loop = 0

    def told(self, client: str, login: str, raw: bytes) -> Edits:
        """What becomes of a message on a connection of its own."""
        return self.message(self.connection(client), login, raw)

    def connection(self, client: str) -> MilterSession:
        session = MilterSession(self.app)
        session.connect("unknown", client, 25)
        session.helo("client.example")
        return session

    def message(self, session: MilterSession, login: str, raw: bytes) -> Edits:
        """What milter/server.py does in libmilter's thread."""
        self.begin(session, login, raw)
        return self.end(session)

    def begin(self, session: MilterSession, login: str, raw: bytes) -> None:
        """All but the end of a message."""
        headers, body = parse(raw)
        sender = headers[-1].value.decode().strip()
        self.ahead(session.mail(f"<{sender}>", sasl_user=login, sasl_method="PLAIN" if login else ""))
        session.rcpt("<to@ours.example>")
        for field in headers:
            session.header(field.name, field.value)
        self.ahead(session.end_of_header(queue_id="4AbCdE"))
        for start in range(0, len(body), 7):
            session.body(body[start : start + 7])

    def end(self, session: MilterSession) -> Edits:
        edits = session.end_without_waiting()
        with self.lock:
            self.in_thread += edits is not None
            self.on_loop += edits is None
        if edits is not None:
            return edits
        edits = self.loop.run(session.end_on_event_loop())
        if session.unsettled:
            self.loop.run(session.settle())
        return edits

    def ahead(self, work: Callable[[], None] | None) -> None:
        if work is not None:
            self.loop.loop.call_soon_threadsafe(work)

    def forget(self, session: MilterSession) -> None:
        if (left := session.abort()) is not None:
            self.loop.loop.call_soon_threadsafe(left.close)


def _keys(folder: Path) -> list[tuple[str, PrivateKey]]:
    return [(name, PrivateKey((folder / name).read_bytes(), name)) for name in ("rsa", "ed")]


def _mail(sender: str) -> bytes:
    return b"Subject: x\r\nFrom: %b\r\n\r\n%b" % (sender.encode(), b"Hello, this is no spam.\r\n" * 5)


def _with(edits: Edits, raw: bytes) -> bytes:
    fields = [f"{name}:{value}\r\n" for name, value in ((one.name, one.value) for one in edits.insertions)]
    return "".join(reversed(fields)).replace("\r\n", "\n").replace("\n", "\r\n").encode() + raw


def test_what_is_begun_on_the_loop_bears_the_callbacks_that_come_meanwhile(loop: Loop, tmp_path: Path) -> None:
    world = World(loop, tmp_path, size=2)  # next to nothing is remembered, so all is begun on the loop
    client, _, raw = world.mail[-1]
    headers, body = parse(raw)

    def scene(at: Preempted) -> None:
        session = world.connection(client)
        work = session.mail("<joe@ours.example>")
        assert work is not None

        def callbacks() -> None:
            for field in headers:
                session.header(field.name, field.value)
            assert session.end_of_header(queue_id="4AbCdE") is not None
            session.body(body)

        async def begin() -> None:
            with at:
                work()

        session.rcpt("<to@ours.example>")
        at.intruder = callbacks
        loop.run(begin())
        if at.done:
            assert world.expected[-1] == world.end(session)
        world.forget(session)

    assert at_each_step(scene, facts) > 50


@pytest.mark.parametrize("of_whom", ["the same", "another"])
def test_a_message_that_ends_in_a_thread_bears_what_the_loop_does(loop: Loop, tmp_path: Path, of_whom: str) -> None:
    world = World(loop, tmp_path, size=1000)
    mine, other = world.mail[-1], world.mail[-1 if of_whom == "the same" else -2]
    theirs = world.expected[world.mail.index(other)]

    def scene(at: Preempted) -> None:
        first, second = world.connection(mine[0]), world.connection(other[0])
        world.begin(first, *mine[1:])
        world.begin(second, *other[1:])
        at.intruder = lambda: loop.run(second.end_on_event_loop())
        with at:
            edits = first.end_without_waiting()
        assert world.expected[-1] == edits
        assert not at.done or theirs == at.found

    assert at_each_step(scene, milter_session, milter_message, facts, every=11) > 50


def test_forgetting_a_message_on_the_loop_leaves_the_next_one_alone(loop: Loop, tmp_path: Path) -> None:
    world = World(loop, tmp_path, size=2)
    client, login, raw = world.mail[-1]

    def scene(at: Preempted) -> None:
        session = world.connection(client)
        world.begin(session, login, raw)
        left = session.abort()
        assert left is not None

        async def close() -> None:
            with at:
                left.close()

        at.intruder = lambda: world.begin(session, login, raw)
        loop.run(close())
        if at.done:
            assert world.expected[-1] == world.end(session)
        world.forget(session)

    assert at_each_step(scene, facts) > 10


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every lru_cache of a module with room for two entries, so that all are full: (module, name, cache)."""
    made = []
    for module in [module for name, module in sys.modules.items() if name.startswith("gatekeeper.")]:
        for name, value in vars(module).copy().items():
            if isinstance(value, functools._lru_cache_wrapper):
                small = functools.lru_cache(maxsize=2)(value.__wrapped__)
                monkeypatch.setattr(module, name, small)
                made.append((module.__name__, name, small))
    monkeypatch.setattr(spf, "_MAX_OUTCOMES", 3)
    return made


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What is logged meanwhile, as the service writes it: by one handler. No fixture, since pytest adds its own ones
    when the test begins."""
    root, written = logging.getLogger(), io.StringIO()
    before, level, threads, processes = root.handlers[:], root.level, logging.logThreads, logging.logMultiprocessing
    source = logging._srcfile
    root.handlers.clear()
    try:
        log.setup("info", written)
        yield written
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.logThreads, logging.logMultiprocessing, logging._srcfile = threads, processes, source


LINE = re.compile(r"[\d-]{10} [\d:]{8}\.\d{3} gatekeeper\[\d+\]: [A-Z]+ ([ -~]*)")


def test_lines_of_a_log_that_two_write_to_stay_whole() -> None:
    decided = [decision(f"{number}.example") for number in range(2)]

    def scene(at: Preempted) -> None:
        with logged() as lines:
            at.intruder = lambda: log.write_decision(logging.getLogger(), decided[1], "milter", edits.answer)
            with at:
                log.write_decision(logging.getLogger(), decided[0], "milter", edits.answer)
        told = [(LINE.fullmatch(line) or [line] * 2)[1] for line in lines.getvalue().splitlines()]
        wanted = [log.decision_line(one, "milter", edits.answer) for one in decided[: 1 + at.done]]
        assert sorted(wanted) == sorted(told)

    assert at_each_step(scene, log, every=3, patience=0.02) > 50


def decision(sender: str) -> Decision:
    client = Client(address=parse_address("192.0.2.1"), name="client.example", port=25)
    return Decision(Request(stage=Stage.END_OF_MESSAGE, client=client, sender=sender), PASS, (), PASS)


@pytest.mark.parametrize("count", [False, True], ids=["judged in the threads", "judged on the loop"])
def test_a_storm_of_messages_comes_out_as_if_each_were_alone(
    loop: Loop, tmp_path: Path, small_caches: list[Any], count: bool
) -> None:
    world = World(loop, tmp_path, size=24, count=count)  # two thirds of what is asked for
    ended = threading.Event()
    connections, rounds, wrong = 4, 2, list[tuple[Edits, Edits]]()
    left = threading.Semaphore(0)

    def connection(number: int) -> None:
        try:
            for turn in range(rounds * len(world.mail)):
                place = (turn * (number + 1) + number) % len(world.mail)
                client, login, raw = world.mail[place]
                session = world.connection(client)
                if turn % 3 == 0:  # one that is given up, before one on the same connection that is not
                    world.begin(session, login, raw)
                    world.forget(session)
                told = world.message(session, login, raw)
                if told != world.expected[place]:
                    wrong.append((world.expected[place], told))
        finally:
            left.release()

    def evict() -> None:
        """The policy daemon's part: questions that nobody will ask again."""
        number = 0
        while not ended.is_set():
            number += 1
            loop.run(world.resolver.query(f"{number % 5}.example", "AAAA"))

    def watch() -> None:
        for _ in range(connections):
            left.acquire()
        ended.set()

    with logged() as lines:
        storm([*(functools.partial(connection, number) for number in range(connections)), evict, watch], loop)
    messages = connections * rounds * len(world.mail)
    assert [] == wrong
    assert messages == world.in_thread + world.on_loop
    assert world.on_loop > messages // 20
    assert world.in_thread > messages // 20
    # every line is whole
    written = lines.getvalue().splitlines()
    assert messages == len(written)
    assert all(LINE.fullmatch(line) for line in written)
    assert all({"trace", "queue_id", "stage"} <= (log.read_decision(line) or {}).keys() for line in written)
    assert ({True} if count else {False}) == {world.guards[1].called > 0}
    # nothing of this was idle
    full = {f"{module}.{name}" for module, name, cache in small_caches if cache.cache_info().currsize == 2}
    assert {
        "gatekeeper.auth.dkim_key._known_key",
        "gatekeeper.auth.results._spf",
        "gatekeeper.core.log._trace_id",
    } <= full
    assert 24 == world.resolver._weight == len(world.resolver._entries)


def test_a_storm_of_connections_is_counted_exactly(loop: Loop, tmp_path: Path) -> None:
    world = World(loop, tmp_path, size=24)
    held, most, refused = [0], [0], [0]

    def connection() -> None:
        for _ in range(60):
            session = world.connection("192.0.2.1")
            verdict = loop.run(session.opened())
            with world.lock:
                if verdict.refuses:
                    refused[0] += 1
                else:
                    held[0] += 1
                    most[0] = max(most[0], held[0])
            if not verdict.refuses:
                time.sleep(0.001)  # it stays a while, so that others come
                with world.lock:
                    held[0] -= 1
            loop.loop.call_soon_threadsafe(session.closed)

    storm([connection] * 5, loop)
    assert refused[0] > 0
    assert 2 == most[0]
    loop.run(world.app.connections.close())
    assert {} == world.app.connections._held
    assert not any(world.store._leases.values())


SMALL_AND_SWITCHING = (
    "import sys; sys.setswitchinterval(1e-6); from gatekeeper.dnsclient.caching import CachingResolver; "
    "CachingResolver.__init__.__kwdefaults__['size'] = 8"
)


@pytest.mark.integration("gatekeeper")
def test_a_storm_through_libmilter_comes_out_as_if_each_were_alone() -> None:
    """The callbacks themselves: a cache of eight answers, of which a mail from outside asks for more than half."""
    senders = [f"{number}.example" for number in range(4)]
    zone = "".join(
        f'{name} TXT "v=spf1 ip4:192.0.2.1 -all"\n_dmarc.{name} TXT "v=DMARC1; p=reject"\n' for name in senders
    )

    def inbound(client: MilterClient, name: str) -> bool:
        client.envelope(f"a@{name}".encode())
        outcome = client.content(f"From: a@{name}\r\n\r\nHello\r\n".encode())
        [(field, value)] = outcome.fields
        told = [f"spf=pass ({name} lets 192.0.2.1 send", f"header.from={name}", "dkim=none", "dmarc=pass"]
        return (CONTINUE, "Authentication-Results") == (outcome.answer, field) and all(one in value for one in told)

    def outbound(client: MilterClient) -> bool:
        client.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
        return signature_holds(OUTBOUND, client.content(OUTBOUND).fields)

    with serving(zone=zone, prelude=SMALL_AND_SWITCHING) as path:

        def connection(number: int) -> list[bool]:
            with MilterClient(path) as client:
                client.open()
                told = []
                for turn in range(number, number + 24):
                    if turn % 5 == 0:
                        client.envelope()
                        client.abort()
                    told.append(inbound(client, senders[turn % 4]) if turn % 3 else outbound(client))
                return told

        with ThreadPoolExecutor(6) as pool:
            assert [[True] * 24] * 6 == list(pool.map(connection, range(6)))
