# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits on new and on simultaneous connections, asked by the milter when a client connects: a policy service hears of
neither connect nor disconnect.

A connection that may stay holds a lease in the store for each limit on simultaneous ones. While it lives the lease is
renewed, and it is given back when the connection closes; so what a killed worker held ends LEASE seconds later. Leases
are exact across workers and relays, because they are counted and taken in one step. While the store is gone, each
process counts the connections of its own, those from before included.
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
"""Seconds that a lease holds unless it is renewed, which is done three times as often."""
_BATCH = 200
"""Leases that are renewed in one call."""
_CLOSING = 1.0
"""Seconds that giving back may take when the process ends."""


class Connections:
    """The connections that this process holds, and the check that lets them in. A request's `instance` says which
    connection it is: `name()` makes one. `alone` is what the process remembers by itself.
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
        """As of all limits."""
        return self._limiter.mode

    @property
    def limited(self) -> bool:
        """True if there is anything to ask when a client connects."""
        return self.mode is not Mode.OFF and any(self._limiter.limits(what) for what in AT_CONNECT)

    def new(self) -> str:
        """A name for a connection that no other process gives."""
        return f"{self._process}.{next(self._numbers)}"

    async def check(self, request: Request, context: Context) -> Verdict:
        """Count the connection, and refuse it if it is one too many."""
        if self._limiter.is_excepted(request, context.site):
            return PASS
        counts = [*self._limiter.counts(AT_CONNECT, request, context.site)]
        rates, places = ([count for count in counts if count.what == what] for what in AT_CONNECT)
        tally = await Tally.of([(each, self._limiter.hit(each, context.keys)) for each in rates], context)
        verdict = await tally.verdict(context)
        if not verdict.refuses and places:
            verdict = await self._take(request.instance, places, context)
            if verdict.refuses and not self._limiter.count_refused:
                with suppress(StoreError):
                    await tally.give_back(context)
        return verdict

    def closed(self, connection: str) -> None:
        """A connection has ended. To be called on the event loop."""
        if leases := self._held.pop(connection, ()):
            task = asyncio.get_running_loop().create_task(self._release(leases))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def renew(self) -> None:
        """Renew the leases of all connections; takes places anew in a store that was emptied."""
        leases = [lease for leases in self._held.values() for lease in leases]
        for start in range(0, len(leases), _BATCH):
            batch = leases[start : start + _BATCH]
            for store in self._stores:
                with suppress(StoreError):
                    await store.lease(batch, LEASE)
            # What was closed meanwhile may have been given back before it was renewed.
            await self._release([lease for lease in batch if lease.holder not in self._held])

    async def close(self) -> None:
        """Give back everything."""
        if self._renewal is not None:
            self._renewal.cancel()
        left = [lease for leases in self._held.values() for lease in leases]
        self._held.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await asyncio.gather(self._release(left), *self._tasks)

    async def _take(self, connection: str, places: Sequence[CounterResult], context: Context) -> Verdict:
        """Take a place for every limit, all or none."""
        leases = [Lease(place.key(context.keys), connection, place.limit.count) for place in places]
        try:
            taken = await context.store.lease(leases, LEASE)
        except StoreError as error:
            context.note("store", f"{error}; this process counts alone")
            taken = await context.alone.lease(leases, LEASE)
        for place, number in zip(places, taken, strict=True):
            context.note(place.counter, place.told(number))
        for place, number in zip(places, taken, strict=True):
            if number > place.limit.count:
                return place.refusal()
        held = self._held[connection] = tuple(lease._replace(limit=None) for lease in leases)
        await context.alone.lease(held, LEASE)  # so that it is known here if the store goes
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
