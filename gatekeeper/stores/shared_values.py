# SPDX-License-Identifier: GPL-3.0-or-later
"""The two values that all processes of a store agree on: its date of creation and the key of its hashes.

Both are ordinary values, `born` and `secret`, created by whoever comes first. A store can be emptied while we run
(FLUSHALL, a restart of a Redis without persistence, a deleted file). Then it is a new one: it was created now, so that
greylisting learns again; but the secret that this process knows is written back, unless another process that knew none
was faster: then its secret replaces ours. So all processes agree again within RECHECK seconds, and code that calls
`secret()` for every request instead of keeping it is never far behind. Entries under a secret that was replaced are
never found again and expire.

A date of creation in the future counts from now (core/stored_time.py), so that learning ends.
"""

import secrets
import time
from typing import Protocol

from gatekeeper.core.stored_time import is_future
from gatekeeper.stores.store import Clock, StoreError

CREATED_AT = "born"
SECRET = "secret"
FOREVER = 1e10
"""A time to live, in seconds, that back ends treat as "does not expire"."""
RECHECK = 10.0
"""Seconds for which a process assumes that the secret it has read is still valid."""


def parse_created_at(value: bytes) -> float:
    """Parse the value of CREATED_AT. Raises StoreError."""
    try:
        return float(value)
    except ValueError:
        raise StoreError(f"the value of {CREATED_AT} is damaged") from None


class _Values(Protocol):
    async def get(self, key: str) -> bytes | None: ...
    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool: ...


class SharedValues:
    """Date of creation and secret of one back end, by its own `get` and `set`."""

    def __init__(self, values: _Values, clock: Clock) -> None:
        self._values = values
        self._clock = clock
        self._secret = b""
        self._read_at = 0.0  # monotonic: the clock that is passed in may stand still or jump

    async def created_at(self) -> float:
        """Return the date as store.Store does. Always reads the store: one that was emptied must start learning now."""
        value = await self._values.get(CREATED_AT)
        if value is None:
            self._read_at = 0.0
            await self.secret()
            value = await self._first(CREATED_AT, repr(self._clock()).encode())
        created_at, now = parse_created_at(value), self._clock()
        if is_future(now, created_at):
            await self._values.set(CREATED_AT, repr(now).encode(), FOREVER)
            return now
        return created_at

    async def secret(self) -> bytes:
        if not self._secret or time.monotonic() - self._read_at > RECHECK:
            value = await self._values.get(SECRET)
            if value is None:
                value = await self._first(SECRET, self._secret or secrets.token_bytes(32))
            if len(value) != 32:
                raise StoreError(f"the value of {SECRET} is damaged")
            self._secret, self._read_at = value, time.monotonic()
        return self._secret

    async def _first(self, key: str, value: bytes) -> bytes:
        """Write `value` under `key` and return it, or return what another process wrote there first."""
        if await self._values.set(key, value, FOREVER, absent=True):
            return value
        found = await self._values.get(key)
        if found is None:
            raise StoreError(f"{key} is neither there nor can it be written")
        return found
