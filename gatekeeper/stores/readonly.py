# SPDX-License-Identifier: GPL-3.0-or-later
"""Read-only view of a store that answers as if it had written: for `explain` and `replay --against`.

What would have been written is kept in memory on top of the real store, so that one session is consistent in itself.
`unhit` only takes back events that were counted here.
"""

import time
from collections import Counter
from collections.abc import Sequence

from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.shared_values import SharedValues
from gatekeeper.stores.store import Clock, CounterHit, Lease, Store, StoredValue


class ReadOnlyStore:
    """An implementation of store.Store; `inner` is only read."""

    def __init__(self, inner: Store, clock: Clock = time.time) -> None:
        self._inner = inner
        self._written = MemoryStore(clock)
        self._deleted: set[str] = set()
        self._shared_values = SharedValues(self, clock)

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        return await self.hit(hits), [await self.get(key) for key in gets]

    async def get(self, key: str) -> bytes | None:
        value = await self._written.get(key)
        if value is None and key not in self._deleted:
            value = await self._inner.get(key)
        return value

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        if absent and await self.get(key) is not None:
            return False
        self._deleted.add(key)  # when this value expires, an older one must not reappear
        return await self._written.set(key, value, ttl)

    async def delete(self, key: str) -> None:
        self._deleted.add(key)
        await self._written.delete(key)

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        stored = await self._inner.hit([hit._replace(amount=0, once="", limit=None) for hit in hits])
        remaining = [
            hit if hit.limit is None else hit._replace(limit=hit.limit - count)
            for hit, count in zip(hits, stored, strict=True)
        ]
        added = await self._written.hit(remaining)
        return [a + b for a, b in zip(stored, added, strict=True)]

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        await self._written.unhit(hits)

    async def expirations(self, hit: CounterHit) -> list[tuple[float, int]]:
        return sorted([*await self._inner.expirations(hit), *await self._written.expirations(hit)])

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        # With a limit of 0 nothing is taken, and the answer is the current count.
        stored = [taken - 1 for taken in await self._inner.lease([lease._replace(limit=0) for lease in leases], ttl)]
        remaining = [
            lease if lease.limit is None else lease._replace(limit=lease.limit - count)
            for lease, count in zip(leases, stored, strict=True)
        ]
        added = await self._written.lease(remaining, ttl)
        return [a + b for a, b in zip(stored, added, strict=True)]

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._written.release(leases)

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        return await self._inner.page(kind, after)

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        stored = await self._inner.tallies(bucket)
        remaining = limit - len(stored.keys() - (await self._written.tallies(bucket)).keys() - {row})
        return await self._written.tally(bucket, row, ttl, remaining)

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return dict(Counter(await self._inner.tallies(bucket)) + Counter(await self._written.tallies(bucket)))

    async def created_at(self) -> float:
        return await self._shared_values.created_at()

    async def secret(self) -> bytes:
        return await self._shared_values.secret()

    async def close(self) -> None:
        await self._inner.close()
