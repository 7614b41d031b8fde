# SPDX-License-Identifier: GPL-3.0-or-later
"""The questions of one request to DNS lists: all asked at once, within one budget of time.

An answer that comes too late is none, but the resolver goes on and will remember it. A list that was not probed yet is
waited for, so that one that lists everything does no harm in the first second of a process either.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gatekeeper.core.units import duration_text
from gatekeeper.dnsclient.resolver import Answer, DNSError, DNSTimeout
from gatekeeper.dnslists.dns_list import DnsList, ListKind
from gatekeeper.dnslists.health import ListHealth
from gatekeeper.dnslists.monitor import ListMonitor, query_or_error
from gatekeeper.dnslists.probes import GOOD, ListFinding, ListState, describe_error


class ListQuestion(NamedTuple):
    """What a list is asked: `subject` is what stands before the zone, a reversed address or a domain name."""

    list: DnsList
    kind: ListKind
    subject: str

    @property
    def name(self) -> str:
        """The name that is looked up."""
        return f"{self.subject}.{self.list.zone}"


@dataclass(frozen=True, slots=True)
class ListReply:
    """What came of it: the A records, or why there are none. `unknown`: the list might have had it."""

    records: tuple[str, ...] = ()
    why: str = ""
    unknown: bool = False


_NOT_LISTED = ListReply()
Asked = tuple[ListQuestion, ListHealth]


@lru_cache(maxsize=64)
def _not_listed(finding: ListFinding) -> ListReply:
    return ListReply(why=f"not listed, but the list {finding}")


class ListQueries:
    """The questions of one request to `lists`."""

    __slots__ = ("_left", "_lists")

    def __init__(self, lists: ListMonitor) -> None:
        self._lists = lists
        self._left = lists.budget

    async def ask(self, questions: Sequence[ListQuestion]) -> list[ListReply]:
        """The replies, in the order of the questions. Raises nothing."""
        asked = [(question, self._lists.health(question.list, question.kind)) for question in questions]
        found = self._remembered(asked, "A")
        if found is None:
            found = await self._look_up(asked, "A")
        return [self._reply(question, health, one) for (question, health), one in zip(asked, found, strict=True)]

    def begin(self, questions: Sequence[ListQuestion]) -> None:
        """Have these looked up without waiting: they will be asked soon, and the resolver will know by then."""
        for question in questions:
            if self._lists.health(question.list, question.kind).asked:
                self._lists.ask_ahead(question.name)

    async def text(self, question: ListQuestion) -> tuple[bytes, ...]:
        """The TXT records beside a hit; none if they cannot be had within what is left of the budget."""
        asked = [(question, self._lists.health(question.list, question.kind))]
        [found] = self._remembered(asked, "TXT") or await self._look_up(asked, "TXT")
        return tuple(r for r in found.records if isinstance(r, bytes)) if isinstance(found, Answer) else ()

    def _reply(self, question: ListQuestion, health: ListHealth, found: Answer | DNSError) -> ListReply:
        if not health.asked:
            return ListReply(why=f"switched off: {health.finding}", unknown=health.finding.state is ListState.TROUBLE)
        if isinstance(found, DNSError):
            self._lists.suspect()
            return ListReply(why=f"no answer: {describe_error(found)}", unknown=True)
        if not found.records and health.finding is GOOD:
            return _NOT_LISTED
        records = tuple(str(record) for record in found.records)
        if records:
            self._lists.heard(question.list, health, records)
        elif health.finding is not GOOD:
            return _not_listed(health.finding)
        return ListReply(records)

    def _remembered(self, asked: Sequence[Asked], type: str) -> list[Answer | DNSError] | None:
        """The answers, if all are remembered: the usual case, which needs no timer and no task (15 µs)."""
        resolver = self._lists.remembering
        if resolver is None:
            return None
        found = []
        for question, health in asked:
            known = resolver.known(question.name, type) if health.asked and health.proven.is_set() else None
            if known is None:
                return None
            found.append(known)
        return found

    async def _look_up(self, asked: Sequence[Asked], type: str) -> list[Answer | DNSError]:
        """What comes within the time that is left, and DNSTimeout for the rest."""
        names = {question.name: health for question, health in asked}
        late = DNSTimeout(f"not within {duration_text(self._lists.budget)}")
        found: dict[str, Answer | DNSError] = dict.fromkeys(names, late)

        async def find(name: str, health: ListHealth) -> None:
            if not health.proven.is_set():
                await health.proven.wait()
            if health.asked:
                found[name] = await query_or_error(self._lists.resolver, name, type)

        clock = asyncio.get_running_loop().time
        began = clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self._left, 0)):
                if len(names) == 1:
                    [only] = names.items()
                    await find(*only)  # the usual case, without a task
                elif names:
                    await asyncio.gather(*(find(name, health) for name, health in names.items()))
        self._left -= clock() - began
        return [found[question.name] for question, _ in asked]
