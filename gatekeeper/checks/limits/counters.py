# SPDX-License-Identifier: GPL-3.0-or-later
"""How one request is counted by the rules: which counters are its, what they came to, and what is said if that is too
much. ratelimit.py and connections.py say what is counted when.
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

_ERRORS = {
    "messages": "too much mail",
    "recipients": "too many recipients",
    "logins": "too many logins",
    "connections": "too many connections",
    "simultaneous": "too many connections",
}
"""anvil's words (smtpd.c)."""
NAMED = "rule "
"""What the names of rules begin with, other than of those that the simple options make."""
_COUNTERS = {"connections": "new connections", "simultaneous": "simultaneous connections"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterRule:
    """A rule with its words and files read. `what` it limits has its limits, none of them if it says so."""

    name: str
    by: tuple[str, ...]
    whom: SessionPatterns | None
    excepted: SessionPatterns
    ipv4_prefix: int
    ipv6_prefix: int
    limits: Mapping[str, tuple[Limit, ...]]
    counters: Mapping[str, tuple[tuple[Limit, str], ...]] = field(init=False, repr=False)
    """The limits, each with what tells its counters from those of all others."""

    def __post_init__(self) -> None:
        of = "\n".join((self.name, " ".join(self.by)))
        counters = {
            what: tuple((limit, f"{of}\n{what}\n{limit.window:g}") for limit in limits)
            for what, limits in self.limits.items()
        }
        object.__setattr__(self, "counters", counters)

    def is_for(self, request: Request, site: Site) -> bool:
        """True if the rule is for this session."""
        return (self.whom is None or self.whom.holds(request, site)) and not self.excepted.holds(request, site)

    def whose(self, request: Request) -> tuple[str, ...] | None:
        """What makes the counter of this session; None if one of the rule's words is not known of it."""
        parts = []
        for word in self.by:
            part = self._part(word, request)
            if not part:
                return None
            parts.append(part)
        return tuple(parts)

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


class CounterResult(NamedTuple):
    """One limit that holds for a request, and the counter that it is about: `whose` of those that `of` tells apart."""

    rule: CounterRule
    what: str
    limit: Limit
    of: str
    whose: tuple[str, ...]

    def key(self, keys: Keys) -> str:
        """The counter's key. It does not depend on the limit: a reload that changes a number forgets nothing."""
        return _key(keys, self.of, self.whose)

    @property
    def counter(self) -> str:
        """What is counted, in words: `messages from alice to example.com`."""
        return f"{_COUNTERS.get(self.what, self.what)} {self._of()}"

    def told(self, sum_: int) -> str:
        """How far the counter is: `3 of 100 in 10m`, with the name of a rule that has one."""
        name = f" ({self.rule.name})" if self.rule.name.startswith(NAMED) else ""
        return f"{sum_} of {self.limit}{name}"

    def refusal(self, wait: float = math.inf) -> Verdict:
        """Anvil's refusal, with the limit and the seconds to wait, if these are known."""
        text = f"Error: {_ERRORS[self.what]} {self._of()}: the limit is {self.limit}; try again {_when(wait)}"
        code, enhanced = ("421", "4.7.0") if self.what in ("connections", "simultaneous") else ("450", "4.7.1")
        return reject(f"ratelimit.{self.what}", code, enhanced, text)

    def _of(self) -> str:
        words = list(zip(self.rule.by, self.whose, strict=True))
        start = [printable(part, 80) for word, part in words if word != "recipient_domain"]
        to = [printable(part, 80) for word, part in words if word == "recipient_domain"]
        return " ".join((["from", ", ".join(start)] if start else []) + (["to", *to] if to else []))


def _in_words(count: CounterResult, sum_: int) -> tuple[str, str]:
    return count.counter, count.told(sum_)


@lru_cache(maxsize=4096)  # who sends once sends again
def _key(keys: Keys, of: str, whose: tuple[str, ...]) -> str:
    return keys("ratelimit", of, *whose)


class Tally(NamedTuple):
    """What one request was counted by, each limit with its hit, and the sums that these came to. `alone` if the store
    was gone and this process counted by itself.
    """

    counts: Sequence[CounterResult]
    hits: Sequence[CounterHit]
    sums: Sequence[int]
    alone: bool

    @classmethod
    async def of(cls, counted: Sequence[tuple[CounterResult, CounterHit]], context: Context) -> Self:
        """Count. What is over any limit is counted by none."""
        counts, hits = [count for count, _ in counted], [hit for _, hit in counted]
        alone = False
        try:
            sums = await context.store.hit(hits) if hits else []
        except StoreError as error:
            context.note("store", f"{error}; this process counts alone")
            alone, sums = True, await context.alone.hit(hits)
        for count, sum_ in zip(counts, sums, strict=True):
            context.note_later(partial(_in_words, count, sum_))
        return cls(counts, hits, sums, alone)

    async def verdict(self, context: Context) -> Verdict:
        """The refusal by that limit which lasts longest, if any is exceeded."""
        waits: list[tuple[float, CounterResult]] = []
        for count, hit, sum_ in zip(self.counts, self.hits, self.sums, strict=True):
            if sum_ > count.limit.count:
                waits.append((await _wait(self._store(context), hit, sum_ - count.limit.count), count))
        if not waits:
            return PASS
        longest, count = max(waits, key=lambda found: found[0])
        return count.refusal(longest)

    async def give_back(self, context: Context, without: Sequence[str] = ()) -> None:
        """Uncount it all, but what counts one of `without`. Raises StoreError."""
        hits = [hit for count, hit in zip(self.counts, self.hits, strict=True) if count.what not in without]
        if hits:
            await self._store(context).unhit(hits)

    def _store(self, context: Context) -> Store:
        return context.alone if self.alone else context.store


async def _wait(store: Store, hit: CounterHit, excess: int) -> float:
    """Seconds until `excess` of what `hit` counts has left its window; infinite if that is not known."""
    try:
        for leaves, amount in await store.expirations(hit):
            excess -= amount
            if excess <= 0:
                return leaves
    except StoreError:
        pass
    return math.inf


def _when(seconds: float) -> str:
    """How long to wait, rounded up to what a person would say."""
    if seconds == math.inf:
        return "later"
    unit = next(unit for unit, most in ((1.0, 120.0), (60.0, 7200.0), (3600.0, math.inf)) if seconds <= most)
    return f"in {duration_text(math.ceil(seconds / unit) * unit)}"
