# SPDX-License-Identifier: GPL-3.0-or-later
"""`ratelimit`: messages, recipients and logins in sliding windows, by client, user, sender, domains, as anvil(8) and
beyond. Connections are counted by the same rules where the milter hears of them: connections.py.

A message counts once, by Postfix's `instance`, however often it is asked about; a recipient once for its message. A
request that is over any limit counts for none, and what a later check refuses is given back. What Postfix refuses
behind our back cannot be known and counts.

Among the rules that count the same thing by the same words, the first that is for the session and names it holds; the
simple options (`client_messages` …) come last. While the store is gone each process counts alone (`Context.alone`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from gatekeeper.checks.base.always_reachable import always_reachable
from gatekeeper.checks.base.client_network import Prefix4, Prefix6
from gatekeeper.checks.limits.applies_to import (
    AUTHENTICATED,
    MYNETWORKS,
    SessionPatternList,
    SessionPatterns,
    parse_session_pattern,
    read,
)
from gatekeeper.checks.limits.counters import NAMED, CounterResult, CounterRule, Tally
from gatekeeper.checks.limits.limit import Limit, LimitRule, Limits, Simultaneous
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Mode, Verdict
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.site import Site
from gatekeeper.stores.store import CounterHit, Keys


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
    exceptions: SessionPatternList = Field(
        default=(parse_session_pattern(MYNETWORKS),),
        description="whom no limit concerns; a network spares only those who have not authenticated",
    )
    count_refused: StrictBool = Field(default=False, description="count what is refused here too, as anvil(8) does")
    rules: Mapping[str, LimitRule] = Field(default={}, description="limits by other things and for some only")


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
_AT = {stage: [(what, one) for what, one in _ASKED.items() if stage in one.stages] for stage in _STAGES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limiter:
    """All rules, ready to count: the check of the policy daemon, and what connections.py asks. The rules of a group
    count by the same words.
    """

    name: ClassVar[str] = "ratelimit"
    needs: ClassVar[tuple[str, ...]] = ()

    mode: Mode
    exceptions: SessionPatterns
    count_refused: StrictBool
    groups: tuple[tuple[CounterRule, ...], ...]

    @classmethod
    def read(cls, options: RateLimit, folder: Path) -> tuple[Self, list[Problem]]:
        """The rules of `options`, their files read (relative ones from `folder`), and what is wrong in these."""
        problems: list[Problem] = []

        def whom(words: SessionPatternList) -> SessionPatterns:
            found, wrong = read(words, folder)
            problems.extend(wrong)
            return found

        bound = [
            CounterRule(
                name=name,
                by=rule.by,
                whom=whom(rule.whom) if rule.whom else None,
                excepted=whom(rule.excepted),
                ipv4_prefix=rule.ipv4_prefix or options.ipv4_prefix,
                ipv6_prefix=rule.ipv6_prefix or options.ipv6_prefix,
                limits=rule.limits,
            )
            for name, rule in (*((f"{NAMED}{name}", rule) for name, rule in options.rules.items()), *_simple(options))
        ]
        groups: dict[tuple[object, ...], list[CounterRule]] = {}
        for rule in bound:
            same = (rule.by, rule.ipv4_prefix, rule.ipv6_prefix) if "client" in rule.by else (rule.by,)
            groups.setdefault(same, []).append(rule)
        limiter = cls(
            mode=options.mode,
            exceptions=whom(options.exceptions),
            count_refused=options.count_refused,
            groups=tuple(map(tuple, groups.values())),
        )
        return limiter, problems

    def limits(self, what: str) -> bool:
        """True if any rule limits `what`."""
        return any(rule.limits.get(what) for rules in self.groups for rule in rules)

    def counts(self, whats: Collection[str], request: Request, site: Site) -> Iterator[CounterResult]:
        """The limits on any of `whats` that hold for a request."""
        for rules in self.groups:
            whose = rules[0].whose(request)
            if whose is None:
                continue
            left = whats
            for rule in rules:
                named = [what for what in rule.counters if what in left]
                if named and rule.is_for(request, site):
                    left = [what for what in left if what not in named]
                    for what in named:
                        for limit, of in rule.counters[what]:
                            yield CounterResult(rule, what, limit, of, whose)

    def is_excepted(self, request: Request, site: Site) -> bool:
        """True if no limit concerns the session. A stolen account is used from anywhere: only its name spares it."""
        if not request.sasl_user and self.exceptions.holds_client(request, site):
            return True
        return self.exceptions.holds_names(request)

    async def check(self, request: Request, context: Context) -> Verdict:
        """Count this request, and refuse it if that is too much."""
        if request.stage not in _STAGES or always_reachable(request.recipient, context.site):
            return PASS
        if self.is_excepted(request, context.site):
            return PASS
        counted = self._hits(request, context)
        if not counted:
            return PASS
        tally = await Tally.of(counted, context)
        if not self.count_refused:
            _give_back_if_refused(tally, request, context)
        return await tally.verdict(context)

    def hit(self, count: CounterResult, keys: Keys, once: str = "") -> CounterHit:
        """What counts in the store for one limit."""
        most = None if self.count_refused else count.limit.count
        return CounterHit(count.key(keys), count.limit.window, once=once, limit=most)

    def _hits(self, request: Request, context: Context) -> list[tuple[CounterResult, CounterHit]]:
        once = {what: quantity.once(request) for what, quantity in _AT[request.stage]}
        if not request.sasl_user or not once["logins"]:
            del once["logins"]
        counts = self.counts(once, request, context.site)
        return [(count, self.hit(count, context.keys, once[count.what])) for count in counts]


def _give_back_if_refused(tally: Tally, request: Request, context: Context) -> None:
    """What is refused does not count. A message of which a recipient was accepted before (it has a queue id) does, and
    so does a login.
    """
    kept = ("logins", "messages") if request.queue_id else ("logins",)
    context.after(lambda decision: tally.give_back(context, kept), lambda decision: decision.verdict.refuses)


def _simple(options: RateLimit) -> Iterator[tuple[str, LimitRule]]:
    """The options without a rule of their own, as rules."""
    client = {
        "messages": options.client_messages,
        "recipients": options.client_recipients,
    }
    at_connect = {"connections": options.client_connections, "simultaneous": options.client_simultaneous}
    user = {"messages": options.user_messages, "recipients": options.user_recipients}
    yield "user", LimitRule.model_validate({"by": "user", **user})
    yield "client", LimitRule.model_validate({"by": "client", "except": AUTHENTICATED, **client})
    if any(at_connect.values()):
        yield "connect", LimitRule.model_validate({"by": "client", **at_connect})
