# SPDX-License-Identifier: GPL-3.0-or-later
"""`greylist`: the first mail from a stranger is deferred (RFC 6647), because spamming software rarely retries.

A triplet of client, sender and recipient is deferred until `delay` has passed since it was first seen, must come back
within `retry_window`, and is then known for `lifetime` after its last mail; a client with `auto_allow` known triplets
is known as a whole. The client is identified by its network or, if SPF passes, by the domain that authorizes it: so a
pool may retry from any of its addresses. The parts of the sender address that differ from message to message are left
out (verp.py).

By default only suspicious clients have to wait: without a confirmed name, with one that looks dynamic, on one of
`lists`, or on one of dnsbl's lists without reaching its threshold. In a store's first days (`learning`) nobody waits,
but triplets are learned. Authenticated users, mynetworks, clients and recipients on an allow list (tables like those of
`access`, and one that is shipped), and our postmaster and abuse mailboxes never wait.

Every key that may be read follows from the request, and all are read at once (`announce`); SPF is only looked up for
clients that would have to wait. Nothing is written before the decision is known, and nothing for mail that is refused
for good.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, StrictBool, StrictInt

from gatekeeper.checks.base.always_reachable import always_reachable
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.checks.base.client_network import Prefix4, Prefix6, network_of
from gatekeeper.checks.dnslists.lookup import Sites, query_address
from gatekeeper.checks.greylisting.dynamic_hostname import looks_dynamic
from gatekeeper.checks.greylisting.triplet import (
    ClientIdentity,
    TripletState,
    first_value,
    known_value,
    read_state,
)
from gatekeeper.checks.greylisting.verp import normal_sender
from gatekeeper.checks.tables.access import LookUp
from gatekeeper.core.log import WAITED
from gatekeeper.core.request import UNKNOWN, Address, Request, Stage, domain_of
from gatekeeper.core.stored_time import age, is_future
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
    """450 4.7.1 for a client that has to try again; the reply says how long it has to wait."""

    name: ClassVar[str] = "greylist"
    needs: ClassVar[tuple[str, ...]] = ("sender", "recipient")
    asks_spf: ClassVar[bool] = True

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
        description="suspicious: only clients without a confirmed name, with a dynamic-looking one, or on `lists`; "
        "all: every client",
    )
    lists: Sites = Field(
        default=(), description="DNS lists that make a client suspicious: lists that are too broad to refuse mail by"
    )
    learning: Duration = Field(default=86400.0, description="how long after an empty store was opened nobody waits")
    ipv4_prefix: Prefix4 = Field(default=24, description="bits of an IPv4 address that make one client network")
    ipv6_prefix: Prefix6 = Field(default=64, description="bits of an IPv6 address that make one client network")
    allow_clients: TableNames = Field(
        default=(), description="tables (TYPE:FILE) whose OK for a client's name or address spares it the wait"
    )
    allow_recipients: TableNames = Field(
        default=(), description="tables whose OK for a recipient or its domain spares all mail to it the wait"
    )
    allow_shipped: StrictBool = Field(
        default=True, description="also use the shipped list of large senders that retry from any of their addresses"
    )

    _allow: tuple[LookUp, ...] = PrivateAttr(())

    def with_allow_lists(self, allow: Sequence[LookUp]) -> Self:
        """Return the same check with its allow lists, which have been read."""
        copy = self.model_copy()
        copy._allow = tuple(allow)
        return copy

    def queried_lists(self) -> Iterator[ListUse]:
        if self.clients == "suspicious":
            yield from ((site, ListKind.ADDRESS) for site in self.lists)

    def announce(self, request: Request, context: Context) -> ReadAhead | None:
        """Return all keys that may be read; None if it is certain that none will be."""
        address = self._address_to_judge(request, context)
        if address is None:
            return None
        if self.clients == "suspicious" and not self.lists and not _looks_suspicious(request, address):
            return None
        network, domain = context.journal.memo[id(self)] = self._identities(request, address, context)
        return ReadAhead((*network.reads, *domain.reads), created_at=self.learning > 0)

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Defer the mail, or pass it with the reason why it need not wait."""
        address = self._address_to_judge(request, context)
        if address is None:
            return PASS
        why = _looks_suspicious(request, address) or next(iter(context.journal.suspicions), "")
        if self.clients == "all":
            why = why or "all have to wait"
        elif not why and not self.lists:
            context.note("client", "not suspicious")
            return PASS
        network, domain = context.journal.memo.get(id(self)) or self._identities(request, address, context)
        state = await read_state(network, context.store) if why else None
        if state is None or state.known is None:  # a known triplet passes anyway
            for look_up in self._allow:
                if (await look_up(request, context)).outcome is Outcome.PERMIT:
                    return _pass("allowed")
        if not why and (hits := await query_address(context, self.lists, address)):
            why = f"is listed on {hits[0].list.shown}"
        context.note("client", why or "not suspicious")
        if not why:
            return PASS
        return await self._judge_triplet(state or await read_state(network, context.store), domain, context)

    def _address_to_judge(self, request: Request, context: Context) -> Address | None:
        """Return the client's address; None if this client or this mail never has to wait."""
        address = request.client.address
        if request.stage is not Stage.RCPT or request.sasl_user or context.site.is_internal(request.client):
            return None
        return None if always_reachable(request.recipient, context.site) else address

    def _identities(
        self, request: Request, address: Address, context: Context
    ) -> tuple[ClientIdentity, ClientIdentity]:
        """Return two identities of the client: its network, and the domain that it would need to pass SPF for."""
        network = network_of(address, self.ipv4_prefix, self.ipv6_prefix)
        domain = domain_of(request.sender) if request.sender else (request.helo or "").lower()
        sender, recipient = normal_sender(request.sender or ""), (request.recipient or "").lower()
        return (
            ClientIdentity.of(context.keys, network, sender, recipient, self.lifetime),
            ClientIdentity.of(context.keys, f"spf:{domain}", sender, recipient, self.lifetime),
        )

    async def _judge_triplet(self, state: TripletState, domain: ClientIdentity, context: Context) -> Verdict:
        now = context.clock()
        if not self._may_pass(state, now) and (spf := await context.facts.spf()).authenticates:
            context.note("SPF", f"passes: the client is known as {printable(spf.domain, 255)}")
            other = await read_state(domain, context.store)
            # It may have come before from elsewhere, or from here while the DNS was down.
            first = min((first for first in (state.first, other.first) if first is not None), default=None)
            state = other._replace(first=first)
        return await self._verdict(state, now, context)

    def _has_waited(self, state: TripletState, now: float) -> bool:
        return state.first is not None and state.waited(now) >= self.delay

    def _may_pass(self, state: TripletState, now: float) -> bool:
        return state.known is not None or state.allowed or self._has_waited(state, now)

    async def _verdict(self, state: TripletState, now: float, context: Context) -> Verdict:
        if state.known is not None:
            if age(now, state.known) > self.lifetime / 20 or is_future(now, state.known):  # saves a write for each mail
                self._record_known(state.identity, context)
            return _pass("known")
        waited = state.waited(now)
        if self._may_pass(state, now):
            if state.first is not None:
                context.note(WAITED, f"{waited:.0f}s")
            self._record_known(state.identity, context)
            return _pass("passed" if self._has_waited(state, now) else "known_network")
        if state.first is None:
            if self.learning and now < await context.store.created_at() + self.learning:
                self._record_known(state.identity, context)
                return _pass("learning")
            self._record_first(state.identity, context)
        elif is_future(now, state.first):
            self._record_first(state.identity, context, anew=True)
        context.note(WAITED, f"{waited:.0f}s")
        return _early(self.delay - waited)

    def _record_known(self, identity: ClientIdentity, context: Context) -> None:
        store, value = context.store, known_value(context.clock())

        async def settle(_decision: Decision) -> None:
            await store.set(identity.triplet, value, self.lifetime)
            if self.auto_allow and (await store.hit([identity.passed]))[0] >= self.auto_allow:
                await store.set(identity.allowed, value, self.lifetime)

        context.after(settle, lambda decision: not decision.verdict.refuses)

    def _record_first(self, identity: ClientIdentity, context: Context, *, anew: bool = False) -> None:
        store, value = context.store, first_value(context.clock())

        context.after(
            lambda _decision: store.set(identity.triplet, value, self.retry_window, absent=not anew),
            lambda decision: not decision.verdict.code.startswith("5"),
        )


def _looks_suspicious(request: Request, address: Address) -> str:
    """Return why the client looks suspicious; empty if it does not."""
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
