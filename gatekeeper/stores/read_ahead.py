# SPDX-License-Identifier: GPL-3.0-or-later
"""Read ahead for one request: the first read of the store includes all that its checks announced (store.ReadAhead).

So a request costs one round trip, though several checks read the store, and no check knows of another. What was not
announced, and everything after the decision, goes straight to the store.
"""

from collections.abc import Callable, Iterable, Sequence

from gatekeeper.core.stored_time import is_future
from gatekeeper.stores.shared_values import CREATED_AT, parse_created_at
from gatekeeper.stores.store import Clock, CounterHit, Lease, ReadAhead, Store, StoredValue


class ReadAheadStore:
    """Wraps the store `inner`, which goes by `clock`, for one request.

    `announced` returns what will be read; it is called once, at the first read.
    """

    __slots__ = ("_announced", "_clock", "_inner", "_sums", "_values")

    def __init__(self, inner: Store, announced: Callable[[], Iterable[ReadAhead]], clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._announced: Callable[[], Iterable[ReadAhead]] | None = announced
        self._sums: dict[CounterHit, int] = {}
        self._values: dict[str, bytes | None] = {}

    def end(self) -> None:
        """Stop reading ahead, and forget what was read: the decision is known."""
        self._announced = None
        self._sums, self._values = {}, {}

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        if self._announced is None:
            if not hits and all(key in self._values for key in gets):
                return [], [self._values[key] for key in gets]
            return await self._inner.hit_and_get(hits, gets)
        announced, self._announced = self._announced(), None
        keys = dict.fromkeys(gets)
        ahead: dict[CounterHit, None] = {}
        for want in announced:
            for key in want.gets:
                keys[key] = None
            for hit in want.hits:
                if not hit.amount:
                    ahead[hit] = None
            if want.created_at:
                keys[CREATED_AT] = None
        sums, values = await self._inner.hit_and_get([*hits, *ahead], list(keys))
        self._values = dict(zip(keys, values, strict=True))
        if ahead:
            self._sums = dict(zip(ahead, sums[len(hits) :], strict=True))
        return sums[: len(hits)], [self._values[key] for key in gets]

    async def get(self, key: str) -> bytes | None:
        if self._announced is not None:
            return (await self.hit_and_get((), (key,)))[1][0]
        return self._values[key] if key in self._values else await self._inner.get(key)

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        self._values.pop(key, None)
        return await self._inner.set(key, value, ttl, absent=absent)

    async def delete(self, key: str) -> None:
        self._values.pop(key, None)
        await self._inner.delete(key)

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        if self._announced is not None:
            return (await self.hit_and_get(hits, ()))[0]
        if self._sums and all(hit in self._sums for hit in hits):
            return [self._sums[hit] for hit in hits]
        self._sums = {}
        return await self._inner.hit(hits)

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        self._sums = {}
        await self._inner.unhit(hits)

    async def expirations(self, hit: CounterHit) -> list[tuple[float, int]]:
        return await self._inner.expirations(hit)

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        return await self._inner.lease(leases, ttl)

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._inner.release(leases)

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        return await self._inner.page(kind, after)

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        return await self._inner.tally(bucket, row, ttl, limit)

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return await self._inner.tallies(bucket)

    async def created_at(self) -> float:
        if self._announced is not None:
            await self.hit_and_get((), ())
        value = self._values.get(CREATED_AT)
        if value is not None and not is_future(self._clock(), created_at := parse_created_at(value)):
            return created_at
        return await self._inner.created_at()

    async def secret(self) -> bytes:
        return await self._inner.secret()

    async def close(self) -> None:
        """Do nothing: the store belongs to somebody else."""
