# SPDX-License-Identifier: GPL-3.0-or-later
"""The DNS list queries of one request: all sent at once, sharing one timeout.

An answer that comes too late does not count, but the resolver continues and will cache it; one that is remembered is
never late. A list that was not probed yet is waited for, so that one that lists everything does no harm even in the
first second of a process.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gatekeeper.core.units import duration_text
from gatekeeper.dnsclient.resolver import Answer, DNSError, DNSTimeout, query_or_error
from gatekeeper.dnslists.dns_list import DnsList, ListKind, ListUse
from gatekeeper.dnslists.health import ListHealth
from gatekeeper.dnslists.monitor import ListMonitor
from gatekeeper.dnslists.probes import GOOD, ListFinding, ListState, describe_error


class ListQuestion(NamedTuple):
    """A query to a list: `subject` comes before the zone, a reversed address or a domain name."""

    list: DnsList
    kind: ListKind
    subject: str

    @property
    def use(self) -> ListUse:
        """The list and what it is asked for."""
        return self.list, self.kind

    @property
    def name(self) -> str:
        """The name that is looked up."""
        return f"{self.subject}.{self.list.zone}"


@dataclass(frozen=True, slots=True)
class ListReply:
    """The reply of a list: the A records, or why there are none. `unknown` means that the subject may be listed."""

    records: tuple[str, ...] = ()
    why: str = ""
    unknown: bool = False


_NOT_LISTED = ListReply()
_Target = tuple[ListQuestion, ListHealth]


@lru_cache(maxsize=64)
def _not_listed(finding: ListFinding) -> ListReply:
    return ListReply(why=f"not listed, but the list {finding}")


class ListQueries:
    """The queries of one request to `lists`; `left` tells how many seconds the request itself has left for them."""

    __slots__ = ("_left", "_lists", "_time_left")

    def __init__(self, lists: ListMonitor, left: Callable[[], float] | None = None) -> None:
        self._lists = lists
        self._left = left or (lambda: math.inf)
        self._time_left = lists.timeout

    async def ask(self, questions: Sequence[ListQuestion]) -> list[ListReply]:
        """Return the replies, in the order of the questions. Raises nothing."""
        targets = [(question, self._lists.health(question.list, question.kind)) for question in questions]
        found = self._from_cache(targets, "A")
        if found is None:
            found = await self._look_up(targets, "A")
        return [self._reply(question, health, one) for (question, health), one in zip(targets, found, strict=True)]

    def prefetch(self, questions: Sequence[ListQuestion]) -> None:
        """Start these look-ups without waiting: they will be needed soon, and be in the cache by then."""
        for question in questions:
            if self._lists.health(question.list, question.kind).is_queried(question.use):
                self._lists.prefetch(question.name)

    async def text(self, question: ListQuestion) -> tuple[bytes, ...]:
        """Return the TXT records that explain a hit; none if they do not arrive within the time that is left."""
        targets = [(question, self._lists.health(question.list, question.kind))]
        [found] = self._from_cache(targets, "TXT") or await self._look_up(targets, "TXT")
        return tuple(r for r in found.records if isinstance(r, bytes)) if isinstance(found, Answer) else ()

    def _reply(self, question: ListQuestion, health: ListHealth, found: Answer | DNSError) -> ListReply:
        finding = health.finding_for(question.use)
        if not health.is_queried(question.use):
            return ListReply(why=f"switched off: {finding}", unknown=finding.state is ListState.TROUBLE)
        if isinstance(found, DNSError):
            self._lists.probe_soon()
            return ListReply(why=f"no answer: {describe_error(found)}", unknown=True)
        if not found.records and finding is GOOD:
            return _NOT_LISTED
        records = tuple(str(record) for record in found.records)
        if records:
            self._lists.record_answer(question.list, health, records)
        elif finding is not GOOD:
            return _not_listed(finding)
        return ListReply(records)

    def _from_cache(self, targets: Sequence[_Target], type: str) -> list[Answer | DNSError] | None:
        """Return the answers if all are cached: the usual case, which needs no timer and no task (15 µs)."""
        found = []
        for target in targets:
            known = self._known(target, type)
            if known is None:
                return None
            found.append(known)
        return found

    def _known(self, target: _Target, type: str) -> Answer | DNSError | None:
        """Return what is remembered and counts."""
        question, health = target
        resolver = self._lists.cache
        if resolver is None or not (health.is_queried(question.use) and health.probed.is_set()):
            return None
        return resolver.known(question.name, type)

    async def _look_up(self, targets: Sequence[_Target], type: str) -> list[Answer | DNSError]:
        """Return what arrives within the time that is left, and DNSTimeout for the rest."""
        late = DNSTimeout(f"not within {duration_text(self._lists.timeout)}")
        found: dict[str, Answer | DNSError] = {question.name: late for question, _ in targets}
        missing: dict[str, list[_Target]] = {}  # one list may be asked for several uses, with one question
        for target in targets:
            missing.setdefault(target[0].name, []).append(target)
        for name, uses in tuple(missing.items()):
            for target in uses:
                if (known := self._known(target, type)) is not None:
                    found[name] = known
                    missing.pop(name, None)

        async def find(name: str, uses: list[_Target]) -> None:
            for _, health in uses:
                if not health.probed.is_set():
                    await health.probed.wait()
            if any(health.is_queried(question.use) for question, health in uses):
                found[name] = await query_or_error(self._lists.resolver, name, type)

        clock = asyncio.get_running_loop().time
        started = clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(min(self._time_left, self._left()), 0)):
                if len(missing) == 1:
                    [only] = missing.items()
                    await find(*only)  # the usual case, without a task
                elif missing:
                    await asyncio.gather(*(find(name, uses) for name, uses in missing.items()))
        self._time_left -= clock() - started
        return [found[question.name] for question, _ in targets]
