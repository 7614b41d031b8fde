# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits on new and on simultaneous connections, checked by the milter when a client connects.

A policy service cannot do it, because Postfix tells it of neither connect nor disconnect.

A connection that is let in holds a lease in the store for each limit on simultaneous connections. The lease is renewed
while the connection lives and released when it closes; the leases of a killed worker end LEASE seconds later. Leases
are exact across workers and relays, because they are counted and taken in one step. While the store is unavailable,
each process counts its own connections, including those opened before.
"""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from itertools import count as numbers
from typing import ClassVar

from gatekeeper.checks.limits.counters import CounterResult, Tally
from gatekeeper.checks.limits.limit import AT_CONNECT
from gatekeeper.checks.limits.ratelimit import Limiter
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Mode, Verdict
from gatekeeper.pipeline.context import Context
from gatekeeper.stores.store import Lease, Store, StoreError

LEASE = 60.0
"""Seconds that a lease is valid unless it is renewed, which happens three times as often."""
_BATCH = 200
"""Leases that are renewed in one call."""
_CLOSING = 1.0
"""Seconds that releasing all leases may take when the process ends."""


class Connections:
    """The connections that this process holds, and the check that lets them in.

    A request's `instance` identifies the connection: `new()` makes one. `alone` is a store of this process alone, for
    when the shared one is unavailable.
    """

    name: ClassVar[str] = "ratelimit"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, limiter: Limiter, store: Store, alone: Store) -> None:
        self._limiter = limiter
        self._stores = (store, alone)
        self._held: dict[str, tuple[Lease, ...]] = {}
        self._process = secrets.token_hex(8)
        self._numbers = numbers(1)
        self._renewal: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def mode(self) -> Mode:
        """The mode of `[checks.ratelimit]`."""
        return self._limiter.mode

    @property
    def limited(self) -> bool:
        """Whether there is anything to check when a client connects."""
        return self.mode is not Mode.OFF and any(self._limiter.limits(what) for what in AT_CONNECT)

    def new(self) -> str:
        """Return an identifier for a new connection, unique across all processes."""
        return f"{self._process}.{next(self._numbers)}"

    async def check(self, request: Request, context: Context) -> Verdict:
        """Count the connection, and refuse it if it is one too many."""
        if self._limiter.is_excepted(request, context.site):
            return PASS
        counts = [*self._limiter.counts(AT_CONNECT, request, context.site)]
        rates, simultaneous = ([count for count in counts if count.what == what] for what in AT_CONNECT)
        tally = await Tally.of([(each, self._limiter.hit(each, context.keys)) for each in rates], context)
        verdict = await tally.verdict(context)
        if not verdict.refuses and simultaneous:
            verdict = await self._acquire(request.instance, simultaneous, context)
            if verdict.refuses and not self._limiter.count_refused:
                with suppress(StoreError):
                    await tally.give_back(context)
        return verdict

    def closed(self, connection: str) -> None:
        """Release the leases of a connection that has closed. To be called on the event loop."""
        if leases := self._held.pop(connection, ()):
            task = asyncio.get_running_loop().create_task(self._release(leases))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def renew(self) -> None:
        """Renew the leases of all connections; in a store that was emptied, take them anew."""
        leases = [lease for leases in self._held.values() for lease in leases]
        for start in range(0, len(leases), _BATCH):
            batch = leases[start : start + _BATCH]
            for store in self._stores:
                with suppress(StoreError):
                    await store.lease(batch, LEASE)
            # A connection that closed in the meantime may have released its leases before they were renewed.
            await self._release([lease for lease in batch if lease.holder not in self._held])

    async def close(self) -> None:
        """Release all leases."""
        if self._renewal is not None:
            self._renewal.cancel()
        left = [lease for leases in self._held.values() for lease in leases]
        self._held.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await asyncio.gather(self._release(left), *self._tasks)

    async def _acquire(self, connection: str, counts: Sequence[CounterResult], context: Context) -> Verdict:
        """Take a lease for every limit, all or none."""
        leases = [Lease(count.key(context.keys), connection, count.limit.count) for count in counts]
        try:
            taken = await context.store.lease(leases, LEASE)
        except StoreError as error:
            context.note("store", f"{error}; this process counts alone")
            taken = await context.alone.lease(leases, LEASE)
        for count, number in zip(counts, taken, strict=True):
            context.note(count.counter, count.progress(number))
        for count, number in zip(counts, taken, strict=True):
            if number > count.limit.count:
                return count.refusal()
        held = self._held[connection] = tuple(lease._replace(limit=None) for lease in leases)
        await context.alone.lease(held, LEASE)  # so that this process knows it if the store fails
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._keep_renewing())
        return PASS

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            await self.renew()

    async def _release(self, leases: Sequence[Lease]) -> None:
        for store in self._stores if leases else ():
            with suppress(StoreError):
                await store.release(leases)
