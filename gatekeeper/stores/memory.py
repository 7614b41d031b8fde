# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in the memory of one process: `memory:`, for tests, replay, and what explain pretends to write.

It is not shared between workers, and is lost when the process ends.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

from gatekeeper.stores.shared_values import SharedValues
from gatekeeper.stores.sliding_window import SlotPosition, expirations, slot_position
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoredValue

_SWEEP_EVERY = 5000
"""Writes between two removals of what has expired."""


class MemoryStore:
    """An implementation of store.Store."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._values: dict[str, tuple[bytes, float]] = {}
        self._sums: defaultdict[str, dict[int, int]] = defaultdict(dict)
        self._tokens: dict[str, int] = {}
        self._expiry: dict[str, float] = {}  # of the names in _sums, _tokens and _tallies
        self._leases: dict[str, dict[str, float]] = {}  # by key: holders, each with its expiry
        self._tallies: dict[str, dict[bytes, int]] = {}
        self._writes = 0
        self._shared_values = SharedValues(self, clock)

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
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
        positions = [slot_position(hit, now) for hit in hits]
        sums = []
        added: defaultdict[str, int] = defaultdict(int)
        counting: dict[str | int, SlotPosition] = {}  # by token, so that each counts once
        for number, position in enumerate(positions):
            if position.amount and position.token not in counting and not self._is_counted(position):
                counting[position.token or number] = position
                added[position.name] += position.amount
            sums.append(self._sum(position) + added[position.name])
        if all(total <= position.limit for total, position in zip(sums, positions, strict=True)):
            for position in counting.values():
                self._count(position, now)
        return sums

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        now = self._clock()
        for hit in hits:
            self._unhit(slot_position(hit, now))

    async def expirations(self, hit: CounterHit) -> list[tuple[float, int]]:
        now = self._clock()
        return expirations(hit, now, self._sums.get(slot_position(hit, now).name, {}))

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
        if all(lease.limit is None or count <= lease.limit for count, lease in zip(counts, leases, strict=True)):
            for lease in leases:
                self._leases.setdefault(lease.key, {})[lease.holder] = now + ttl
        return counts

    async def release(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            holders = self._leases.get(lease.key, {})
            holders.pop(lease.holder, None)
            if not holders:
                self._leases.pop(lease.key, None)

    async def page(
        self,
        kind: str,
        after: str = "",  # noqa: ARG002 (all fits one page)
    ) -> tuple[list[StoredValue], str]:
        now = self._clock()
        entries = (
            (key, value, expires - now) for key, (value, expires) in self._values.items() if key.startswith(kind)
        )
        return [StoredValue(key, value, ttl) for key, value, ttl in entries if ttl > 0], ""

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        now = self._clock()
        if self._expiry.get(bucket, 0.0) <= now:
            self._tallies.pop(bucket, None)
        rows = self._tallies.setdefault(bucket, {})
        if row not in rows and len(rows) >= limit:
            return False
        rows[row] = rows.get(row, 0) + 1
        self._expiry[bucket] = now + ttl
        self._wrote(now)
        return True

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return dict(self._tallies[bucket]) if self._expiry.get(bucket, 0.0) > self._clock() else {}

    async def created_at(self) -> float:
        return await self._shared_values.created_at()

    async def secret(self) -> bytes:
        return await self._shared_values.secret()

    async def close(self) -> None:
        pass

    def _is_counted(self, position: SlotPosition) -> bool:
        return (
            bool(position.token)
            and position.first <= self._tokens.get(position.token, position.first - 1) <= position.last
        )

    def _sum(self, position: SlotPosition) -> int:
        return sum(
            amount
            for slot, amount in self._sums.get(position.name, {}).items()
            if position.first <= slot <= position.last
        )

    def _count(self, position: SlotPosition, now: float) -> None:
        sums = self._sums[position.name]
        sums[position.slot] = sums.get(position.slot, 0) + position.amount
        self._expiry[position.name] = now + position.ttl
        for slot in [slot for slot in sums if slot < position.first]:
            del sums[slot]
        if position.token:
            self._tokens[position.token] = position.slot
            self._expiry[position.token] = now + position.ttl
        self._wrote(now)

    def _unhit(self, position: SlotPosition) -> None:
        sums = self._sums.get(position.name, {})
        slots = sorted(sums, reverse=True)
        if position.token:
            if position.token not in self._tokens:
                return
            slots = [self._tokens.pop(position.token)]
        left = position.amount
        for slot in slots:
            taken = min(left, sums.get(slot, 0))
            left -= taken
            sums[slot] = sums.get(slot, 0) - taken

    def _wrote(self, now: float) -> None:
        self._writes += 1
        if self._writes % _SWEEP_EVERY:
            return
        self._values = {key: entry for key, entry in self._values.items() if entry[1] > now}
        for name in [name for name, expires in self._expiry.items() if expires <= now]:
            del self._expiry[name]
            self._sums.pop(name, None)
            self._tokens.pop(name, None)
            self._tallies.pop(name, None)
