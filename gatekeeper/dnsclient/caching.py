# SPDX-License-Identifier: GPL-3.0-or-later
"""Cache DNS answers, and send each query only once at a time, however many callers wait for it.

An answer is kept for its TTL within bounds, a negative one for the SOA's minimum within narrower bounds, and an error
for a few seconds, so that a dead name server costs one timeout and not one for each message. The least recently used
entry is evicted first. A query continues if the caller that started it is cancelled: others may wait for it, and its
answer will be wanted again. Replay moves through time with the clock.

Threads without the event loop may ask `known` at any time; everything else belongs on the loop, which alone puts in and
takes out. So there is no lock, and each step on the entries is one call of C: Python's lock is held throughout.
"""

import asyncio
import time
from collections import OrderedDict
from typing import NamedTuple

from gatekeeper.dnsclient.resolver import Answer, DNSError, DNSFailure, Resolver
from gatekeeper.stores.store import Clock

MIN_TTL = 5.0
"""Seconds: one message causes the same query several times, whatever its TTL."""
MAX_TTL = 3600.0
MAX_NEGATIVE_TTL = 300.0
"""Seconds: whoever publishes a missing record wants it to be seen (RFC 2308 section 5 allows up to three hours)."""
ERROR_TTL = 5.0

Key = tuple[str, str]


class _Entry(NamedTuple):
    outcome: Answer | DNSError
    since: float
    until: float
    weight: int


class CachingResolver:
    """Caches the answers of `inner`.

    `size` bounds the memory, in kilobytes of answers, each rounded up: at most `size` answers are kept, fewer if they
    are large.
    """

    def __init__(self, inner: Resolver, clock: Clock = time.time, *, size: int = 20_000) -> None:
        self._inner = inner
        self._clock = clock
        self._size = size
        self._weight = 0
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._in_flight: dict[Key, asyncio.Task[Answer | DNSError]] = {}

    async def query(self, name: str, type: str) -> Answer:
        """Answer as resolver.Resolver.query does. `ttl` is what it was when `inner` answered."""
        key = (name.lower().removesuffix("."), type)
        outcome = self._cached(key)
        if outcome is None:
            task = self._in_flight.get(key) or self._start(key)
            await _wait_for(task)
            if task.cancelled():
                raise DNSFailure("the resolver was closed")
            outcome = task.result()
        if isinstance(outcome, DNSError):
            raise outcome.unraised()  # a new one for each caller
        return outcome

    def known(self, name: str, type: str) -> Answer | DNSError | None:
        key = (name.lower().removesuffix("."), type)
        entry = self._entries.get(key)
        if entry is None or not entry.since <= self._clock() < entry.until:
            return None
        try:  # suppress() takes as long as all the rest of this
            self._entries.move_to_end(key)
        except KeyError:  # evicted meanwhile, by another thread
            pass
        return entry.outcome

    async def close(self) -> None:
        """Cancel the queries in flight (their callers get a DNSError), and close `inner`."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._inner.close()

    def _cached(self, key: Key) -> Answer | DNSError | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not entry.since <= self._clock() < entry.until:  # a clock that was set back must not keep it for ever
            self._evict(key)
            return None
        self._entries.move_to_end(key)  # only the loop takes out, and we are on it
        return entry.outcome

    def _start(self, key: Key) -> asyncio.Task[Answer | DNSError]:
        task = self._in_flight[key] = asyncio.create_task(self._ask(key))
        task.add_done_callback(lambda _: self._in_flight.pop(key))
        return task

    async def _ask(self, key: Key) -> Answer | DNSError:
        try:
            outcome: Answer | DNSError = await self._inner.query(*key)
        except DNSError as error:
            outcome = error.unraised()
        self._store(key, outcome)
        return outcome

    def _store(self, key: Key, outcome: Answer | DNSError) -> None:
        now = self._clock()
        entry = _Entry(outcome, now, now + _lifetime(outcome), _weight(outcome))
        self._evict(key)
        self._entries[key] = entry
        self._weight += entry.weight
        while self._weight > self._size:
            # One call of C, which no thread gets into: an iterator breaks where `known` moves an entry meanwhile.
            _, oldest = self._entries.popitem(last=False)
            self._weight -= oldest.weight

    def _evict(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry.weight


async def _wait_for(task: asyncio.Task[Answer | DNSError]) -> None:
    """Wait for `task`, which continues if we are cancelled: what asyncio.wait does for many, for one at less cost."""
    ended = task.get_loop().create_future()
    task.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
    await ended


def _lifetime(outcome: Answer | DNSError) -> float:
    if isinstance(outcome, DNSError):
        return ERROR_TTL
    return min(max(outcome.ttl, MIN_TTL), MAX_TTL if outcome.records else MAX_NEGATIVE_TTL)


def _weight(outcome: Answer | DNSError) -> int:
    """Return the size in kilobytes, rounded up."""
    if isinstance(outcome, DNSError):
        return 1
    return (
        1
        + sum(len(record) if isinstance(record, str | bytes) else len(record.host) for record in outcome.records)
        // 1024
    )
