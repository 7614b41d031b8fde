# SPDX-License-Identifier: GPL-3.0-or-later
"""What all who share a store agree on: when it began (`born`) and the key of its hashes (`secret`).

Both are values like others, created by whoever comes first. A store can be emptied while we run (FLUSHALL, a restart
of a Redis without persistence, a deleted file). Then it is a new one: its `born` is now, so that greylisting learns
again; but the secret that this process knows is written back, unless another process that knew none was faster: then
ours is given up for theirs. So all processes agree again within RECHECK seconds, and who asks `secret()` for every
request instead of keeping it is never far off. Entries under a secret that was given up are never found again and
expire.
"""

import secrets
import time
from typing import Protocol

from gatekeeper.stores.store import Clock, StoreError

BORN = "born"
SECRET = "secret"
FOREVER = 1e10
"""A time to live, in seconds, that back ends take for "does not expire"."""
RECHECK = 10.0
"""Seconds for which a process believes that the secret it has read still holds."""


def parse_born(value: bytes) -> float:
    """The time that is kept under BORN. Raises StoreError."""
    try:
        return float(value)
    except ValueError:
        raise StoreError(f"the value of {BORN} is damaged") from None


class _Values(Protocol):
    async def get(self, key: str) -> bytes | None: ...
    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool: ...


class SharedValues:
    """`born` and `secret` for one back end, on its own `get` and `set`."""

    def __init__(self, values: _Values, clock: Clock) -> None:
        self._values = values
        self._clock = clock
        self._secret = b""
        self._read_at = 0.0  # monotonic: the clock that is passed in may stand still or jump

    async def born(self) -> float:
        """See store.Store.born. Always asks the store: one that was emptied must learn from now."""
        value = await self._values.get(BORN)
        if value is None:
            self._read_at = 0.0
            await self.secret()
            value = await self._first(BORN, repr(self._clock()).encode())
        return parse_born(value)

    async def secret(self) -> bytes:
        """See store.Store.secret."""
        if not self._secret or time.monotonic() - self._read_at > RECHECK:
            value = await self._values.get(SECRET)
            if value is None:
                value = await self._first(SECRET, self._secret or secrets.token_bytes(32))
            if len(value) != 32:
                raise StoreError(f"the value of {SECRET} is damaged")
            self._secret, self._read_at = value, time.monotonic()
        return self._secret

    async def _first(self, key: str, value: bytes) -> bytes:
        """`value`, now kept under `key`, or what somebody else has put there before us."""
        if await self._values.set(key, value, FOREVER, absent=True):
            return value
        found = await self._values.get(key)
        if found is None:
            raise StoreError(f"{key} is neither there nor can it be written")
        return found
