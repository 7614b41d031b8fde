# SPDX-License-Identifier: GPL-3.0-or-later
"""Remembers answers, and asks each question once at a time, however many want to know.

An answer is kept for its TTL within bounds, "there is none" for the SOA's minimum within narrower bounds, and trouble
for a few seconds, so that a dead name server costs one timeout and not one for each message. What was not used for
the longest time goes first. A question goes on if who asked it is cancelled: others may wait for it, and its answer
will be wanted again. Replay jumps in time with the clock.
"""

import asyncio
import time
from collections import OrderedDict
from typing import NamedTuple

from gatekeeper.dnsclient.resolver import Answer, DNSError, DNSFailure, Resolver
from gatekeeper.stores.store import Clock

MIN_TTL = 5.0
"""Seconds: one message asks the same question several times, whatever its TTL."""
MAX_TTL = 3600.0
MAX_NEGATIVE_TTL = 300.0
"""Seconds: somebody who publishes a missing record wants it seen (RFC 2308 section 5 allows up to three hours)."""
ERROR_TTL = 5.0

Key = tuple[str, str]


class _Entry(NamedTuple):
    outcome: Answer | DNSError
    since: float
    until: float
    weight: int


class CachingResolver:
    """Asks `inner` what it does not remember. `size` bounds the memory, in kilobytes of answers, begun ones counted
    whole: at most so many answers are kept, fewer if they are large.
    """

    def __init__(self, inner: Resolver, clock: Clock = time.time, *, size: int = 20_000) -> None:
        self._inner = inner
        self._clock = clock
        self._size = size
        self._weight = 0
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[Answer | DNSError]] = {}

    async def query(self, name: str, type: str) -> Answer:
        """See resolver.Resolver.query. `ttl` is what it was when the question was asked."""
        key = (name.lower().removesuffix("."), type)
        outcome = self._remembered(key)
        if outcome is None:
            asking = self._asking.get(key) or self._start(key)
            await _end(asking)
            if asking.cancelled():
                raise DNSFailure("the resolver was closed")
            outcome = asking.result()
        if isinstance(outcome, DNSError):
            # A fresh one for each: a raised exception holds the frames that it went through.
            raise outcome.__class__(*outcome.args)
        return outcome

    def known(self, name: str, type: str) -> Answer | DNSError | None:
        """See resolver.Remembering.known."""
        key = (name.lower().removesuffix("."), type)
        entry = self._entries.get(key)
        if entry is None or not entry.since <= self._clock() < entry.until:
            return None
        try:  # suppress() takes as long as all the rest of this
            self._entries.move_to_end(key)
        except KeyError:  # forgotten meanwhile
            pass
        return entry.outcome

    async def close(self) -> None:
        """Give up what is being asked (its askers get a DNSError), and close `inner`."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._inner.close()

    def _remembered(self, key: Key) -> Answer | DNSError | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not entry.since <= self._clock() < entry.until:  # a clock that was set back must not keep it for ever
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry.outcome

    def _start(self, key: Key) -> asyncio.Task[Answer | DNSError]:
        asking = self._asking[key] = asyncio.create_task(self._ask(key))
        asking.add_done_callback(lambda _: self._asking.pop(key))
        return asking

    async def _ask(self, key: Key) -> Answer | DNSError:
        try:
            outcome: Answer | DNSError = await self._inner.query(*key)
        except DNSError as error:
            outcome = error.with_traceback(None)
        self._remember(key, outcome)
        return outcome

    def _remember(self, key: Key, outcome: Answer | DNSError) -> None:
        now = self._clock()
        entry = _Entry(outcome, now, now + _lifetime(outcome), _weight(outcome))
        self._forget(key)
        self._entries[key] = entry
        self._weight += entry.weight
        while self._weight > self._size:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry.weight


async def _end(task: asyncio.Task[Answer | DNSError]) -> None:
    """Wait for the end of `task`, which goes on if we are cancelled: what asyncio.wait does, which is made for many."""
    ended = task.get_loop().create_future()
    task.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
    await ended


def _lifetime(outcome: Answer | DNSError) -> float:
    if isinstance(outcome, DNSError):
        return ERROR_TTL
    return min(max(outcome.ttl, MIN_TTL), MAX_TTL if outcome.records else MAX_NEGATIVE_TTL)


def _weight(outcome: Answer | DNSError) -> int:
    """Kilobytes, begun ones counted whole."""
    if isinstance(outcome, DNSError):
        return 1
    return (
        1
        + sum(len(record) if isinstance(record, str | bytes) else len(record.host) for record in outcome.records)
        // 1024
    )
