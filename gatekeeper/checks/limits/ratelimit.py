# SPDX-License-Identifier: GPL-3.0-or-later
"""`ratelimit`: limits on messages, recipients and logins in sliding windows, by client, user, sender and domain.

They are those of anvil(8) and more. Connections are counted by the same rules where the milter sees them:
connections.py.

A message counts once, by Postfix's `instance`, however many requests there are for it; a recipient counts once per
message. A request that exceeds any limit is counted by none, and the count is undone for mail that a later check
refuses. What Postfix itself refuses afterwards cannot be known here, and counts.

Among rules that count the same thing by the same words, the first that applies to the session and names that thing is
used; the simple options (`client_messages` …) come last. While the store is unavailable, each process counts alone
(`Context.alone`).
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
    load_patterns,
    parse_session_pattern,
)
from gatekeeper.checks.limits.counters import RULE_PREFIX, CounterResult, CounterRule, Tally
from gatekeeper.checks.limits.limit import Limit, LimitRule, Limits, Simultaneous
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Mode, Verdict
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.site import Site
from gatekeeper.stores.store import CounterHit, Keys


class RateLimit(BaseModel):
    """The options of `[checks.ratelimit]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field(
        default=Mode.ENFORCE,
        description="enforce: the verdict counts; observe: it is only logged; off: the check is not run",
    )
    client_messages: Limits = Field(
        default=(Limit(300, 60.0),),
        description='messages of one client network: limits as "300/1m", all of which apply',
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
        default=(), description="new connections of one client network, counted by the milter; empty: no limit"
    )
    client_simultaneous: Simultaneous = Field(
        default=0, description="simultaneous connections of one client network, counted by the milter; 0: no limit"
    )
    ipv4_prefix: Prefix4 = Field(default=32, description="bits of an IPv4 address that make one client, as in anvil(8)")
    ipv6_prefix: Prefix6 = Field(default=84, description="bits of an IPv6 address that make one client, as in anvil(8)")
    exceptions: SessionPatternList = Field(
        default=(parse_session_pattern(MYNETWORKS),),
        description="whom no limit applies to; a network exempts only clients that have not authenticated",
    )
    count_refused: StrictBool = Field(default=False, description="also count what is refused here, as anvil(8) does")
    rules: Mapping[str, LimitRule] = Field(default={}, description="limits by other things, or for some sessions only")

    @property
    def counts_users(self) -> bool:
        """Whether something is counted by users who have logged in."""
        by_user = any("user" in rule.by for rule in self.rules.values())
        return bool(self.user_messages or self.user_recipients or by_user)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A thing that requests are counted by: at which stages, and the token by which each one counts only once."""

    stages: Collection[Stage]
    once: Callable[[Request], str]


def _login(request: Request) -> str:
    client = request.client
    return f"{client.address} {client.port}" if request.sasl_user and client.address and client.port else ""


_QUANTITIES: Mapping[str, Quantity] = {
    "messages": Quantity((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE), lambda request: request.instance),
    "recipients": Quantity((Stage.RCPT,), lambda r: f"{r.instance} {r.recipient}" if r.instance else ""),
    "logins": Quantity((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE), _login),
}
_STAGES = _QUANTITIES["messages"].stages
_AT = {stage: [(what, one) for what, one in _QUANTITIES.items() if stage in one.stages] for stage in _STAGES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limiter:
    """All rules, ready to count: the check in the policy daemon, and the source of limits for connections.py.

    The rules of one group count by the same words.
    """

    name: ClassVar[str] = "ratelimit"
    needs: ClassVar[tuple[str, ...]] = ()

    mode: Mode
    exceptions: SessionPatterns
    count_refused: StrictBool
    groups: tuple[tuple[CounterRule, ...], ...]

    @classmethod
    def read(cls, options: RateLimit, folder: Path) -> tuple[Self, list[Problem]]:
        """Return the rules of `options` with their files read (relative paths start at `folder`), and the mistakes."""
        problems: list[Problem] = []

        def load(patterns: SessionPatternList) -> SessionPatterns:
            loaded, mistakes = load_patterns(patterns, folder)
            problems.extend(mistakes)
            return loaded

        counter_rules = [
            CounterRule(
                name=name,
                by=rule.by,
                applies_to=load(rule.applies_to) if rule.applies_to else None,
                excepted=load(rule.excepted),
                ipv4_prefix=rule.ipv4_prefix or options.ipv4_prefix,
                ipv6_prefix=rule.ipv6_prefix or options.ipv6_prefix,
                limits=rule.limits,
            )
            for name, rule in (
                *((f"{RULE_PREFIX}{name}", rule) for name, rule in options.rules.items()),
                *_simple_rules(options),
            )
        ]
        groups: dict[tuple[object, ...], list[CounterRule]] = {}
        for rule in counter_rules:
            group = (rule.by, rule.ipv4_prefix, rule.ipv6_prefix) if "client" in rule.by else (rule.by,)
            groups.setdefault(group, []).append(rule)
        limiter = cls(
            mode=options.mode,
            exceptions=load(options.exceptions),
            count_refused=options.count_refused,
            groups=tuple(map(tuple, groups.values())),
        )
        return limiter, problems

    def limits(self, what: str) -> bool:
        """Return whether any rule limits `what`."""
        return any(rule.limits.get(what) for rules in self.groups for rule in rules)

    def counts(self, whats: Collection[str], request: Request, site: Site) -> Iterator[CounterResult]:
        """Yield the limits on any of `whats` that apply to a request."""
        for rules in self.groups:
            by_values = rules[0].by_values(request)
            if by_values is None:
                continue
            left = whats
            for rule in rules:
                named = [what for what in rule.counters if what in left]
                if named and rule.is_for(request, site):
                    left = [what for what in left if what not in named]
                    for what in named:
                        for limit, counter_id in rule.counters[what]:
                            yield CounterResult(rule, what, limit, counter_id, by_values)

    def is_excepted(self, request: Request, site: Site) -> bool:
        """Return whether no limit applies to the session.

        A stolen account can be used from anywhere, also from an excepted network: so an authenticated session is only
        excepted by name.
        """
        if not request.sasl_user and self.exceptions.matches_client(request, site):
            return True
        return self.exceptions.matches_names(request)

    async def check(self, request: Request, context: Context) -> Verdict:
        """Count this request, and refuse it if it exceeds a limit."""
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
        """Return the counter hit in the store for one limit."""
        most = None if self.count_refused else count.limit.count
        return CounterHit(count.key(keys), count.limit.window, once=once, limit=most)

    def _hits(self, request: Request, context: Context) -> list[tuple[CounterResult, CounterHit]]:
        once = {what: quantity.once(request) for what, quantity in _AT[request.stage]}
        if not request.sasl_user or not once["logins"]:
            del once["logins"]
        counts = self.counts(once, request, context.site)
        return [(count, self.hit(count, context.keys, once[count.what])) for count in counts]


def _give_back_if_refused(tally: Tally, request: Request, context: Context) -> None:
    """Undo the count if the request is refused.

    A login still counts, and so does a message with a recipient that was accepted before (it has a queue ID).
    """
    still_counted = ("logins", "messages") if request.queue_id else ("logins",)
    context.after(lambda _decision: tally.give_back(context, still_counted), lambda decision: decision.verdict.refuses)


def _simple_rules(options: RateLimit) -> Iterator[tuple[str, LimitRule]]:
    """Yield the simple options, such as `client_messages`, as rules with names."""
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
