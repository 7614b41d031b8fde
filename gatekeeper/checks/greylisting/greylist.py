# SPDX-License-Identifier: GPL-3.0-or-later
"""`greylist`: what a stranger sends for the first time waits (RFC 6647). Software that does not retry goes away.

A triplet of client, sender and recipient is deferred until `delay` has passed since it was first seen, must come back
within `retry_window`, and is then known for `lifetime` since its last mail; a client that has shown `auto_allow` such
triplets is known as a whole. The client is its network or, where SPF passes, the domain that answers for it: so a pool
may retry from any of its addresses. The sender is taken without what differs from message to message (verp.py).

Unless told otherwise only suspicious clients are asked to wait: without a confirmed name, with one that looks dynamic,
on one of `lists`, or on one of dnsbl's that did not suffice to refuse it. In a store's first days (`learning`) nobody
waits, but what comes is learnt. Authenticated users, mynetworks, who is on an allow list (tables like those of
`access`, and one that is shipped), and our postmaster and abuse mailboxes never wait.

Everything that may be read is known from the request, and read at once (`wants`); SPF is only asked about clients that
would have to wait. Nothing is written before the decision is known, and nothing about mail that is refused for good.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, StrictBool, StrictInt

from gatekeeper.checks.base.always_reachable import always_reachable
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.checks.base.client_network import Prefix4, Prefix6, network_of
from gatekeeper.checks.dnslists.lookup import Sites, ask_all
from gatekeeper.checks.greylisting.dynamic_hostname import looks_dynamic
from gatekeeper.checks.greylisting.triplet import ClientIdentity, TripletState, first_value, known_value, see
from gatekeeper.checks.greylisting.verp import normal_sender
from gatekeeper.checks.tables.access import LookUp
from gatekeeper.core.log import WAITED
from gatekeeper.core.request import UNKNOWN, Address, Request, Stage, domain_of
from gatekeeper.core.units import Duration
from gatekeeper.core.verdict import PASS, Decision, Outcome, Verdict, defer_if_permit, printable
from gatekeeper.dnslists.dns_list import ListKind
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.restriction_list import TableNames
from gatekeeper.stores.store import ReadAhead

SHIPPED = f"hash:{Path(__file__).parent / 'greylist_clients'}"
"""The allow list that comes with gatekeeper."""


class Greylist(ConfiguredCheck):
    """450 4.7.1 to a client that has to try again, with how long it has to wait."""

    name: ClassVar[str] = "greylist"
    needs: ClassVar[tuple[str, ...]] = ("sender", "recipient")

    delay: Duration = Field(default=300.0, description="how long the first mail of a triplet has to wait")
    retry_window: Duration = Field(default=172800.0, description="how long a client may take to try again")
    lifetime: Duration = Field(
        default=3110400.0, description="how long a triplet or client is known after its last mail"
    )
    auto_allow: StrictInt = Field(
        default=5, ge=0, description="known triplets that make the whole client known; 0: never"
    )
    clients: Literal["suspicious", "all"] = Field(
        default="suspicious",
        description="suspicious: only clients without a confirmed name, with a dynamic-looking one, or on `lists`; all",
    )
    lists: Sites = Field(
        default=(), description="DNS lists that make a client suspicious: those too broad to refuse by"
    )
    learning: Duration = Field(default=86400.0, description="how long after an empty store was opened nobody waits")
    ipv4_prefix: Prefix4 = Field(default=24, description="bits of an IPv4 address that make one client network")
    ipv6_prefix: Prefix6 = Field(default=64, description="bits of an IPv6 address that make one client network")
    allow_clients: TableNames = Field(
        default=(), description="tables (TYPE:FILE) whose OK for a client's name or address spares it the wait"
    )
    allow_recipients: TableNames = Field(
        default=(), description="tables whose OK for a recipient or its domain spares everybody who writes there"
    )
    allow_shipped: StrictBool = Field(
        default=True, description="also go by the list that is shipped: large senders that retry from anywhere"
    )

    _allow: tuple[LookUp, ...] = PrivateAttr(())

    def with_tables(self, allow: Sequence[LookUp]) -> Self:
        """The same check with its allow lists read."""
        copy = self.model_copy()
        copy._allow = tuple(allow)
        return copy

    def lists_asked(self) -> Iterator[ListUse]:
        """The lists, to be watched."""
        if self.clients == "suspicious":
            yield from ((site, ListKind.ADDRESS) for site in self.lists)

    def wants(self, request: Request, context: Context) -> ReadAhead | None:
        """All that may be looked up, unless it is plain that nothing will be."""
        address = self._whom(request, context)
        if address is None:
            return None
        if self.clients == "suspicious" and not self.lists and not _looks_suspicious(request, address):
            return None
        network, domain = context.worked_out[id(self)] = self._identities(request, address, context)
        return ReadAhead((*network.reads, *domain.reads), created_at=self.learning > 0)

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Wait, or not and why not."""
        address = self._whom(request, context)
        if address is None:
            return PASS
        why = _looks_suspicious(request, address) or next(iter(context.doubts), "")
        if self.clients == "all":
            why = why or "all have to wait"
        elif not why and not self.lists:
            context.note("client", "not suspicious")
            return PASS
        network, domain = context.worked_out.get(id(self)) or self._identities(request, address, context)
        seen = await see(network, context.store) if why else None
        if seen is None or seen.known is None:  # whoever is known passes anyway
            for look_up in self._allow:
                if (await look_up(request, context)).outcome is Outcome.PERMIT:
                    return _pass("allowed")
        if not why and (hits := await ask_all(context, self.lists, address)):
            why = f"is listed on {hits[0].list.shown}"
        context.note("client", why or "not suspicious")
        return await self._look_up(seen or await see(network, context.store), domain, context) if why else PASS

    def _whom(self, request: Request, context: Context) -> Address | None:
        """The client, if it is one that may have to wait."""
        address = request.client.address
        if request.stage is not Stage.RCPT or request.sasl_user or context.site.is_internal(address):
            return None
        return None if always_reachable(request.recipient, context.site) else address

    def _identities(
        self, request: Request, address: Address, context: Context
    ) -> tuple[ClientIdentity, ClientIdentity]:
        """The client's network, and the domain that it would have to be authenticated for."""
        network = network_of(address, self.ipv4_prefix, self.ipv6_prefix)
        domain = domain_of(request.sender) if request.sender else (request.helo or "").lower()
        sender, recipient = normal_sender(request.sender or ""), (request.recipient or "").lower()
        return (
            ClientIdentity.of(context.keys, network, sender, recipient, self.lifetime),
            ClientIdentity.of(context.keys, f"spf:{domain}", sender, recipient, self.lifetime),
        )

    async def _look_up(self, seen: TripletState, domain: ClientIdentity, context: Context) -> Verdict:
        now = context.clock()
        if not self._may_pass(seen, now) and (spf := await context.facts.spf()).authenticates:
            context.note("SPF", f"passes: the client is known as {printable(spf.domain, 255)}")
            other = await see(domain, context.store)
            # It may have come before from elsewhere, or from here while the DNS was down.
            first = min((first for first in (seen.first, other.first) if first is not None), default=None)
            seen = other._replace(first=first)
        return await self._weigh(seen, now, context)

    def _is_over(self, seen: TripletState, now: float) -> bool:
        return seen.first is not None and seen.waited(now) >= self.delay

    def _may_pass(self, seen: TripletState, now: float) -> bool:
        return seen.known is not None or seen.allowed or self._is_over(seen, now)

    async def _weigh(self, seen: TripletState, now: float, context: Context) -> Verdict:
        if seen.known is not None:
            if now - seen.known > self.lifetime / 20:  # not a write for each mail
                self._remember(seen.identity, context)
            return _pass("known")
        waited = seen.waited(now)
        if self._may_pass(seen, now):
            if seen.first is not None:
                context.note(WAITED, f"{waited:.0f}s")
            self._remember(seen.identity, context)
            return _pass("passed" if self._is_over(seen, now) else "known_network")
        if seen.first is None:
            if self.learning and now < await context.store.created_at() + self.learning:
                self._remember(seen.identity, context)
                return _pass("learning")
            self._note_first(seen.identity, context)
        context.note(WAITED, f"{waited:.0f}s")
        return _early(self.delay - waited)

    def _remember(self, identity: ClientIdentity, context: Context) -> None:
        store, value = context.store, known_value(context.clock())

        async def settle(decision: Decision) -> None:
            await store.set(identity.triplet, value, self.lifetime)
            if self.auto_allow and (await store.hit([identity.passed]))[0] >= self.auto_allow:
                await store.set(identity.allowed, value, self.lifetime)

        context.after(settle, lambda decision: not decision.verdict.refuses)

    def _note_first(self, identity: ClientIdentity, context: Context) -> None:
        store, value = context.store, first_value(context.clock())

        context.after(
            lambda decision: store.set(identity.triplet, value, self.retry_window, absent=True),
            lambda decision: not decision.verdict.code.startswith("5"),
        )


def _looks_suspicious(request: Request, address: Address) -> str:
    """Why; empty if it does not."""
    name = request.client.name
    if name == UNKNOWN:
        return "has no confirmed name"
    return "has a name that looks dynamic" if looks_dynamic(name, address) else ""


def _pass(why: str) -> Verdict:
    return Verdict(Outcome.PASS, f"greylist.{why}")


def _early(wait: float) -> Verdict:
    minutes = max(1, -int(-wait // 60))
    text = f"Greylisted: please try again in {minutes} minute{'s' if minutes > 1 else ''}"
    return defer_if_permit("greylist.early", "4.7.1", text)
