# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world for tests of checks: a zone, an empty store, a clock that is set by hand, and one restriction list."""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.request import Client, Request, Stage, parse_address
from gatekeeper.core.verdict import Decision, Verdict
from gatekeeper.dnsclient.resolver import Resolver, TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.dnslists.monitor import ListMonitor
from gatekeeper.dnslists.queries import ListQueries
from gatekeeper.pipeline.check import Check
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import DATA, END_OF_DATA, OBSERVED, RECIPIENT, Pipeline
from gatekeeper.pipeline.site import Site
from gatekeeper.postfix.client_list import ClientList
from gatekeeper.postfix.restriction_list import parse_restrictions
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import Keys, Store

HERE = Path("/nonexistent")
SITE = Site(
    hostname="mx.example.com",
    authserv_id="mx.example.com",
    mynetworks=ClientList.of("10.0.0.0/8"),
    local_domains=("example.com",),
    relay_domains=("relay.example",),
    recipient_delimiter="+",
)


def rcpt(
    *,
    address: str = "192.0.2.1",
    name: str = "mail.example.net",
    reverse_name: str = "",
    helo: str | None = "mail.example.net",
    sender: str | None = "sender@example.net",
    recipient: str | None = "user@example.com",
    stage: Stage = Stage.RCPT,
    sasl_user: str = "",
    instance: str = "",
    queue_id: str = "",
    port: int | None = None,
) -> Request:
    """A request at RCPT, with what the test is not about filled in."""
    client = Client(address=parse_address(address), name=name, reverse_name=reverse_name or name, port=port)
    return Request(
        stage=stage,
        client=client,
        helo=helo,
        sender=sender,
        recipient=recipient,
        sasl_user=sasl_user,
        instance=instance,
        queue_id=queue_id,
    )


@dataclass(slots=True)
class World:
    """Answers requests by a restriction list, written as in main.cf."""

    restrictions: str
    zone: str = ""
    sections: dict[str, BaseModel] = field(default_factory=dict)
    folder: Path = HERE
    site: Site = SITE
    now: float = 1_000_000.0
    real_keys: bool = False
    """Whether keys are made with the store's own secret."""
    observe: bool = False
    """Whether nothing counts."""
    at_end: bool = False
    """Whether the list is also asked at DATA and at the end of the message."""
    store: Store = field(init=False)
    alone: Store = field(init=False)
    resolver: Resolver = field(init=False)
    lists: ListMonitor = field(init=False)
    checks: tuple[Check, ...] = field(init=False)
    problems: list[Problem] = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryStore(lambda: self.now)
        self.alone = MemoryStore(lambda: self.now)
        self.resolver = TableResolver(Zone.parse(self.zone))
        reader = CheckBuilder(self.sections, self.folder)
        checks = [
            reader.check(found.words, SourceLine("gatekeeper.toml", 7))
            for found in parse_restrictions(self.restrictions)
        ]
        self.problems = reader.problems
        if errors := [problem for problem in self.problems if not problem.warning]:
            raise ConfigError(errors)
        self.lists = ListMonitor(self.resolver, uses=reader.lists)
        self.checks = tuple(check for check in checks if check is not None)

    async def decide(self, request: Request) -> Decision:
        """The decision, its side effects done."""
        facts = Facts(
            self.resolver,
            client=request.client,
            helo=request.helo,
            sender=request.sender,
            receiver=self.site.hostname,
        )
        self.lists.resolver = self.resolver
        context = Context.of(
            site=self.site,
            resolver=self.resolver,
            store=self.store,
            clock=lambda: self.now,
            keys=Keys(await self.store.secret() if self.real_keys else b"secret", OBSERVED if self.observe else ""),
            facts=facts,
            alone=self.alone,
            lists=ListQueries(self.lists),
        )
        lists = dict.fromkeys((RECIPIENT, DATA, END_OF_DATA) if self.at_end else (RECIPIENT,), self.checks)
        decision = await Pipeline(lists, self.observe).decide(request, context)
        await context.settle(decision)
        return decision

    async def verdict(self, request: Request) -> Verdict:
        """The answer alone."""
        return (await self.decide(request)).verdict


async def reply(restrictions: str, request: Request, zone: str = "", site: Site = SITE) -> str:
    """Code and enhanced code (`504 5.5.2`) that `restrictions` answer; empty if they refuse nothing."""
    verdict = await World(restrictions, zone, site=site).verdict(request)
    return f"{verdict.code} {verdict.enhanced}".strip()


def mistakes(restrictions: str, folder: Path = HERE) -> list[str]:
    """What is wrong with `restrictions`."""
    reader = CheckBuilder({}, folder)
    for found in parse_restrictions(restrictions):
        reader.check(found.words, SourceLine("gatekeeper.toml", 7))
    return [problem.what for problem in reader.problems]
