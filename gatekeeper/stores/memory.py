# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in the memory of one process: `memory:`, for tests, replay, and what a process counts while its store is gone.

It is not shared between workers, and is lost when the process ends.

**Bounded**: at most `most` values, counters and tokens each, and rows of tallies in all, however many addresses a
stranger has. When one of them is full, first what has expired goes, and then, until a tenth is free, what is worth
least:

- counters: those with the lowest sum, among equal ones that which was hit longest ago, but none of the tenth that was
  hit last. So whoever sends much stays counted, and so does whoever begins to. To have a counter forgotten takes as
  many other addresses as a tenth of `most` after each of its hits, and nine tenths that have sent as much as it has:
  whoever has those needs no trick. Nobody is refused for what others have sent.
- tokens: the oldest. A message that comes again after that counts twice.
- values: what expires soonest, which of greylisting's are those that wait, and not those that are known.
- tallies: no new row is taken.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

from gatekeeper.stores.shared_values import CREATED_AT, SECRET, SharedValues
from gatekeeper.stores.sliding_window import SlotPosition, expirations, future_slots, slot_position
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoredValue

_SWEEP_EVERY = 5000
"""Writes between two removals of what has expired."""
_SPARED = 0.9
"""The part of what fits that stays when it does not fit any more."""
_NEVER_DROPPED = (CREATED_AT, SECRET)
_EXPIRED = 0.0, 0.0


class MemoryStore:
    """An implementation of store.Store; `most` bounds each kind of entries: 10 000 counters and tokens take 12 MB."""

    def __init__(self, clock: Clock = time.time, *, most: int = 100_000) -> None:
        self._clock = clock
        self._most = most
        self._values: dict[str, tuple[bytes, float, float]] = {}  # with expiry and time to live
        self._sums: dict[str, dict[int, int]] = {}  # those hit last are last
        self._tokens: dict[str, int] = {}  # likewise
        self._expiry: dict[str, tuple[float, float]] = {}  # of the names in these and in _tallies; as of _values
        self._leases: dict[str, dict[str, float]] = {}  # by key: holders, each with its expiry
        self._tallies: dict[str, dict[bytes, int]] = {}
        self._writes = 0
        self._shared_values = SharedValues(self, clock)

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        return await self.hit(hits), [await self.get(key) for key in gets]

    async def get(self, key: str) -> bytes | None:
        value, expires, _ = self._values.get(key, (None, 0.0, 0.0))
        return value if expires > self._clock() else None

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        now = self._clock()
        if absent and self._values.get(key, (b"", 0.0, 0.0))[1] > now:
            return False
        self._values[key] = (value, now + ttl, ttl)
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
            if position.amount:
                self._bring_back(position)
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
            held = self._leases.get(lease.key, {})
            # An end that is too far away was written by a clock that was ahead.
            holders = {holder: min(end, now + ttl) for holder, end in held.items() if end > now}
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
            (key, value, min(expires - now, ttl))
            for key, (value, expires, ttl) in self._values.items()
            if key.startswith(kind)
        )
        return [StoredValue(key, value, ttl) for key, value, ttl in entries if ttl > 0], ""

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        now = self._clock()
        if self._expiry.get(bucket, _EXPIRED)[0] <= now:
            self._tallies.pop(bucket, None)
        rows = self._tallies.setdefault(bucket, {})
        if row not in rows and (len(rows) >= limit or sum(map(len, self._tallies.values())) >= self._most):
            return False
        rows[row] = rows.get(row, 0) + 1
        self._expiry[bucket] = (now + ttl, ttl)
        self._wrote(now)
        return True

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return dict(self._tallies[bucket]) if self._expiry.get(bucket, _EXPIRED)[0] > self._clock() else {}

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

    def _bring_back(self, position: SlotPosition) -> None:
        """Move what is in the future into the present slot, as far as it counts."""
        sums = self._sums.get(position.name, {})
        for slot in future_slots(sums, position):
            amount = sums.pop(slot)
            if slot <= position.last:
                sums[position.slot] = sums.get(position.slot, 0) + amount

    def _count(self, position: SlotPosition, now: float) -> None:
        sums = self._sums[position.name] = self._sums.pop(position.name, {})
        sums[position.slot] = sums.get(position.slot, 0) + position.amount
        self._expiry[position.name] = (now + position.ttl, position.ttl)
        for slot in [slot for slot in sums if slot < position.first]:
            del sums[slot]
        if position.token:
            self._tokens.pop(position.token, None)
            self._tokens[position.token] = position.slot
            self._expiry[position.token] = (now + position.ttl, position.ttl)
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
        full = max(len(self._values), len(self._sums), len(self._tokens)) > self._most
        if full or self._writes % _SWEEP_EVERY == 0:
            self._sweep(now)
        if full:
            self._make_room()

    def _sweep(self, now: float) -> None:
        """Drop what has expired; what a clock that was ahead has written has its time to live from now on."""
        for key, (value, expires, ttl) in list(self._values.items()):
            if expires <= now:
                del self._values[key]
            elif expires > now + ttl:
                self._values[key] = (value, now + ttl, ttl)
        for name, (expires, ttl) in list(self._expiry.items()):
            if expires <= now:
                self._drop(name)
            elif expires > now + ttl:
                self._expiry[name] = (now + ttl, ttl)
        self._leases = {
            key: left
            for key, holders in self._leases.items()
            if (left := {holder: end for holder, end in holders.items() if end > now})
        }

    def _make_room(self) -> None:
        """Drop what is worth least of the kinds that are full."""
        spared = int(self._most * _SPARED)
        if len(self._sums) > self._most:
            older = list(self._sums)[: spared - self._most]  # all but those that were hit last
            by_sum = sorted(older, key=lambda name: sum(self._sums[name].values()))
            for name in by_sum[: len(self._sums) - spared]:
                self._drop(name)
        if len(self._tokens) > self._most:
            for token in list(self._tokens)[: len(self._tokens) - spared]:
                self._drop(token)
        if len(self._values) > self._most:
            by_expiry = sorted(self._values, key=lambda key: self._values[key][1])
            for key in by_expiry[: len(self._values) - spared]:
                if key not in _NEVER_DROPPED:
                    del self._values[key]

    def _drop(self, name: str) -> None:
        self._expiry.pop(name, None)
        self._sums.pop(name, None)
        self._tokens.pop(name, None)
        self._tallies.pop(name, None)
