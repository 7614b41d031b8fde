# SPDX-License-Identifier: GPL-3.0-or-later
"""`ratelimit`: messages, recipients and logins in sliding windows, by client, user, sender, domains, as anvil(8) and
beyond. Connections are counted by the same rules where the milter hears of them: connections.py.

A message counts once, by Postfix's `instance`, however often it is asked about; a recipient once for its message. A
request that is over any limit counts for none, and what a later check refuses is given back. What Postfix refuses
behind our back cannot be known and counts.

Among the rules that count the same thing by the same words, the first that is for the session and names it holds; the
simple options (`client_messages` …) come last. While the store is gone each process counts alone (`Context.alone`).
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from gatekeeper.checks.limit import Limit, Limits, Rule, Simultaneous
from gatekeeper.checks.opinion import always_reachable, unless_store_fails
from gatekeeper.checks.prefix import Prefix4, Prefix6, network_of
from gatekeeper.checks.whom import AUTHENTICATED, MYNETWORKS, Whom, Words, parse_word, read
from gatekeeper.pipeline import Context, Site
from gatekeeper.problem import Problem
from gatekeeper.request import Request, Stage, domain_of
from gatekeeper.store import Hit, Keys, Store, StoreError
from gatekeeper.units import duration_text
from gatekeeper.verdict import PASS, Decision, Mode, Verdict, printable, reject

_ERRORS = {
    "messages": "too much mail",
    "recipients": "too many recipients",
    "logins": "too many logins",
    "connections": "connection rate limit exceeded",
    "simultaneous": "too many connections",
}
"""anvil's words (smtpd.c)."""


class RateLimit(BaseModel):
    """`[checks.ratelimit]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field(
        default=Mode.ENFORCE,
        description="enforce: the verdict counts; observe: it is only written down; off: it is not asked for",
    )
    client_messages: Limits = Field(
        default=(Limit(300, 60.0),), description='messages of one client network: limits as "300/1m", all of which hold'
    )
    client_recipients: Limits = Field(
        default=(Limit(1500, 60.0),), description="recipients of all messages of one client network"
    )
    user_messages: Limits = Field(
        default=(Limit(100, 600.0), Limit(2000, 86400.0)), description="messages of one authenticated user"
    )
    user_recipients: Limits = Field(
        default=(Limit(500, 600.0), Limit(5000, 86400.0)), description="recipients of all messages of one such user"
    )
    client_connections: Limits = Field(
        default=(), description="new connections of one client network, counted by the milter; none: not limited"
    )
    client_simultaneous: Simultaneous = Field(
        default=0, description="connections that one client network may have at once, counted by the milter; 0: any"
    )
    ipv4_prefix: Prefix4 = Field(default=32, description="bits of an IPv4 address that make one client, as in anvil(8)")
    ipv6_prefix: Prefix6 = Field(default=84, description="bits of an IPv6 address that make one client, as in anvil(8)")
    exceptions: Words = Field(
        default=(parse_word(MYNETWORKS),),
        description="whom no limit concerns; a network spares only those who have not authenticated",
    )
    count_refused: bool = Field(default=False, description="count what is refused here too, as anvil(8) does")
    rules: Mapping[str, Rule] = Field(default={}, description="limits by other things and for some only")


@dataclass(frozen=True, slots=True)
class Bound:
    """A rule with its words and files read. `what` it limits has its limits, none of them if it says so."""

    name: str
    by: tuple[str, ...]
    whom: Whom | None
    excepted: Whom
    ipv4_prefix: int
    ipv6_prefix: int
    limits: Mapping[str, tuple[Limit, ...]]

    def is_for(self, request: Request, site: Site) -> bool:
        """True if the rule is for this session."""
        return (self.whom is None or self.whom.holds(request, site)) and not self.excepted.holds(request, site)

    def whose(self, request: Request) -> tuple[str, ...] | None:
        """What makes the counter of this session; None if one of the rule's words is not known of it."""
        parts = tuple(self._part(word, request) for word in self.by)
        return parts if all(parts) else None

    def _part(self, word: str, request: Request) -> str:
        match word:
            case "client":
                address = request.client.address
                return "" if address is None else network_of(address, self.ipv4_prefix, self.ipv6_prefix)
            case "user":
                return request.sasl_user.lower()
            case "sender":
                return (request.sender or "").lower()
            case "sender_domain":
                return domain_of(request.sender or "")
        return domain_of(request.recipient or "")


