# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in a Redis (or Valkey) that all relays share: one round trip and one script (scripts.py) for each call.

Times are those of the relays, never of Redis (keep their clocks in step; a window is off by as much as they differ). So
a value is preceded by its expiry (`1700000000.000 value`). Redis' own expiry frees the memory, and bounds what a relay
whose clock was ahead has written: that is gone after its time to live by Redis' clock. `born` and `secret` have none,
so that the volatile-* policies of a full Redis do not evict them; do not use allkeys-*.

How much of Redis' memory an entry takes: docs/state.md.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from gatekeeper.core.stored_time import TOLERANCE
from gatekeeper.stores.redis.connection import ReplyError, Word
from gatekeeper.stores.redis.link import Link
from gatekeeper.stores.redis.scripts import ASK, LEASE, RELEASE, SET_ABSENT, SHA, TALLY, UNHIT
from gatekeeper.stores.shared_values import FOREVER, SharedValues
from gatekeeper.stores.sliding_window import expirations, slot_position, window_name
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoredValue

PREFIX = "gatekeeper:"


def value_key(key: str) -> str:
    """Return the Redis key of a value."""
    return PREFIX + key


def hit_key(hit: CounterHit) -> str:
    """Return the Redis key of a window's sums. Its tokens begin with it: the hash tag keeps them on the same node."""
    return _with_hash_tag(window_name(hit))


def lease_key(lease: Lease) -> str:
    """Return the Redis key of a set of leases."""
    return PREFIX + lease.key


class RedisStore:
    """An implementation of store.Store. `link` connects at first use."""

    def __init__(self, link: Link, clock: Clock = time.time) -> None:
        self._clock = clock
        self._link = link
        self._shared_values = SharedValues(self, clock)

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        if not hits and not gets:
            return [], []
        sums, values, _ = await self.hit_and_get_on_slot(hits, gets)
        return sums, values

    async def hit_and_get_on_slot(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None], list[int]]:
        """Do `hit_and_get` with keys in one slot; return also which hits were counted."""
        keys, arguments = self._window_arguments(hits)
        keys += map(value_key, gets)
        sums, values, counted = await self._script(ASK, keys, arguments)
        return sums, [self._value(stored) for stored in values], counted

    async def get(self, key: str) -> bytes | None:
        name = value_key(key)
        return self._value(await self._link.call(name, "GET", name))

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        name, now = value_key(key), self._clock()
        stored = f"{now + ttl:.3f} ".encode() + value
        expiry: tuple[Word, ...] = ("PX", _ms(ttl)) if ttl < FOREVER else ()
        if not absent:
            await self._link.call(name, "SET", name, stored, *expiry)
            return True
        if await self._link.call(name, "SET", name, stored, "NX", *expiry) is not None:
            return True
        # There is one, and only the script can tell whether it is still valid by the clocks of the relays.
        return bool(await self._script(SET_ABSENT, [name], [f"{now:.3f}", stored, *expiry[1:]]))

    async def delete(self, key: str) -> None:
        await self._link.call(value_key(key), "DEL", value_key(key))

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        return (await self.hit_and_get(hits, ()))[0]

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        if hits:
            await self._script(UNHIT, *self._window_arguments(hits))

    async def expirations(self, hit: CounterHit) -> list[tuple[float, int]]:
        name = hit_key(hit)
        found = iter(await self._link.call(name, "HGETALL", name))
        return expirations(
            hit, self._clock(), {int(slot): int(amount) for slot, amount in zip(found, found, strict=True)}
        )

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        if not leases:
            return []
        now = self._clock()
        arguments: list[Word] = [f"{now:.3f}", f"{now + ttl:.3f}", _ms(ttl), f"{now + ttl + TOLERANCE:.3f}"]
        for lease in leases:
            arguments += [lease.holder, "" if lease.limit is None else lease.limit]
        taken: list[int] = await self._script(LEASE, [lease_key(lease) for lease in leases], arguments)
        return taken

    async def release(self, leases: Sequence[Lease]) -> None:
        if leases:
            await self._script(RELEASE, [lease_key(lease) for lease in leases], [lease.holder for lease in leases])

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        names, rest = await self._link.scan(value_key(kind) + "*", after)
        values = await asyncio.gather(*(self._link.call(name, "GET", name) for name in names))
        now = self._clock()
        found = []
        for name, stored in zip(names, values, strict=True):
            expires, _, value = (stored or b"0 ").partition(b" ")
            if float(expires) > now:
                found.append(StoredValue(name.removeprefix(PREFIX), value, float(expires) - now))
        return found, rest

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        now = self._clock()
        arguments: list[Word] = [row, f"{now:.3f}", f"{now + ttl:.3f}", _ms(ttl), limit]
        return bool(await self._script(TALLY, [value_key(bucket)], arguments))

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        found = iter(await self._link.call(value_key(bucket), "HGETALL", value_key(bucket)))
        rows = dict(zip(found, found, strict=True))
        if float(rows.pop(b"", 0)) <= self._clock():
            return {}
        return {row: int(count) for row, count in rows.items()}

    async def created_at(self) -> float:
        return await self._shared_values.created_at()

    async def secret(self) -> bytes:
        return await self._shared_values.secret()

    async def info(self) -> bytes:
        """Return what the server says of itself; of a cluster, the node that has slot 0. Raises StoreError."""
        text: bytes = await self._link.call("", "INFO")
        return text

    async def close(self) -> None:
        self._link.close()

    def _value(self, stored: bytes | None) -> bytes | None:
        if stored is None:
            return None
        expires, _, value = stored.partition(b" ")
        return value if float(expires) > self._clock() else None

    def _window_arguments(self, hits: Sequence[CounterHit]) -> tuple[list[str], list[Word]]:
        now = self._clock()
        keys: list[str] = []
        arguments: list[Word] = []
        for hit in hits:
            position = slot_position(hit, now)
            name, token, slot, amount, ttl, _ = position
            tagged = _with_hash_tag(name)
            # Without a token the second key is not used, but every hit has two.
            keys += (tagged, tagged + token[len(name) :])
            limit = "" if hit.limit is None else hit.limit
            arguments += (amount, slot, _ms(ttl), 1 if token else 0, limit, position.newest)
        return keys, arguments

    async def _script(self, script: str, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        try:
            return await self._link.call(keys[0], "EVALSHA", SHA[script], len(keys), *keys, *arguments)
        except ReplyError as error:
            if error.kind != "NOSCRIPT":  # a new, restarted or emptied server
                raise
        return await self._link.call(keys[0], "EVAL", script, len(keys), *keys, *arguments)


def _with_hash_tag(name: str) -> str:
    return f"{PREFIX}{{{name}}}"


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
