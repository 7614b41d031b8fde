# SPDX-License-Identifier: GPL-3.0-or-later
"""`ratelimit`: limits on messages, recipients and logins in sliding windows, by client, user, sender and domain.

They are those of anvil(8) and more. Connections are counted by the same rules where the milter sees them:
connections.py.

A message counts once, by Postfix's `instance`, however many requests there are for it; a recipient counts once per
message. A request that exceeds any limit is counted by none, and the count is undone for mail that a later check
refuses. What Postfix itself refuses afterwards cannot be known here, and counts.

Recipients are counted where the check is asked first. At RCPT each is counted before it is accepted, since nobody knows
whether Postfix will ask again: a client that then gives its message up has used up its limit, and Postfix tells nobody
of that. At DATA and at the end of the message all of them are counted at once, by `recipient_count`, but for those that
were counted at RCPT. A check that stands in a list of that kind leaves a mark for it at RCPT (`Limiter.at_end`).

Among rules that count the same thing by the same words, the first that applies to the session and names that thing is
used; the simple options (`client_messages` …) come last. While the store is unavailable, each process counts alone
(`Context.alone`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
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
from gatekeeper.stores.store import CounterHit, Keys, StoreError


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


_AT_END = (Stage.DATA, Stage.END_OF_MESSAGE)
_MARK = 3600.0
"""Seconds for which it is remembered how many recipients of a message were counted at RCPT."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A thing that requests are counted by: at which stages, and the token by which each one counts only once."""

    stages: Collection[Stage]
    once: Callable[[Request], str]


def _recipients(request: Request) -> str:
    which = "\n" if request.stage in _AT_END else f" {request.recipient}"
    return f"{request.instance}{which}" if request.instance else ""


def _login(request: Request) -> str:
    client = request.client
    return f"{client.address} {client.port}" if request.sasl_user and client.address and client.port else ""


_QUANTITIES: Mapping[str, Quantity] = {
    "messages": Quantity((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE), lambda request: request.instance),
    "recipients": Quantity((Stage.RCPT, *_AT_END), _recipients),
    "logins": Quantity((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE), _login),
}
_STAGES = _QUANTITIES["messages"].stages
_AT = {stage: [(what, one) for what, one in _QUANTITIES.items() if stage in one.stages] for stage in _STAGES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limiter:
    """All rules, ready to count: the check in the policy daemon, and the source of limits for connections.py.

    The rules of one group count by the same words. `at_end` has an entry if the check stands in a list at DATA or at
    the end of a message, or in a table, whose lists are not known; who builds the lists puts it in.
    """

    name: ClassVar[str] = "ratelimit"
    needs: ClassVar[tuple[str, ...]] = ()

    mode: Mode
    exceptions: SessionPatterns
    count_refused: StrictBool
    groups: tuple[tuple[CounterRule, ...], ...]
    at_end: set[str] = field(default_factory=set)

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
        mark = self._mark(request, context)
        if request.stage in _AT_END:
            recipients = max(1, request.recipient_count) - await _sum(mark, context)
            counted = self._hits(request, context, recipients)
            mark = None
        else:
            counted = self._hits(request, context, 1)
        if not counted:
            return PASS
        tally = await Tally.of(counted, context, () if mark is None else (mark,))
        if not self.count_refused:
            _give_back_if_refused(tally, request, context)
        return await tally.verdict(context)

    def hit(self, count: CounterResult, keys: Keys, once: str = "", amount: int = 1) -> CounterHit:
        """Return the counter hit in the store for one limit."""
        most = None if self.count_refused else count.limit.count
        return CounterHit(count.key(keys), count.limit.window, amount, once, most)

    def _hits(self, request: Request, context: Context, recipients: int) -> list[tuple[CounterResult, CounterHit]]:
        """Return the hits for a request; `recipients` is how many of them it counts for."""
        once = {what: quantity.once(request) for what, quantity in _AT[request.stage]}
        if not request.sasl_user or not once["logins"]:
            del once["logins"]
        if recipients < 1:
            once.pop("recipients", None)
        amounts = {"recipients": recipients}
        counts = self.counts(once, request, context.site)
        return [
            (count, self.hit(count, context.keys, once[count.what], amounts.get(count.what, 1))) for count in counts
        ]

    def _mark(self, request: Request, context: Context) -> CounterHit | None:
        """Return what counts the recipients of this message that were counted at RCPT; None if nobody will ask."""
        if not self.at_end or not request.instance or request.stage is Stage.MAIL or not self.limits("recipients"):
            return None
        return CounterHit(context.keys("ratelimit", "of", request.instance), _MARK, once=request.recipient or "")


async def _sum(mark: CounterHit | None, context: Context) -> int:
    if mark is None:
        return 0
    reading = [mark._replace(amount=0, once="")]
    try:
        return (await context.store.hit(reading))[0]
    except StoreError:
        return (await context.alone.hit(reading))[0]


def _give_back_if_refused(tally: Tally, request: Request, context: Context) -> None:
    """Undo the count if the request is refused.

    A login still counts, and so does a message with a recipient that was accepted before (it has a queue ID), unless
    it is the message that is refused.
    """
    accepted = request.queue_id and request.stage not in _AT_END
    still_counted = ("logins", "messages") if accepted else ("logins",)
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
