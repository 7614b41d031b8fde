# SPDX-License-Identifier: GPL-3.0-or-later
"""Safe as shipped: no default refuses mail that a correct sender sends, and nearly none of it waits.

The senders of correct_senders.py play six weeks of mail, in order of time, against the default configuration of a
relay with a new SQLite store. Some write within its first day, when it learns; the others, and all small ones, come
one to ten days later. Counted is every message from the end of the learning period on, each with the same weight; one
counts as delayed if any try of it was deferred. A call-out or probe that is deferred counts likewise.

How honest the mix is: one sender in nine has no confirmed name or a dynamic-looking one. Real relays see fewer, by far,
among the senders of wanted mail. Each sender writes to three mailboxes; who writes to more waits no longer, because a
client that has shown five triplets is known as a whole.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import prepare
from gatekeeper.config import config_file
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.resolver import Answer, DNSFailure, TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.stores.sqlite.store import SqliteStore
from tests.support.correct_senders import MESSAGES, SENDERS, SMALL, Sender

START = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
MAIN_CF = {"myhostname": "mx.example.org", "mydestination": "example.org", "mynetworks": "127.0.0.0/8 10.0.0.0/8"}


def main_cf(names: Sequence[str]) -> Mapping[str, str]:
    """What `postconf` says on the relay; everything else is gatekeeper's default."""
    return MAIN_CF


@dataclass(order=True, slots=True)
class Try:
    """One attempt to hand in a message for one recipient."""

    at: float
    tie: int
    number: int = field(compare=False)
    sender: Sender = field(compare=False)
    attempt: int = field(compare=False, default=0)


@dataclass(slots=True)
class Tally:
    """What became of the mail: counted are messages, by sender."""

    sent: Counter[str] = field(default_factory=Counter)
    delayed: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


class Wobbly(TableResolver):
    """A zone in which one domain cannot be looked up for a minute, once it is used to."""

    def __init__(self, zone: Zone) -> None:
        super().__init__(zone)
        self.now = START

    async def query(self, name: str, type: str) -> Answer:
        if name.endswith("wobbly.example") and START + 20 * DAY <= self.now < START + 20 * DAY + 60:
            raise DNSFailure("SERVFAIL")
        return await super().query(name, type)


def schedule() -> Iterator[Try]:
    """The first try of every message."""
    tie = count()
    for at, sender in enumerate(SENDERS):
        late = sender in SMALL or at % 2
        begins = START + (1 + at % 10) * DAY + at * 60 if late else START + (at % 10) * HOUR
        for number in range(MESSAGES):
            yield Try(begins + number * 10 * HOUR, next(tie), number, sender)
    wobbly = next(sender for sender in SENDERS if "wobbly" in sender.domain)
    yield Try(START + 20 * DAY + 10, next(tie), 1, wobbly)


class Play:
    """The relay, and the clock that jumps from one try to the next."""

    def __init__(self, folder: Path) -> None:
        zone = "example.org MX 10 mx.example.org\n" + "".join(sender.zone for sender in SENDERS)
        self.world = Wobbly(Zone.parse(zone))
        self.store = SqliteStore(folder / "state.db", self.clock)
        self.instances = count()

    def clock(self) -> float:
        return self.world.now

    async def run(self) -> Tally:
        plan = prepare(config_file.defaults(main_cf))
        resolver = CachingResolver(self.world, self.clock)
        app = await open_app(plan, resolver=resolver, store=self.store, clock=self.clock)
        await self.store.created_at()
        tally, tries = Tally(), list(schedule())
        heapq.heapify(tries)
        while tries:
            one = heapq.heappop(tries)
            self.world.now = max(self.world.now, one.at)
            reply = await self.attempt(app, one)
            again = _take_down(one, reply, tally)
            if again is not None:
                heapq.heappush(tries, again)
        await app.close()
        return tally

    async def attempt(self, app: App, one: Try) -> str:
        """The reply to one try; a client with several addresses goes through them first."""
        clients = one.sender.clients
        first = one.number + one.attempt
        reply = ""
        for at in range(len(clients)) if one.sender.dual_stack else [first]:
            reply = await self.ask(app, one, *clients[at % len(clients)])
            if not reply:
                break
        return reply

    async def ask(self, app: App, one: Try, address: str, name: str) -> str:
        sender = one.sender
        recipient = sender.recipients[one.number % len(sender.recipients)]
        request = Request(
            stage=Stage.RCPT,
            client=Client(address=ip_address(address), name=name, reverse_name=name, port=40000),
            helo=sender.helo or name,
            sender=sender.envelope(one.number, recipient),
            recipient=recipient,
            instance=str(next(self.instances)),
            sasl_user=sender.sasl_user,
            sasl_method="PLAIN" if sender.sasl_user else "",
        )
        decision, context = await app.decide(request)
        await context.settle(decision)
        return decision.verdict.reply


def _take_down(one: Try, reply: str, tally: Tally) -> Try | None:
    """Count what came of a try; the next one, if there is to be one."""
    counts = one.at - sum(one.sender.retries[: one.attempt]) >= START + DAY
    if one.attempt == 0 and counts:
        tally.sent[one.sender.name] += 1
    if not reply:
        if one.attempt and counts:
            tally.waits.append(sum(one.sender.retries[: one.attempt]))
        return None
    if one.attempt == 0 and counts:
        tally.delayed[one.sender.name] += 1
    given_up = one.attempt == len(one.sender.retries) and not one.sender.probe
    if reply.startswith("5") or given_up:
        tally.refused.append(f"{one.sender.name}: {reply}")
        return None
    if one.sender.probe:
        return None
    wait = one.sender.retries[one.attempt]
    return Try(one.at + wait, one.tie, one.number, one.sender, one.attempt + 1)


@cache
def _played() -> list[Tally]:
    return []


@pytest.fixture
async def tally() -> Tally:
    """Played once for all tests."""
    if not _played():
        with TemporaryDirectory(prefix="gatekeeper-safe-") as folder:
            _played().append(await Play(Path(folder)).run())
    return _played()[0]


@pytest.mark.slow
async def test_no_correct_sender_is_refused_or_gives_up(tally: Tally) -> None:
    assert [] == tally.refused


async def test_at_most_one_message_in_a_hundred_waits_once_the_store_has_learnt(tally: Tally) -> None:
    assert tally.delayed.total() * 100 <= tally.sent.total(), tally.delayed


async def test_nobody_waits_for_long(tally: Tally) -> None:
    assert max(tally.waits) <= HOUR, sorted(tally.waits)[-10:]


async def test_there_are_enough_senders_and_each_has_sent(tally: Tally) -> None:
    assert len(SENDERS) == len({sender.name for sender in SENDERS}) >= 40
    assert all(tally.sent[sender.name] >= 0.9 * MESSAGES for sender in SENDERS)


async def test_who_has_a_name_of_his_own_never_waits(tally: Tally) -> None:
    waited = {sender.name for sender in SENDERS if tally.delayed[sender.name]}
    suspicious = {
        "a home server without PTR, with SPF",
        "a home server without PTR and without SPF",
        "a dynamic-looking PTR with the right SPF",
        "a rented server with the hoster's name",
        "a virtual machine with the cloud's name",
        "IPv6 without PTR",
        "dual stack without any PTR",
        "a domain whose DNS fails for a minute",
    }
    assert waited <= suspicious


async def test_the_dns_that_failed_for_a_minute_was_noticed(tally: Tally) -> None:
    assert 1 == tally.delayed["a domain whose DNS fails for a minute"]
