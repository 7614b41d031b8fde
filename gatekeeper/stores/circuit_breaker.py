# SPDX-License-Identifier: GPL-3.0-or-later
"""What every back end wears: every accident is a StoreError, and only the requests of that moment wait for it.

Each back end keeps its own time limit (redis/connection.py, sqlite/store.py): a timer for each call here would be a
tenth of what a request costs. After an accident the store counts as gone and calls fail at once. After a pause the next
call that fails at once starts a probe behind its back, which writes (a full or read-only store still reads) and makes
sure that `born` and `secret` are there (it may have been emptied). When that works, the store is back. One log line
when it goes, one when it is back.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from gatekeeper.core.verdict import printable
from gatekeeper.stores.store import Clock, CounterHit, Lease, Store, StoredValue, StoreError

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE = 1.0
"""Seconds between a failure and the next probe."""
PROBE_LIMIT = 2.0
"""Seconds that a probe may take: it may have to connect, with TLS, over some distance."""
PROBE = "probe"
_START = (0.05, 0.1, 0.2)
"""Seconds before each new try."""


class CircuitBreaker:
    """See store.Store. `name` stands in the log; `clock` only measures pauses."""

    def __init__(self, inner: Store, clock: Clock = time.monotonic, name: str = "the store") -> None:
        self._inner = inner
        self._clock = clock
        self._name = printable(name)
        self._gone = ""
        self._probe_at = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._secret = b""

    @property
    def gone(self) -> str:
        """Why the store counts as gone; empty while it works."""
        return self._gone

    async def start(self) -> None:
        """Try the store before it is used; one that does not work is logged, and comes back by itself.

        Tries a few times: several processes that create an SQLite file at once get into each other's way.
        """
        error = await self._try()
        for wait in _START:
            if error is not None:
                await asyncio.sleep(wait)
                error = await self._try()
        if error is not None:
            self._fail(error)

    async def ask(self, hits: Sequence[CounterHit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        # Written out, as in set, unhit and secret: through _guard() a twentieth fewer requests a second were answered.
        if self._gone:
            raise self._missing()
        try:
            return await self._inner.ask(hits, gets)
        except Exception as error:
            raise self._failed(error) from None

    async def get(self, key: str) -> bytes | None:
        return await self._guard(self._inner.get(key))

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        if self._gone:
            raise self._missing()
        try:
            return await self._inner.set(key, value, ttl, absent=absent)
        except Exception as error:
            raise self._failed(error) from None

    async def delete(self, key: str) -> None:
        await self._guard(self._inner.delete(key))

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        return await self._guard(self._inner.hit(hits))

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        if self._gone:
            raise self._missing()
        try:
            await self._inner.unhit(hits)
        except Exception as error:
            raise self._failed(error) from None

    async def spread(self, hit: CounterHit) -> list[tuple[float, int]]:
        return await self._guard(self._inner.spread(hit))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        return await self._guard(self._inner.lease(leases, ttl))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._guard(self._inner.release(leases))

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        return await self._guard(self._inner.page(kind, after))

    async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
        return await self._guard(self._inner.tally(bucket, row, ttl, most))

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return await self._guard(self._inner.tallies(bucket))

    async def born(self) -> float:
        return await self._guard(self._inner.born())

    async def secret(self) -> bytes:
        """The store's secret; while it is gone, the one it last told, else one of our own. Raises nothing.

        Nothing under a secret of our own reaches the store: it is good for what a process remembers by itself.
        """
        if self._gone:
            self._probe_if_due()
        else:
            try:
                self._secret = await self._inner.secret()
            except Exception as error:
                self._fail(error)
        self._secret = self._secret or secrets.token_bytes(32)
        return self._secret

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        try:
            async with asyncio.timeout(PROBE_LIMIT):
                await self._inner.close()
        except Exception as error:
            logger.debug("%s: closing: %s", self._name, _reason(error))

    async def _guard(self, call: Coroutine[Any, Any, T]) -> T:
        if self._gone:
            call.close()
            raise self._missing()
        try:
            return await call
        except Exception as error:
            raise self._failed(error) from None

    def _missing(self) -> StoreError:
        self._probe_if_due()
        return StoreError(f"{self._name} is gone: {self._gone}")

    def _failed(self, error: Exception) -> StoreError:
        self._fail(error)
        return StoreError(f"{self._name}: {_reason(error)}")

    def _fail(self, error: Exception) -> None:
        if not self._gone:
            logger.warning(
                "%s is gone, decisions go on without it, limits by what each process counts: %s",
                self._name,
                _reason(error),
            )
        self._gone = _reason(error)
        self._probe_at = self._clock() + PAUSE

    def _probe_if_due(self) -> None:
        if self._clock() >= self._probe_at and (self._probe is None or self._probe.done()):
            self._probe = asyncio.create_task(self._probe_once())

    async def _probe_once(self) -> None:
        error = await self._try()
        if error is not None:
            self._fail(error)
            return
        logger.warning("%s is back", self._name)
        self._gone = ""

    async def _try(self) -> Exception | None:
        """Write something, and see to it that `born` and `secret` are there; what went wrong."""
        try:
            async with asyncio.timeout(PROBE_LIMIT):
                await self._inner.set(PROBE, b"", 60.0)
                await self._inner.born()
        except Exception as error:
            return error
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return printable(str(error) or type(error).__name__, 200)
