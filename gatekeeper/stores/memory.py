# SPDX-License-Identifier: GPL-3.0-or-later
"""State in this process alone: `memory:`, for tests, replay, and what explain pretends to write.

Several workers do not share it, and it is gone when the process ends.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

from gatekeeper.stores.shared_values import SharedValues
from gatekeeper.stores.sliding_window import SlotPosition, slot_position, spread
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoredValue

_SWEEP_EVERY = 5000
"""Writes between two looks for what has expired."""


class MemoryStore:
    """See store.Store."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._values: dict[str, tuple[bytes, float]] = {}
        self._sums: defaultdict[str, dict[int, int]] = defaultdict(dict)
        self._tokens: dict[str, int] = {}
        self._expiry: dict[str, float] = {}  # of the names in _sums, _tokens and _tallies
        self._leases: dict[str, dict[str, float]] = {}  # by key: holders, and until when
        self._tallies: dict[str, dict[bytes, int]] = {}
        self._writes = 0
        self._origin = SharedValues(self, clock)

    async def ask(self, hits: Sequence[CounterHit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        return await self.hit(hits), [await self.get(key) for key in gets]

    async def get(self, key: str) -> bytes | None:
        value, expires = self._values.get(key, (None, 0.0))
        return value if expires > self._clock() else None

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        now = self._clock()
        if absent and self._values.get(key, (b"", 0.0))[1] > now:
            return False
        self._values[key] = (value, now + ttl)
        self._wrote(now)
        return True

    async def delete(self, key: str) -> None:
        self._values.pop(key, None)

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        now = self._clock()
        places = [slot_position(hit, now) for hit in hits]
        sums = []
        added: defaultdict[str, int] = defaultdict(int)
        counting: dict[str | int, SlotPosition] = {}  # by token, so that each comes once
        for number, at in enumerate(places):
            if at.amount and at.token not in counting and not self._is_counted(at):
                counting[at.token or number] = at
                added[at.name] += at.amount
            sums.append(self._sum(at) + added[at.name])
        if all(sum_ <= at.most for sum_, at in zip(sums, places, strict=True)):
            for at in counting.values():
                self._count(at, now)
        return sums

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        now = self._clock()
        for hit in hits:
            self._unhit(slot_position(hit, now))

    async def spread(self, hit: CounterHit) -> list[tuple[float, int]]:
        now = self._clock()
        return spread(hit, now, self._sums.get(slot_position(hit, now).name, {}))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        now = self._clock()
        counts = []
        for lease in leases:
            holders = {holder: end for holder, end in self._leases.get(lease.key, {}).items() if end > now}
            if holders:
                self._leases[lease.key] = holders
            else:
                self._leases.pop(lease.key, None)
            counts.append(len(holders.keys() | {lease.holder}))
        if all(lease.most is None or count <= lease.most for count, lease in zip(counts, leases, strict=True)):
            for lease in leases:
                self._leases.setdefault(lease.key, {})[lease.holder] = now + ttl
        return counts

    async def release(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            holders = self._leases.get(lease.key, {})
            holders.pop(lease.holder, None)
            if not holders:
                self._leases.pop(lease.key, None)

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        now = self._clock()
        kept = ((key, value, expires - now) for key, (value, expires) in self._values.items() if key.startswith(kind))
        return [StoredValue(key, value, ttl) for key, value, ttl in kept if ttl > 0], ""

    async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
        now = self._clock()
        if self._expiry.get(bucket, 0.0) <= now:
            self._tallies.pop(bucket, None)
        rows = self._tallies.setdefault(bucket, {})
        if row not in rows and len(rows) >= most:
            return False
        rows[row] = rows.get(row, 0) + 1
        self._expiry[bucket] = now + ttl
        self._wrote(now)
        return True

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return dict(self._tallies[bucket]) if self._expiry.get(bucket, 0.0) > self._clock() else {}

    async def born(self) -> float:
        return await self._origin.born()

    async def secret(self) -> bytes:
        return await self._origin.secret()

    async def close(self) -> None:
        pass

    def _is_counted(self, at: SlotPosition) -> bool:
        return bool(at.token) and at.first <= self._tokens.get(at.token, at.first - 1) <= at.last

    def _sum(self, at: SlotPosition) -> int:
        return sum(amount for slot, amount in self._sums.get(at.name, {}).items() if at.first <= slot <= at.last)

    def _count(self, at: SlotPosition, now: float) -> None:
        sums = self._sums[at.name]
        sums[at.slot] = sums.get(at.slot, 0) + at.amount
        self._expiry[at.name] = now + at.ttl
        for slot in [slot for slot in sums if slot < at.first]:
            del sums[slot]
        if at.token:
            self._tokens[at.token] = at.slot
            self._expiry[at.token] = now + at.ttl
        self._wrote(now)

    def _unhit(self, at: SlotPosition) -> None:
        sums = self._sums.get(at.name, {})
        slots = sorted(sums, reverse=True)
        if at.token:
            if at.token not in self._tokens:
                return
            slots = [self._tokens.pop(at.token)]
        left = at.amount
        for slot in slots:
            back = min(left, sums.get(slot, 0))
            left -= back
            sums[slot] = sums.get(slot, 0) - back

    def _wrote(self, now: float) -> None:
        self._writes += 1
        if self._writes % _SWEEP_EVERY:
            return
        self._values = {key: kept for key, kept in self._values.items() if kept[1] > now}
        for name in [name for name, expires in self._expiry.items() if expires <= now]:
            del self._expiry[name]
            self._sums.pop(name, None)
            self._tokens.pop(name, None)
            self._tallies.pop(name, None)
