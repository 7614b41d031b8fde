# SPDX-License-Identifier: GPL-3.0-or-later
"""The DNS lists of one process: asked all at once within a budget of time, and watched, so that one that lists
everything, nothing, or does not answer is switched off with an alert and comes back by itself.

Only test points (points.py) switch a list off or on. What live questions run into is no hit and brings the next probe
forward, no more: a stranger chooses the names that are asked about, and some names no server can answer.

- Lists everything, refuses to answer, answers nonsense: off at once. Its answers do not count, and it is not asked.
- Does not answer: off after three probes in a row.
- Lists nothing: the alert goes out, but it is still asked, because a private list without test points looks the same;
  its first hit counts and brings it back, for good unless it ever had a test point.

Health is kept for each zone, whoever asks it and with whatever filter. Each worker process has its own, and says so in
its log. If the resolver is at fault, one line says that, instead of one about each list.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gatekeeper import zonekey
from gatekeeper.dnslists.list import DnsList, Kind, refusal
from gatekeeper.dnslists.points import GOOD, Finding, State, judge, points_of, trouble
from gatekeeper.resolver import Answer, DNSError, DNSTimeout, Resolver
from gatekeeper.units import duration_text

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
STRIKES = 3
"""Probes in a row without an answer, after which a list is off."""

Use = tuple[DnsList, Kind]


@dataclass(frozen=True, slots=True)
class Question:
    """What a list is asked: `subject` is what stands before the zone, a reversed address or a domain name."""

    list: DnsList
    kind: Kind
    subject: str

    @property
    def name(self) -> str:
        """The name that is looked up."""
        return f"{self.subject}.{self.list.zone}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it: the A records, or why there are none. `unknown`: the list might have had it."""

    records: tuple[str, ...] = ()
    why: str = ""
    unknown: bool = False


_OFF = {State.EVERYTHING, State.FOREIGN, State.REFUSES, State.TROUBLE}
"""States in which a list is not asked."""


@dataclass(slots=True)
class _Health:
    """One zone: in which ways it is used, and how it does."""

    zone: str
    lists: set[DnsList] = field(default_factory=set)
    kinds: set[Kind] = field(default_factory=set)
    finding: Finding = GOOD
    strikes: int = 0
    tested: bool = False  # it has shown a test point
    alive: bool = False  # it has listed somebody since it was last seen without one
    told: dict[str, float] = field(default_factory=dict)  # error answers of live questions: when the log had them last
    quiet: bool = False  # it went off when the resolver did

    @property
    def shown(self) -> str:
        return zonekey.shown(self.zone)

    def take(self, finding: Finding) -> bool:
        """Take in what a probe found; True if that changes the state."""
        self.strikes = self.strikes + 1 if finding.state is State.TROUBLE else 0
        if 0 < self.strikes < STRIKES:
            return False
        if finding.state is State.GOOD:
            self.tested = True
        elif finding.state is State.NOTHING and self.alive:
            self.alive = not self.tested
            finding = GOOD
        return self.become(finding)

    def become(self, finding: Finding) -> bool:
        """Be in this state from now on; True if it is another one."""
        changed = finding.state is not self.finding.state
        self.finding = finding
        return changed


