# SPDX-License-Identifier: GPL-3.0-or-later
"""`greylist`: what a stranger sends for the first time waits (RFC 6647). Software that does not retry goes away.

A triplet of client network, sender and recipient is deferred until `delay` has passed since it was first seen, must
come back within `retry_window`, and is then known for `lifetime` since its last mail; a network that has shown
`auto_allow` such triplets is known as a whole. Unless told otherwise only suspicious clients are asked to wait:
without a confirmed name, with one that looks dynamic, or on one of `lists`. In a store's first days (`learning`)
nobody waits, but what comes is learnt. Authenticated users, mynetworks, and our postmaster and abuse mailboxes never
wait. Nothing is written before the decision is known, and nothing about mail that is refused for good.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from gatekeeper.checks.dnslist import Site, ask_all
from gatekeeper.checks.dynamic import looks_dynamic
from gatekeeper.checks.opinion import Opinion, always_reachable, unless_store_fails
from gatekeeper.checks.prefix import Prefix4, Prefix6, network_of
from gatekeeper.dnslists import Kind, Use
from gatekeeper.pipeline import Context
from gatekeeper.request import UNKNOWN, Address, Request, Stage
from gatekeeper.store import Hit, Wants
from gatekeeper.units import Duration, duration_text
from gatekeeper.verdict import PASS, Decision, Outcome, Verdict, defer_if_permit

_FIRST_SEEN, _KNOWN = b"first ", b"known "
"""What a triplet's value says, before a time in seconds since the epoch."""


class Greylist(Opinion):
    """450 4.7.1 to a client that has to try again, with how long it has to wait."""

    name: ClassVar[str] = "greylist"
    needs: ClassVar[tuple[str, ...]] = ("sender", "recipient")

    delay: Duration = Field(default=300.0, description="how long the first mail of a triplet has to wait")
    retry_window: Duration = Field(default=172800.0, description="how long a client may take to try again")
    lifetime: Duration = Field(
        default=3110400.0, description="how long a triplet or network is known after its last mail"
    )
    auto_allow: int = Field(
        default=5, ge=0, description="known triplets that make the whole client network known; 0: never"
    )
    clients: Literal["suspicious", "all"] = Field(
        default="suspicious",
        description="suspicious: only clients without a confirmed name, with a dynamic-looking one, or on `lists`; all",
    )
    lists: tuple[Site, ...] = Field(
        default=(), description="DNS lists that make a client suspicious: those too broad to refuse by"
    )
    learning: Duration = Field(default=86400.0, description="how long after an empty store was opened nobody waits")
    ipv4_prefix: Prefix4 = Field(default=24, description="bits of an IPv4 address that make one client network")
    ipv6_prefix: Prefix6 = Field(default=64, description="bits of an IPv6 address that make one client network")

    def lists_asked(self) -> Iterator[Use]:
        """The lists, to be watched."""
        if self.clients == "suspicious":
            yield from ((site, Kind.ADDRESS) for site in self.lists)

    def wants(self, request: Request, context: Context) -> Wants | None:
        """All that may be looked up, unless it is plain that nothing will be."""
        address = self._whom(request, context)
        if address is None:
            return None
        if self.clients == "suspicious" and not self.lists and not _looks_suspicious(request.client.name, address):
            return None
        triplet, passed = self._keys(request, self._network(address), context)
        return Wants((triplet,), (_peek(passed),) if self.auto_allow else (), born=self.learning > 0)

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Wait, or not and why not."""
        address = self._whom(request, context)
        if address is None:
            return PASS
        if self.clients == "suspicious":
            why = await self._suspicion(request, address, context)
            context.note("client", why or "not suspicious")
            if not why:
                return PASS
        return await self._look_up(request, self._network(address), context)

    def _whom(self, request: Request, context: Context) -> Address | None:
        """The client, if it is one that may have to wait."""
        address = request.client.address
        if request.stage is not Stage.RCPT or request.sasl_user or context.site.is_internal(address):
            return None
        return None if always_reachable(request.recipient, context.site) else address

    def _network(self, address: Address) -> str:
        return network_of(address, self.ipv4_prefix, self.ipv6_prefix)

    def _keys(self, request: Request, network: str, context: Context) -> tuple[str, Hit]:
        """The triplet's key, and what counts it for its network once it has passed."""
        triplet = context.keys("greylist", network, (request.sender or "").lower(), (request.recipient or "").lower())
        return triplet, Hit(context.keys("greylist-network", network), self.lifetime, once=triplet)

    async def _suspicion(self, request: Request, address: Address, context: Context) -> str:
        if request.client.name == UNKNOWN:
            return "has no confirmed name"
        if looks_dynamic(request.client.name, address):
            return "has a name that looks dynamic"
        if self.lists and (hits := await ask_all(context, self.lists, address)):
            return f"is listed on {hits[0].list.shown}"
        return ""

    async def _look_up(self, request: Request, network: str, context: Context) -> Verdict:
        now = context.clock()
        triplet, passed = self._keys(request, network, context)
        value = await context.store.get(triplet)
        if value is not None and value.startswith(_KNOWN):
            if now - _time(value) > self.lifetime / 20:  # not a write for each mail
                self._remember(triplet, passed, context)
            return _pass("known")
        if value is not None:
            waited = now - _time(value)
            context.note("first seen", f"{duration_text(round(max(waited, 0)))} ago")
            if waited >= self.delay:
                self._remember(triplet, passed, context)
                return _pass("passed")
            return _early(min(self.delay - waited, self.delay))
        if self.auto_allow and await self._is_known(passed, context):
            self._remember(triplet, passed, context)
            return _pass("known_network")
        if self.learning and now < await context.store.born() + self.learning:
            self._remember(triplet, passed, context)
            return _pass("learning")
        self._note_first(triplet, context)
        return _early(self.delay)

    async def _is_known(self, passed: Hit, context: Context) -> bool:
        """True if the network has shown enough triplets; an amount of 0 only reads."""
        [count] = await context.store.hit([_peek(passed)])
        context.note("known triplets of the network", str(count))
        return count >= self.auto_allow

    def _remember(self, triplet: str, passed: Hit, context: Context) -> None:
        store, value = context.store, _KNOWN + str(int(context.clock())).encode()

        async def settle(decision: Decision) -> None:
            if not decision.verdict.refuses:
                await store.set(triplet, value, self.lifetime)
                if self.auto_allow:
                    await store.hit([passed])

        context.after(unless_store_fails(settle))

    def _note_first(self, triplet: str, context: Context) -> None:
        store, value = context.store, _FIRST_SEEN + str(int(context.clock())).encode()

        async def settle(decision: Decision) -> None:
            if not decision.verdict.code.startswith("5"):
                await store.set(triplet, value, self.retry_window, absent=True)

        context.after(unless_store_fails(settle))


def _peek(hit: Hit) -> Hit:
    """Asks for the sum and counts nothing."""
    return Hit(hit.key, hit.window, amount=0)


def _looks_suspicious(name: str, address: Address) -> bool:
    return name == UNKNOWN or looks_dynamic(name, address)


def _time(value: bytes) -> float:
    """The time in a triplet's value; a damaged one counts as the beginning of time."""
    digits = value[len(_KNOWN) :]
    return float(digits) if digits.isdigit() else 0.0


def _pass(why: str) -> Verdict:
    return Verdict(Outcome.PASS, f"greylist.{why}")


def _early(wait: float) -> Verdict:
    minutes = max(1, -int(-wait // 60))
    text = f"Greylisted: please try again in {minutes} minute{'s' if minutes > 1 else ''}"
    return defer_if_permit("greylist.early", "4.7.1", text)
