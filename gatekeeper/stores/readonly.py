# SPDX-License-Identifier: GPL-3.0-or-later
"""A store that answers as if it had written, and has not: for `explain` and `replay --against`.

What would have been written is kept in memory on top of the real store, so that one session is consistent in itself.
Events given back with `unhit` are only those counted here.
"""

import time
from collections import Counter
from collections.abc import Sequence

from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.shared_values import SharedValues
from gatekeeper.stores.store import Clock, CounterHit, Lease, Store, StoredValue


class ReadOnlyStore:
    """See store.Store; `inner` is only read."""

    def __init__(self, inner: Store, clock: Clock = time.time) -> None:
        self._inner = inner
        self._written = MemoryStore(clock)
        self._deleted: set[str] = set()
        self._origin = SharedValues(self, clock)

    async def ask(self, hits: Sequence[CounterHit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        return await self.hit(hits), [await self.get(key) for key in gets]

    async def get(self, key: str) -> bytes | None:
        value = await self._written.get(key)
        if value is None and key not in self._deleted:
            value = await self._inner.get(key)
        return value

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        if absent and await self.get(key) is not None:
            return False
        self._deleted.add(key)  # when this value expires, an older one must not shine through
        return await self._written.set(key, value, ttl)

    async def delete(self, key: str) -> None:
        self._deleted.add(key)
        await self._written.delete(key)

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        real = await self._inner.hit([hit._replace(amount=0, once="", most=None) for hit in hits])
        left = [hit if hit.most is None else hit._replace(most=hit.most - a) for hit, a in zip(hits, real, strict=True)]
        pretended = await self._written.hit(left)
        return [a + b for a, b in zip(real, pretended, strict=True)]

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        await self._written.unhit(hits)

    async def spread(self, hit: CounterHit) -> list[tuple[float, int]]:
        return sorted([*await self._inner.spread(hit), *await self._written.spread(hit)])

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        # Where nothing fits, nothing is taken, and the answer tells how many there are.
        real = [taken - 1 for taken in await self._inner.lease([lease._replace(most=0) for lease in leases], ttl)]
        left = [
            lease if lease.most is None else lease._replace(most=lease.most - a)
            for lease, a in zip(leases, real, strict=True)
        ]
        pretended = await self._written.lease(left, ttl)
        return [a + b for a, b in zip(real, pretended, strict=True)]

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._written.release(leases)

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        return await self._inner.page(kind, after)

    async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
        real = await self._inner.tallies(bucket)
        left = most - len(real.keys() - (await self._written.tallies(bucket)).keys() - {row})
        return await self._written.tally(bucket, row, ttl, left)

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return dict(Counter(await self._inner.tallies(bucket)) + Counter(await self._written.tallies(bucket)))

    async def born(self) -> float:
        return await self._origin.born()

    async def secret(self) -> bytes:
        return await self._origin.secret()

    async def close(self) -> None:
        await self._inner.close()