@dataclass(frozen=True, slots=True)
class Count:
    """One limit that holds for a request, and the counter that it is about."""

    rule: Bound
    what: str
    limit: Limit
    whose: tuple[str, ...]

    def key(self, keys: Keys) -> str:
        """The counter's key. It does not depend on the limit: a reload that changes a number forgets nothing."""
        by = " ".join(self.rule.by)
        return keys("ratelimit", self.rule.name, by, self.what, f"{self.limit.window:g}", *self.whose)

    @property
    def counter(self) -> str:
        """What is counted, in words: `messages from alice to example.com`."""
        return f"{self.what} {self._of()}"

    def refusal(self, wait: float) -> Verdict:
        """anvil's refusal, with the limit and, unless it is 0, the seconds to wait."""
        text = f"Error: {_ERRORS[self.what]} {self._of()}: the limit is {self.limit}; try again {_when(wait)}"
        code, enhanced = ("421", "4.7.0") if self.what in ("connections", "simultaneous") else ("450", "4.7.1")
        return reject(f"ratelimit.{self.what}", code, enhanced, text)

    def _of(self) -> str:
        words = list(zip(self.rule.by, self.whose, strict=True))
        start = [printable(part, 80) for word, part in words if word != "recipient_domain"]
        to = [printable(part, 80) for word, part in words if word == "recipient_domain"]
        return " ".join((["from", ", ".join(start)] if start else []) + (["to", *to] if to else []))


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is counted of a request: at which stages, and by which token a single time."""

    stages: Collection[Stage]
    once: Callable[[Request], str]


def _login(request: Request) -> str:
    client = request.client
    return f"{client.address} {client.port}" if request.sasl_user and client.address and client.port else ""


_ASKED: Mapping[str, Quantity] = {
    "messages": Quantity((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE), lambda request: request.instance),
    "recipients": Quantity((Stage.RCPT,), lambda r: f"{r.instance} {r.recipient}" if r.instance else ""),
    "logins": Quantity((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE), _login),
}
_STAGES = _ASKED["messages"].stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Limiter:
    """All rules, ready to count: the check of the policy daemon, and what connections.py asks. `groups` holds, by what
    is counted, the rules that count it by the same words."""

    name: ClassVar[str] = "ratelimit"
    needs: ClassVar[tuple[str, ...]] = ()

    mode: Mode
    exceptions: Whom
    count_refused: bool
    groups: Mapping[str, tuple[tuple[Bound, ...], ...]]

    @classmethod
    def read(cls, options: RateLimit, folder: Path) -> tuple[Self, list[Problem]]:
        """The rules of `options`, their files read (relative ones from `folder`), and what is wrong in these."""
        problems: list[Problem] = []

        def whom(words: Words) -> Whom:
            found, wrong = read(words, folder)
            problems.extend(wrong)
            return found

        bound = [
            Bound(
                name=name,
                by=rule.by,
                whom=whom(rule.whom) if rule.whom else None,
                excepted=whom(rule.excepted),
                ipv4_prefix=rule.ipv4_prefix or options.ipv4_prefix,
                ipv6_prefix=rule.ipv6_prefix or options.ipv6_prefix,
                limits=rule.limits,
            )
            for name, rule in (*((f"rule {name}", rule) for name, rule in options.rules.items()), *_simple(options))
        ]
        groups: dict[str, dict[tuple[object, ...], list[Bound]]] = {}
        for rule in bound:
            same = (rule.by, rule.ipv4_prefix, rule.ipv6_prefix) if "client" in rule.by else (rule.by,)
            for what in rule.limits:
                groups.setdefault(what, {}).setdefault(same, []).append(rule)
        limiter = cls(
            mode=options.mode,
            exceptions=whom(options.exceptions),
            count_refused=options.count_refused,
            groups={what: tuple(map(tuple, rules.values())) for what, rules in groups.items()},
        )
        return limiter, problems

    def counts(self, what: str, request: Request, site: Site) -> Iterator[Count]:
        """The limits on `what` that hold for a request."""
        for rules in self.groups.get(what, ()):
            for rule in rules:
                whose = rule.whose(request)
                if whose is not None and rule.is_for(request, site):
                    yield from (Count(rule, what, limit, whose) for limit in rule.limits[what])
                    break

    def is_excepted(self, request: Request, site: Site) -> bool:
        """True if no limit concerns the session. A stolen account is used from anywhere: only its name spares it."""
        if not request.sasl_user and self.exceptions.holds_client(request, site):
            return True
        return self.exceptions.holds_names(request)

    async def check(self, request: Request, context: Context) -> Verdict:
        """Count this request, and refuse it if that is too much."""
        if request.stage not in _STAGES or always_reachable(request.recipient, context.site):
            return PASS
        counted = list(self._hits(request, context))
        if not counted:
            return PASS
        hits = [hit for _, hit in counted]
        alone, sums = await _hit(context, hits)
        self._give_back_if_refused(request, context, counted, alone=alone)
        for (count, _), sum_ in zip(counted, sums, strict=True):
            context.note(count.counter, f"{sum_} of {count.limit}")
        over = [
            (count, hit, sum_) for (count, hit), sum_ in zip(counted, sums, strict=True) if sum_ > count.limit.count
        ]
        return await _refuse(context.alone if alone else context.store, over) if over else PASS

    def _hits(self, request: Request, context: Context) -> Iterator[tuple[Count, Hit]]:
        if self.is_excepted(request, context.site):
            return
        for what, quantity in _ASKED.items():
            if request.stage not in quantity.stages:
                continue
            once = quantity.once(request)
            if what == "logins" and not once:
                continue
            for count in self.counts(what, request, context.site):
                most = None if self.count_refused else count.limit.count
                yield count, Hit(count.key(context.keys), count.limit.window, once=once, most=most)

    def _give_back_if_refused(
        self, request: Request, context: Context, counted: Sequence[tuple[Count, Hit]], *, alone: bool
    ) -> None:
        """What is refused does not count. A message of which a recipient was accepted before (it has a queue id) does,
        and so does a login."""
        kept = ("logins", "messages") if request.queue_id else ("logins",)
        hits = [hit for count, hit in counted if count.what not in kept]

        async def settle(decision: Decision) -> None:
            if decision.verdict.refuses:
                await (context.alone if alone else context.store).unhit(hits)

        if hits and not self.count_refused:
            context.after(unless_store_fails(settle))


def _simple(options: RateLimit) -> Iterator[tuple[str, Rule]]:
    """The options without a rule of their own, as rules."""
    client = {
        "messages": options.client_messages,
        "recipients": options.client_recipients,
    }
    at_connect = {"connections": options.client_connections, "simultaneous": options.client_simultaneous}
    user = {"messages": options.user_messages, "recipients": options.user_recipients}
    yield "user", Rule.model_validate({"by": "user", **user})
    yield "client", Rule.model_validate({"by": "client", "except": AUTHENTICATED, **client})
    if any(at_connect.values()):
        yield "connect", Rule.model_validate({"by": "client", **at_connect})


async def _hit(context: Context, hits: Sequence[Hit]) -> tuple[bool, list[int]]:
    """Count in the store or, while it is gone, alone; whether alone, and the sums."""
    try:
        return False, await context.store.hit(hits)
    except StoreError as error:
        context.note("store", f"{error}; this process counts alone")
        return True, await context.alone.hit(hits)


async def _refuse(store: Store, over: Sequence[tuple[Count, Hit, int]]) -> Verdict:
    """The refusal by that limit which lasts longest."""
    waits = []
    for count, hit, sum_ in over:
        waits.append((await wait(store, hit, sum_ - count.limit.count), count))
    longest, count = max(waits, key=lambda found: found[0])
    return count.refusal(longest if longest < math.inf else 0.0)


async def wait(store: Store, hit: Hit, excess: int) -> float:
    """Seconds until `excess` of what `hit` counts has left its window; infinite if that is not known."""
    try:
        for leaves, amount in await store.spread(hit):
            excess -= amount
            if excess <= 0:
                return leaves
    except StoreError:
        pass
    return math.inf


def _when(seconds: float) -> str:
    """How long to wait, rounded up to what a person would say."""
    if not seconds:
        return "later"
    unit = next(unit for unit, most in ((1.0, 120.0), (60.0, 7200.0), (3600.0, math.inf)) if seconds <= most)
    return f"in {duration_text(math.ceil(seconds / unit) * unit)}"