class Lists:
    """All lists that this process asks. `probe` is asked about test points, past any cache; without one, `resolver`
    is. `budget` is in seconds. `uses` are the lists that are known beforehand; others are watched once asked."""

    def __init__(
        self, resolver: Resolver, *, probe: Resolver | None = None, budget: float = BUDGET, uses: Iterable[Use] = ()
    ) -> None:
        self.resolver = resolver
        self.budget = budget
        self._probe = probe
        self._health: dict[str, _Health] = {}
        self._wake = asyncio.Event()
        self._begun: set[asyncio.Task[Answer | DNSError]] = set()
        for use in uses:
            self._watched(*use)

    def asking(self) -> "Asking":
        """The questions of one request."""
        return Asking(self)

    def why_off(self, site: DnsList) -> str:
        """What is wrong with a list, lists that are still asked included; empty if nothing is."""
        health = self._health.get(site.zone)
        return "" if health is None or health.finding is GOOD else str(health.finding)

    async def watch(self) -> None:
        """Probe, now and then regularly, until cancelled."""
        while True:
            try:
                await self.probe()
            except Exception:
                logger.exception("the DNS lists could not be probed")
            pause = self._pause()
            self._wake.clear()
            await asyncio.sleep(min(pause, SOON))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause - min(pause, SOON)):
                    await self._wake.wait()

    async def probe(self) -> None:
        """Ask every list about its test points, all at once, and say what has changed."""
        lists = list(self._health.values())
        findings = await asyncio.gather(*map(self._examine, lists))
        changed = [health for health, finding in zip(lists, findings, strict=True) if health.take(finding)]
        await self._tell([health for health in changed if health.finding.state is not State.GOOD])
        self._tell_back([health for health in changed if health.finding.state is State.GOOD])

    def _pause(self) -> float:
        states = {health.finding.state for health in self._health.values()}
        if any(0 < health.strikes < STRIKES for health in self._health.values()):
            return SOON
        return AGAIN if states - {State.GOOD} else REGULAR

    def _watched(self, site: DnsList, kind: Kind) -> _Health:
        health = self._health.get(site.zone)
        if health is None:
            health = self._health[site.zone] = _Health(site.zone)
            self._wake.set()
        if site not in health.lists or kind not in health.kinds:
            health.lists.add(site)
            health.kinds.add(kind)
        return health

    async def _examine(self, health: _Health) -> Finding:
        points = points_of(health.zone, health.kinds)
        asked = [*points.listed, *points.unlisted]
        answers = await asyncio.gather(
            *(_answer(self._probe or self.resolver, f"{point}.{health.zone}", "A") for point in asked)
        )
        return judge(health.lists, points, dict(zip(asked, answers, strict=True)))

    async def _tell(self, gone: list[_Health]) -> None:
        """The alert about lists that have gone off; about the resolver, if all have, and it is to blame."""
        states = {health.finding.state for health in self._health.values()}
        if gone and len(states) == 1 and (fault := await self._fault_of_resolver(*states)):
            logger.warning("%s. Until that has ended no DNS list helps: %s", fault, _names(self._health.values()))
            for health in gone:
                health.quiet = True
            return
        for health in gone:
            still = ". Its first hit will count and switch it on" if health.finding.state is State.NOTHING else ""
            logger.warning("DNS list %s is switched off: it %s%s", health.shown, health.finding, still)

    async def _fault_of_resolver(self, state: State) -> str:
        """What is wrong with the resolver, where all lists are in one state; empty if it seems to be well."""
        if state is State.TROUBLE and isinstance(await _answer(self._probe or self.resolver, "com", "NS"), DNSError):
            return "the DNS resolver does not answer, whatever it is asked; see dns.nameservers or /etc/resolv.conf"
        if state is State.FOREIGN:
            answer = await _answer(self._probe or self.resolver, "no-such-name.invalid", "A")
            if isinstance(answer, Answer) and answer.records:
                return "the DNS resolver invents answers for names that do not exist; use one of your own that does not"
        if state is State.NOTHING and len(self._health) > 1:
            return "the DNS resolver finds no test point of any DNS list, as if it dropped answers in 127.0.0.0/8"
        return ""

    def _tell_back(self, back: list[_Health]) -> None:
        quiet = [health for health in back if health.quiet]
        if quiet:
            logger.warning("the DNS resolver is well again: DNS lists count (%s)", _names(quiet))
        for health in back:
            if not health.quiet:
                logger.warning("DNS list %s is switched on again: its test points are as they should be", health.shown)
            health.quiet = False

    def _heard(self, site: DnsList, health: _Health, records: Sequence[str]) -> None:
        """Learn from the answer to a live question."""
        if site.hits(records):
            health.alive = True
            if health.finding.state is State.NOTHING:
                health.become(GOOD)
                health.quiet = False
                logger.warning("DNS list %s is switched on again: it has listed somebody", health.shown)
            return
        now = asyncio.get_running_loop().time()
        for record in records:
            if (why := refusal(site.zone, record)) and now >= health.told.get(record, -REMIND) + REMIND:
                health.told[record] = now
                logger.warning("DNS list %s answers with an error, which does not count: %s", health.shown, why)
                self._wake.set()


class Asking:
    """The questions of one request, which share one budget of time."""

    __slots__ = ("_left", "_lists")

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._left = lists.budget

    async def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """The replies, in the order of the questions, all asked at once. An answer that comes too late is none, but
        the resolver goes on and will remember it. Raises nothing."""
        lists = self._lists
        health = [lists._watched(question.list, question.kind) for question in questions]
        names = [q.name for q, h in zip(questions, health, strict=True) if h.finding.state not in _OFF]
        answers = await self._answers(list(dict.fromkeys(names)), "A")
        return [self._reply(q, h, answers.get(q.name)) for q, h in zip(questions, health, strict=True)]

    def begin(self, questions: Sequence[Question]) -> None:
        """Have these looked up without waiting: they will be asked soon, and the resolver will know by then."""
        lists = self._lists
        for question in questions:
            if lists._watched(question.list, question.kind).finding.state not in _OFF:
                task = asyncio.create_task(_answer(lists.resolver, question.name, "A"))
                lists._begun.add(task)
                task.add_done_callback(lists._begun.discard)

    async def text(self, question: Question) -> tuple[bytes, ...]:
        """The TXT records beside a hit; none if they cannot be had within what is left of the budget."""
        answer = (await self._answers([question.name], "TXT"))[question.name]
        return tuple(r for r in answer.records if isinstance(r, bytes)) if isinstance(answer, Answer) else ()

    def _reply(self, question: Question, health: _Health, answer: Answer | DNSError | None) -> Reply:
        if health.finding.state in _OFF:
            why = f"switched off: {health.finding}"
            return Reply(why=why, unknown=health.finding.state is State.TROUBLE)
        if not isinstance(answer, Answer):
            self._lists._wake.set()
            return Reply(why=f"no answer: {trouble(answer)}" if answer else "no answer", unknown=True)
        records = tuple(str(record) for record in answer.records)
        if records:
            self._lists._heard(question.list, health, records)
        return Reply(records)

    async def _answers(self, names: Sequence[str], type: str) -> dict[str, Answer | DNSError]:
        """What comes within the time that is left, and DNSTimeout for the rest."""
        if not names:
            return {}
        late = DNSTimeout(f"not within {duration_text(self._lists.budget)}")
        answers: dict[str, Answer | DNSError] = dict.fromkeys(names, late)

        async def find(name: str) -> None:
            answers[name] = await _answer(self._lists.resolver, name, type)

        clock = asyncio.get_running_loop().time
        began = clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self._left, 0)):
                if len(names) == 1:
                    await find(names[0])  # the usual case, without a task
                else:
                    await asyncio.gather(*map(find, names))
        self._left -= clock() - began
        return answers


async def _answer(resolver: Resolver, name: str, type: str) -> Answer | DNSError:
    try:
        return await resolver.query(name, type)
    except DNSError as error:
        return error


def _names(health: Iterable[_Health]) -> str:
    return ", ".join(sorted(one.shown for one in health))
