# SPDX-License-Identifier: GPL-3.0-or-later
"""Counting one request by the rules: which counters it has, their values, and the reply if one exceeds its limit.

ratelimit.py and connections.py decide what is counted when.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple, Self

from gatekeeper.checks.base.client_network import network_of
from gatekeeper.checks.limits.applies_to import SessionPatterns
from gatekeeper.checks.limits.limit import Limit
from gatekeeper.core.request import Request, domain_of
from gatekeeper.core.units import duration_text
from gatekeeper.core.verdict import PASS, Verdict, printable, reject
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.site import Site
from gatekeeper.stores.store import CounterHit, Keys, Store, StoreError

_REPLY_TEXTS = {
    "messages": "too much mail",
    "recipients": "too many recipients",
    "logins": "too many logins",
    "connections": "too many connections",
    "simultaneous": "too many connections",
}
"""Postfix's words for limits of anvil(8) (smtpd.c)."""
RULE_PREFIX = "rule "
"""Beginning of the names of configured rules; the rules that the simple options make do not have it."""
_COUNTER_NAMES = {"connections": "new connections", "simultaneous": "simultaneous connections"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterRule:
    """A rule with its patterns loaded.

    `limits` are by what they count; no limits under a name mean that the rule leaves this unlimited.
    """

    name: str
    by: tuple[str, ...]
    applies_to: SessionPatterns | None
    excepted: SessionPatterns
    ipv4_prefix: int
    ipv6_prefix: int
    limits: Mapping[str, tuple[Limit, ...]]
    counters: Mapping[str, tuple[tuple[Limit, str], ...]] = field(init=False, repr=False)
    """The limits, each with an ID that tells its counters from those of all other limits."""

    def __post_init__(self) -> None:
        rule_id = "\n".join((self.name, " ".join(self.by)))
        counters = {
            what: tuple((limit, f"{rule_id}\n{what}\n{limit.window:g}") for limit in limits)
            for what, limits in self.limits.items()
        }
        object.__setattr__(self, "counters", counters)

    def is_for(self, request: Request, site: Site) -> bool:
        """Return whether the rule applies to this session."""
        if self.applies_to is not None and not self.applies_to.matches(request, site):
            return False
        return not self.excepted.matches(request, site)

    def by_values(self, request: Request) -> tuple[str, ...] | None:
        """Return the value of each word of `by` for this request; None if one is not known."""
        values = []
        for word in self.by:
            value = self._by_value(word, request)
            if not value:
                return None
            values.append(value)
        return tuple(values)

    def _by_value(self, word: str, request: Request) -> str:
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


class CounterResult(NamedTuple):
    """One limit that applies to a request, and the counter for it: `counter_id` with `by_values`."""

    rule: CounterRule
    what: str
    limit: Limit
    counter_id: str
    by_values: tuple[str, ...]

    def key(self, keys: Keys) -> str:
        """Return the counter's key, without the limit itself, so that a reload with a new limit keeps the count."""
        return _key(keys, self.counter_id, self.by_values)

    @property
    def counter(self) -> str:
        """What is counted, in words: `messages from alice to example.com`."""
        return f"{_COUNTER_NAMES.get(self.what, self.what)} {self._from_to()}"

    def progress(self, sum_: int) -> str:
        """Return how far the counter is: `3 of 100 in 10m`, with the name of a configured rule."""
        name = f" ({self.rule.name})" if self.rule.name.startswith(RULE_PREFIX) else ""
        return f"{sum_} of {self.limit}{name}"

    def refusal(self, wait: float = math.inf, amount: int = 1) -> Verdict:
        """Return Postfix's refusal, with the limit and how long to wait; `wait` is in seconds, infinite if unknown.

        Of a request that counts for more than ever fits, it says how many.
        """
        what = f"{_REPLY_TEXTS[self.what]} {self._from_to()}"
        never = 1 < amount > self.limit.count
        retry = f"this message has {amount}" if never else f"try again {_retry_text(wait)}"
        text = f"Error: {what}: the limit is {self.limit}; {retry}"
        code, enhanced = ("421", "4.7.0") if self.what in ("connections", "simultaneous") else ("450", "4.7.1")
        return reject(f"ratelimit.{self.what}", code, enhanced, text)

    def _from_to(self) -> str:
        words = list(zip(self.rule.by, self.by_values, strict=True))
        source = [printable(value, 80) for word, value in words if word != "recipient_domain"]
        to = [printable(value, 80) for word, value in words if word == "recipient_domain"]
        return " ".join((["from", ", ".join(source)] if source else []) + (["to", *to] if to else []))


def _describe(count: CounterResult, sum_: int) -> tuple[str, str]:
    return count.counter, count.progress(sum_)


def _key(keys: Keys, counter_id: str, by_values: tuple[str, ...]) -> str:
    known = sum(map(len, by_values)) <= _MAX_CACHED
    return _known_key(keys, counter_id, by_values) if known else _make_key(keys, counter_id, by_values)


def _make_key(keys: Keys, counter_id: str, by_values: tuple[str, ...]) -> str:
    return keys("ratelimit", counter_id, *by_values)


_known_key = lru_cache(maxsize=4096)(_make_key)  # most clients send more than once
_MAX_CACHED = 1024
"""Characters of what a counter is by, so that its key is kept: strangers choose how long a sender is."""


class Tally(NamedTuple):
    """The limits by which one request was counted, each with its counter hit, and the resulting sums.

    `marks` were counted besides, without a limit. `alone` is true if the store was unavailable and this process counted
    by itself.
    """

    counts: Sequence[CounterResult]
    hits: Sequence[CounterHit]
    sums: Sequence[int]
    marks: Sequence[CounterHit]
    alone: bool

    @classmethod
    async def of(
        cls,
        counted: Sequence[tuple[CounterResult, CounterHit]],
        context: Context,
        marks: Sequence[CounterHit] = (),
    ) -> Self:
        """Count a request. If it exceeds any of the limits, none of them counts it."""
        counts, hits = [count for count, _ in counted], [hit for _, hit in counted]
        alone = False
        try:
            sums = await context.store.hit([*hits, *marks]) if hits else []
        except StoreError as error:
            context.note("store", f"{error}; this process counts alone")
            alone, sums = True, await context.alone.hit([*hits, *marks])
        sums = sums[: len(hits)]
        for count, sum_ in zip(counts, sums, strict=True):
            context.note_later(partial(_describe, count, sum_))
        return cls(counts, hits, sums, marks, alone)

    async def verdict(self, context: Context) -> Verdict:
        """Return the refusal by the exceeded limit with the longest wait; PASS if none is exceeded."""
        waits: list[tuple[float, CounterResult, int]] = []
        for count, hit, sum_ in zip(self.counts, self.hits, self.sums, strict=True):
            if sum_ > count.limit.count:
                wait = await _seconds_to_wait(self._store(context), hit, sum_ - count.limit.count)
                waits.append((wait, count, hit.amount))
        if not waits:
            return PASS
        longest, count, amount = max(waits, key=lambda found: found[0])
        return count.refusal(longest, amount)

    async def give_back(self, context: Context, without: Sequence[str] = ()) -> None:
        """Undo the count, except by limits on one of `without`. Raises StoreError.

        What did not fit was not counted, but by its token the same message may have been before.
        """
        fits = all(hit.limit is None or sum_ <= hit.limit for hit, sum_ in zip(self.hits, self.sums, strict=True))
        hits = [hit for count, hit in zip(self.counts, self.hits, strict=True) if count.what not in without]
        hits = [hit for hit in (*hits, *self.marks) if fits or hit.once]
        if hits:
            await self._store(context).unhit(hits)

    def _store(self, context: Context) -> Store:
        return context.alone if self.alone else context.store


async def _seconds_to_wait(store: Store, hit: CounterHit, excess: int) -> float:
    """Return the seconds until `excess` of what `hit` counts has left its window; infinity if that is not known."""
    try:
        for leaves, amount in await store.expirations(hit):
            excess -= amount
            if excess <= 0:
                return leaves
    except StoreError:
        pass
    return math.inf


def _retry_text(seconds: float) -> str:
    """Return in words when to try again, rounded up as a person would say it."""
    if seconds == math.inf:
        return "later"
    unit = next(unit for unit, most in ((1.0, 120.0), (60.0, 7200.0), (3600.0, math.inf)) if seconds <= most)
    return f"in {duration_text(math.ceil(seconds / unit) * unit)}"
