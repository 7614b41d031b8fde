# SPDX-License-Identifier: GPL-3.0-or-later
"""Monitor of the DNS lists of one process: probes them regularly, switches broken ones off with an alert, and on again.

Only test points (probes.py) decide that. A live query that fails counts as no hit and brings the next probe forward,
nothing more: a stranger chooses the names that are queried, and for some names no server can answer.

Health is kept for each zone, whoever queries it; that it lists everything, for each filter whose answers would count.
Each worker process has its own, and logs it by itself. If the resolver is at fault, one line says so, instead of one
about each list.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress

from gatekeeper.dnsclient.resolver import Answer, DNSError, RememberingResolver, Resolver, query_or_error
from gatekeeper.dnslists.dns_list import DnsList, ListKind, ListUse
from gatekeeper.dnslists.health import ListHealth
from gatekeeper.dnslists.probes import GOOD, ListState, judge_answers, lists_everything, test_points_of

__all__ = ["LIST_TIMEOUT", "ListMonitor", "ListUse"]

logger = logging.getLogger(__name__)

LIST_TIMEOUT = 3.0
"""Seconds that all lists of one request may take together."""
PROBE_INTERVAL = 600.0
"""Seconds between two probes while all lists are healthy."""
RECOVERY_INTERVAL = 60.0
"""Seconds between two probes while a list is off."""
CONFIRM_INTERVAL = 10.0
"""Seconds between two probes while a list is suspected but not switched off yet."""
ERROR_REMINDER = 3600.0
"""Seconds before an error answer of an otherwise healthy list is logged again."""


class ListMonitor:
    """All lists that this process queries.

    `probe` is the resolver for test points, past any cache; without one, `resolver` is used. `timeout` is in seconds,
    for all lists of one request together. `uses` are the lists known in advance; others are monitored once queried.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        probe: Resolver | None = None,
        timeout: float = LIST_TIMEOUT,
        uses: Iterable[ListUse] = (),
    ) -> None:
        self.resolver = resolver
        self.cache = resolver if isinstance(resolver, RememberingResolver) else None
        self.timeout = timeout
        self._probe = probe
        self._health: dict[str, ListHealth] = {}
        self._running = False
        self._wake = asyncio.Event()
        self._prefetches: set[asyncio.Task[Answer | DNSError]] = set()
        for use in uses:
            self.health(*use)

    def health(self, dns_list: DnsList, kind: ListKind) -> ListHealth:
        """Return the health of the zone of `dns_list`, which is queried for this kind."""
        health = self._health.get(dns_list.zone)
        if health is None:
            health = self._health[dns_list.zone] = ListHealth(dns_list.zone)
            if self._running:
                self._wake.set()
            else:
                health.probed.set()
        health.uses.add((dns_list, kind))
        return health

    def why_off(self, dns_list: DnsList) -> str:
        """Return what is wrong with a list, even if it is still queried; empty if nothing is."""
        health = self._health.get(dns_list.zone)
        findings = [health.finding_for(use) for use in health.uses if use[0] == dns_list] if health else []
        return next((str(finding) for finding in findings if finding is not GOOD), "")

    def start(self) -> asyncio.Task[None]:
        """Start monitoring, in a task for the caller to cancel. No answer counts before the first probe is done."""
        self._running = True
        for health in self._health.values():
            health.probed.clear()
        return asyncio.create_task(self._run(), name="DNS lists")

    async def probe(self) -> None:
        """Query the test points of every list, all at once, and log what has changed."""
        lists = list(self._health.values())
        changes = await asyncio.gather(*map(self._probe_zone, lists))
        changed = [health for health, change in zip(lists, changes, strict=True) if change]
        await self._report_off([health for health in changed if health.overall is not GOOD])
        self._report_recovered([health for health in changed if health.overall is GOOD and not health.everything])
        _report_uses([health for health in changed if health.overall is GOOD and health.everything])

    def probe_soon(self) -> None:
        """Bring the next probe forward, because something has gone wrong."""
        self._wake.set()

    def record_answer(self, dns_list: DnsList, health: ListHealth, records: Sequence[str]) -> None:
        """Update the health of a list from the answer to a live query."""
        if dns_list.hits(records):
            if health.record_hit():
                logger.warning("DNS list %s is switched on again: it has listed somebody", health.shown)
        elif why := health.new_error(records):
            logger.warning("DNS list %s answers with an error, which does not count: %s", health.shown, why)
            asyncio.get_running_loop().call_later(ERROR_REMINDER, health.forget_errors)
            self.probe_soon()

    def prefetch(self, name: str) -> None:
        """Look up the A records of `name` in the background, to have them in the resolver's cache."""
        task = asyncio.create_task(query_or_error(self.resolver, name, "A"))
        self._prefetches.add(task)
        task.add_done_callback(self._prefetches.discard)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.probe()
            except Exception:
                logger.exception("the DNS lists could not be probed")
                for health in self._health.values():
                    health.probed.set()
            await self._sleep_until_due()

    async def _sleep_until_due(self) -> None:
        """Wait until the next probe is due."""
        clock = asyncio.get_running_loop().time
        started, interval = clock(), self._interval()
        while (left := started + interval - clock()) > 0 and all(h.probed.is_set() for h in self._health.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
                    self._wake.clear()
                    interval = min(interval, CONFIRM_INTERVAL)

    def _interval(self) -> float:
        health = self._health.values()
        if any(one.is_suspect for one in health):
            return CONFIRM_INTERVAL
        return (
            PROBE_INTERVAL if all(one.finding is GOOD and not one.everything for one in health) else RECOVERY_INTERVAL
        )

    async def _probe_zone(self, health: ListHealth) -> bool:
        """Query the test points of one zone. Return True if that changes its state."""
        points = test_points_of(health.zone, health.kinds)
        names = [*points.listed, *points.unlisted]
        answers = await asyncio.gather(*(self._query(f"{point}.{health.zone}") for point in names))
        found = dict(zip(names, answers, strict=True))
        everything = {use: why for use in health.uses if (why := lists_everything(use, found)) is not None}
        changed = health.update(judge_answers(health.zone, points, found), everything)
        health.probed.set()
        return changed

    async def _query(self, name: str, type: str = "A") -> Answer | DNSError:
        return await query_or_error(self._probe or self.resolver, name, type)

    async def _report_off(self, gone: list[ListHealth]) -> None:
        """Log an alert about lists that were switched off, or about the resolver, if all were and it is to blame."""
        states = {health.overall.state for health in self._health.values()}
        if gone and len(states) == 1 and (fault := await self._fault_of_resolver(*states)):
            logger.warning("%s. Until that is fixed, no DNS list works: %s", fault, _names(self._health.values()))
            for health in gone:
                health.unreported = True
            return
        for health in gone:
            still = ". Its first hit will count and switch it on" if health.overall.state is ListState.NOTHING else ""
            logger.warning("DNS list %s is switched off: it %s%s", health.shown, health.overall, still)

    async def _fault_of_resolver(self, state: ListState) -> str:
        """Return what is wrong with the resolver, if all lists are in one state; empty if it seems to work."""
        if state is ListState.TROUBLE and isinstance(await self._query("com", "NS"), DNSError):
            return "the DNS resolver does not answer any query; see dns.nameservers or /etc/resolv.conf"
        if state is ListState.FOREIGN:
            invented = await self._query("no-such-name.invalid")
            if isinstance(invented, Answer) and invented.records:
                return "the DNS resolver invents answers for names that do not exist; use one of your own that does not"
        if state is ListState.NOTHING and len(self._health) > 1:
            return "the DNS resolver finds no test point of any DNS list, as if it dropped answers in 127.0.0.0/8"
        return ""

    def _report_recovered(self, back: list[ListHealth]) -> None:
        unreported = [health for health in back if health.unreported]
        if unreported:
            logger.warning("the DNS resolver is well again: DNS lists count (%s)", _names(unreported))
        for health in back:
            if not health.unreported:
                logger.warning("DNS list %s is switched on again: its test points are as they should be", health.shown)
            health.unreported = False


def _report_uses(health: Iterable[ListHealth]) -> None:
    for one in health:
        for finding in dict.fromkeys(one.everything.values()):
            logger.warning(
                "DNS list %s is switched off where that answer counts: it %s. Its other uses go on", one.shown, finding
            )


def _names(health: Iterable[ListHealth]) -> str:
    return ", ".join(sorted(one.shown for one in health))
