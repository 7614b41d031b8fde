# SPDX-License-Identifier: GPL-3.0-or-later
"""The DNS lists of one process, watched: probed regularly, switched off when ill with an alert, and on again.

Only test points (probes.py) decide that. What live questions run into is no hit and brings the next probe forward, no
more: a stranger chooses the names that are asked about, and some names no server can answer.

Health is kept for each zone, whoever asks it and with whatever filter. Each worker process has its own, and says so in
its log. If the resolver is at fault, one line says that, instead of one about each list.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress

from gatekeeper.dnsclient.resolver import Answer, DNSError, RememberingResolver, Resolver
from gatekeeper.dnslists.dns_list import DnsList, ListKind
from gatekeeper.dnslists.health import ListHealth
from gatekeeper.dnslists.probes import GOOD, ListState, judge_answers, test_points_of

logger = logging.getLogger(__name__)

BUDGET = 3.0
"""Seconds that all lists of one request may take together."""
REGULAR = 600.0
"""Seconds between two probes of lists that are well."""
AGAIN = 60.0
"""Seconds between two probes while a list is off."""
SOON = 10.0
"""Seconds between two probes while it is not clear yet what a list has."""
REMIND = 3600.0
"""Seconds before an error answer of a list that is otherwise well is logged again."""

ListUse = tuple[DnsList, ListKind]


class ListMonitor:
    """All lists that this process asks. `probe` is asked about test points, past any cache; without one, `resolver`
    is. `budget` is in seconds. `uses` are the lists that are known beforehand; others are watched once asked.
    """

    def __init__(
        self, resolver: Resolver, *, probe: Resolver | None = None, budget: float = BUDGET, uses: Iterable[ListUse] = ()
    ) -> None:
        self.resolver = resolver
        self.remembering = resolver if isinstance(resolver, RememberingResolver) else None
        self.budget = budget
        self._probe = probe
        self._health: dict[str, ListHealth] = {}
        self._watching = False
        self._wake = asyncio.Event()
        self._ahead: set[asyncio.Task[Answer | DNSError]] = set()
        for use in uses:
            self.health(*use)

    def health(self, site: DnsList, kind: ListKind) -> ListHealth:
        """How the zone of `site` does, which is asked about things of this kind."""
        health = self._health.get(site.zone)
        if health is None:
            health = self._health[site.zone] = ListHealth(site.zone)
            if self._watching:
                self._wake.set()
            else:
                health.proven.set()
        if site not in health.lists or kind not in health.kinds:
            health.lists.add(site)
            health.kinds.add(kind)
        return health

    def why_off(self, site: DnsList) -> str:
        """What is wrong with a list, lists that are still asked included; empty if nothing is."""
        health = self._health.get(site.zone)
        return "" if health is None or health.finding is GOOD else str(health.finding)

    def start(self) -> asyncio.Task[None]:
        """Watch the lists from now on, in a task to be cancelled. No answer counts before the first probe is back."""
        self._watching = True
        for health in self._health.values():
            health.proven.clear()
        return asyncio.create_task(self._watch(), name="DNS lists")

    async def probe(self) -> None:
        """Ask every list about its test points, all at once, and say what has changed."""
        lists = list(self._health.values())
        changes = await asyncio.gather(*map(self._examine, lists))
        changed = [health for health, change in zip(lists, changes, strict=True) if change]
        await self._tell([health for health in changed if health.finding is not GOOD])
        self._tell_back([health for health in changed if health.finding is GOOD])

    def suspect(self) -> None:
        """Something has gone wrong: probe soon."""
        self._wake.set()

    def heard(self, site: DnsList, health: ListHealth, records: Sequence[str]) -> None:
        """Learn from the answer to a live question."""
        if site.hits(records):
            if health.lists_somebody():
                logger.warning("DNS list %s is switched on again: it has listed somebody", health.shown)
        elif why := health.error_in(records):
            logger.warning("DNS list %s answers with an error, which does not count: %s", health.shown, why)
            asyncio.get_running_loop().call_later(REMIND, health.forget_errors)
            self.suspect()

    def ask_ahead(self, name: str) -> None:
        """Look up the A records of `name`, for the resolver to remember."""
        task = asyncio.create_task(query_or_error(self.resolver, name, "A"))
        self._ahead.add(task)
        task.add_done_callback(self._ahead.discard)

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.probe()
            except Exception:
                logger.exception("the DNS lists could not be probed")
                for health in self._health.values():
                    health.proven.set()
            await self._rest()

    async def _rest(self) -> None:
        """Wait until the next probe is due."""
        clock = asyncio.get_running_loop().time
        began, pause = clock(), self._pause()
        while (left := began + pause - clock()) > 0 and all(h.proven.is_set() for h in self._health.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
                    self._wake.clear()
                    pause = min(pause, SOON)

    def _pause(self) -> float:
        health = self._health.values()
        if any(one.doubtful for one in health):
            return SOON
        return REGULAR if all(one.finding is GOOD for one in health) else AGAIN

    async def _examine(self, health: ListHealth) -> bool:
        """Ask about the test points of one zone; True if that changes its state."""
        points = test_points_of(health.zone, health.kinds)
        asked = [*points.listed, *points.unlisted]
        answers = await asyncio.gather(*(self._ask(f"{point}.{health.zone}") for point in asked))
        changed = health.take(judge_answers(health.lists, points, dict(zip(asked, answers, strict=True))))
        health.proven.set()
        return changed

    async def _ask(self, name: str, type: str = "A") -> Answer | DNSError:
        return await query_or_error(self._probe or self.resolver, name, type)

    async def _tell(self, gone: list[ListHealth]) -> None:
        """The alert about lists that have gone off; about the resolver, if all have, and it is to blame."""
        states = {health.finding.state for health in self._health.values()}
        if gone and len(states) == 1 and (fault := await self._fault_of_resolver(*states)):
            logger.warning("%s. Until that has ended no DNS list helps: %s", fault, _names(self._health.values()))
            for health in gone:
                health.quiet = True
            return
        for health in gone:
            still = ". Its first hit will count and switch it on" if health.finding.state is ListState.NOTHING else ""
            logger.warning("DNS list %s is switched off: it %s%s", health.shown, health.finding, still)

    async def _fault_of_resolver(self, state: ListState) -> str:
        """What is wrong with the resolver, where all lists are in one state; empty if it seems to be well."""
        if state is ListState.TROUBLE and isinstance(await self._ask("com", "NS"), DNSError):
            return "the DNS resolver does not answer, whatever it is asked; see dns.nameservers or /etc/resolv.conf"
        if state is ListState.FOREIGN:
            invented = await self._ask("no-such-name.invalid")
            if isinstance(invented, Answer) and invented.records:
                return "the DNS resolver invents answers for names that do not exist; use one of your own that does not"
        if state is ListState.NOTHING and len(self._health) > 1:
            return "the DNS resolver finds no test point of any DNS list, as if it dropped answers in 127.0.0.0/8"
        return ""

    def _tell_back(self, back: list[ListHealth]) -> None:
        quiet = [health for health in back if health.quiet]
        if quiet:
            logger.warning("the DNS resolver is well again: DNS lists count (%s)", _names(quiet))
        for health in back:
            if not health.quiet:
                logger.warning("DNS list %s is switched on again: its test points are as they should be", health.shown)
            health.quiet = False


async def query_or_error(resolver: Resolver, name: str, type: str) -> Answer | DNSError:
    """The answer, or why there is none."""
    try:
        return await resolver.query(name, type)
    except DNSError as error:
        return error


def _names(health: Iterable[ListHealth]) -> str:
    return ", ".join(sorted(one.shown for one in health))
