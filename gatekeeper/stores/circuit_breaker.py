# SPDX-License-Identifier: GPL-3.0-or-later
"""Circuit breaker around every back end: each failure is a StoreError, and only the requests of that moment wait.

Each back end keeps its own time limit (redis/connection.py, sqlite/store.py): a timer for each call here would be a
tenth of what a request costs. After a failure the store counts as gone, and calls fail at once. After a pause the next
such call starts a probe in the background, which writes (a full or read-only store can still be read) and makes sure
that the date of creation and the secret are there (the store may have been emptied). When that works, the store is
back.

How long the pause is depends on what happened, for every kind of store:

- One that does not come back is tried every PAUSE seconds, silently: a server that was restarted is found at once.
- One that comes back and fails again within STEADY seconds is flapping (a full disk that has room for the probe alone,
  a damaged page that only some requests need): each time the pause doubles, up to MAX_PAUSE.
- One that is damaged (StoreDamaged) is not tried before a person has put another in its place, or has found it in
  order (`gatekeeper state check`): no attempt can mend it, and some do harm.
- A call that only came too late because others were faster (StoreBusy) fails alone: the store is not gone.

One log line when the store goes, one when it is back. Flapping is said once, and its end with how often it was.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from gatekeeper.core.verdict import printable
from gatekeeper.stores.store import (
    Clock,
    CounterHit,
    Lease,
    Store,
    StoreBusy,
    StoreDamaged,
    StoredValue,
    StoreError,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE = 1.0
"""Seconds between a failure and the next probe."""
MAX_PAUSE = 60.0
"""Seconds: the longest pause of a store that comes back only to fail again."""
STEADY = 60.0
"""Seconds that a store has to work after it came back, until another failure is a new one."""
PROBE_LIMIT = 2.0
"""Seconds that a probe may take: it may have to connect, with TLS, over some distance."""
PROBE = "probe"
_START_DELAYS = (0.05, 0.1, 0.2)
"""Seconds before each further attempt at startup."""


class CircuitBreaker:
    """Wraps the back end `inner`. `name` is for the log; `clock` only measures pauses."""

    def __init__(self, inner: Store, clock: Clock = time.monotonic, name: str = "the store") -> None:
        self._inner = inner
        self._clock = clock
        self._name = printable(name)
        self._gone = ""
        self._is_still_damaged: Callable[[], bool] | None = None
        self._probe_at = 0.0
        self._not_before = 0.0  # as long as the store is flapping, no probe before
        self._back_at = -math.inf
        self._relapses = 0  # failures soon after the store was back, in a row
        self._steadiness: asyncio.TimerHandle | None = None
        self._probe: asyncio.Task[None] | None = None
        self._secret = b""

    @property
    def gone(self) -> str:
        """Why the store counts as gone; empty while it works."""
        return self._gone

    async def start(self) -> None:
        """Try the store before it is used. One that does not work is logged, and comes back by itself.

        Tries a few times: several processes that create an SQLite file at once get in each other's way.
        """
        error = await self._try()
        for wait in _START_DELAYS:
            if error is not None:
                await asyncio.sleep(wait)
                error = await self._try()
        if error is not None:
            self._record_failure(error)

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        # Written out, as in set, unhit and secret: through _call(), 5 % fewer requests were answered per second.
        if self._gone:
            raise self._fail_fast()
        try:
            return await self._inner.hit_and_get(hits, gets)
        except Exception as error:  # noqa: BLE001 (any failure opens the circuit)
            raise self._record_failure(error) from None

    async def get(self, key: str) -> bytes | None:
        return await self._call(self._inner.get(key))

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        if self._gone:
            raise self._fail_fast()
        try:
            return await self._inner.set(key, value, ttl, absent=absent)
        except Exception as error:  # noqa: BLE001 (any failure opens the circuit)
            raise self._record_failure(error) from None

    async def delete(self, key: str) -> None:
        await self._call(self._inner.delete(key))

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        return await self._call(self._inner.hit(hits))

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        if self._gone:
            raise self._fail_fast()
        try:
            await self._inner.unhit(hits)
        except Exception as error:  # noqa: BLE001 (any failure opens the circuit)
            raise self._record_failure(error) from None

    async def expirations(self, hit: CounterHit) -> list[tuple[float, int]]:
        return await self._call(self._inner.expirations(hit))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        return await self._call(self._inner.lease(leases, ttl))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._call(self._inner.release(leases))

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        return await self._call(self._inner.page(kind, after))

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        return await self._call(self._inner.tally(bucket, row, ttl, limit))

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return await self._call(self._inner.tallies(bucket))

    async def created_at(self) -> float:
        return await self._call(self._inner.created_at())

    async def secret(self) -> bytes:
        """Return the store's secret; while the store is gone, the last one read, else a random one. Raises nothing.

        Nothing under a random secret reaches the store: it only serves what this process remembers by itself.
        """
        if self._gone:
            self._probe_if_due()
        else:
            try:
                self._secret = await self._inner.secret()
            except Exception as error:  # noqa: BLE001 (any failure opens the circuit)
                self._record_failure(error)
        self._secret = self._secret or secrets.token_bytes(32)
        return self._secret

    async def close(self) -> None:
        self._stop_watching()
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        try:
            async with asyncio.timeout(PROBE_LIMIT):
                await self._inner.close()
        except Exception as error:  # noqa: BLE001 (nothing depends on it any more)
            logger.debug("%s: closing: %s", self._name, _reason(error))

    async def _call(self, call: Coroutine[Any, Any, T]) -> T:
        if self._gone:
            call.close()
            raise self._fail_fast()
        try:
            return await call
        except Exception as error:  # noqa: BLE001 (any failure opens the circuit)
            raise self._record_failure(error) from None

    def _fail_fast(self) -> StoreError:
        self._probe_if_due()
        return StoreError(f"{self._name} is gone: {self._gone}")

    def _record_failure(self, error: Exception) -> StoreError:
        if not isinstance(error, StoreBusy):
            self._fail(error)
        return StoreError(f"{self._name}: {_reason(error)}")

    def _fail(self, error: Exception) -> None:
        now = self._clock()
        if not self._gone:
            self._stop_watching()
            self._relapses = self._relapses + 1 if now - self._back_at < STEADY else 0
            self._not_before = now + min(PAUSE * 2.0 ** min(self._relapses, 30), MAX_PAUSE)
            self._log_gone(error)
        elif isinstance(error, StoreDamaged) and self._is_still_damaged is None:
            logger.warning("%s is damaged: %s", self._name, _reason(error))
        self._gone = _reason(error)
        self._is_still_damaged = error.is_unchanged if isinstance(error, StoreDamaged) else None
        self._probe_at = max(now + PAUSE, self._not_before)

    def _log_gone(self, error: Exception) -> None:
        if not self._relapses:
            what = "is gone, decisions go on without it, limits by what each process counts"
            logger.warning("%s %s: %s", self._name, what, _reason(error))
        elif self._relapses == 1:
            what = "has come back only to go again, and is tried less and less often until it stays"
            logger.warning("%s %s: %s", self._name, what, _reason(error))

    def _probe_if_due(self) -> None:
        if self._clock() < self._probe_at or not (self._probe is None or self._probe.done()):
            return
        if self._is_still_damaged is not None and self._is_still_damaged():
            self._probe_at = self._clock() + PAUSE
            return
        self._probe = asyncio.create_task(self._probe_once())

    async def _probe_once(self) -> None:
        error = await self._try()
        if error is not None:
            self._fail(error)
            return
        self._gone, self._is_still_damaged, self._back_at = "", None, self._clock()
        if self._relapses:
            self._steadiness = asyncio.get_running_loop().call_later(STEADY, self._has_stayed)
        else:
            logger.warning("%s is back", self._name)

    def _has_stayed(self) -> None:
        logger.warning("%s is back and stays; until then it was gone %d times", self._name, self._relapses + 1)
        self._relapses = 0

    def _stop_watching(self) -> None:
        if self._steadiness is not None:
            self._steadiness.cancel()
            self._steadiness = None

    async def _try(self) -> Exception | None:
        """Write something, make sure that the date of creation and the secret are there, and return any error."""
        try:
            async with asyncio.timeout(PROBE_LIMIT):
                await self._inner.set(PROBE, b"", 60.0)
                await self._inner.created_at()
        except Exception as error:  # noqa: BLE001 (any failure opens the circuit)
            return error
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return printable(str(error) or type(error).__name__, 200)
