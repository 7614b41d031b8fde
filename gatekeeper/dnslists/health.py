# SPDX-License-Identifier: GPL-3.0-or-later
"""How one list does: the state that probes (probes.py) put it in, and what its answers to live questions add.

- Lists everything, refuses to answer, answers nonsense: off at once. Its answers do not count, and it is not asked.
- Does not answer: off after three probes in a row.
- Lists nothing: off, and not asked any more if it ever had a test point. One that never had is still asked, because a
  private list without test points looks the same; its first hit counts and brings it back for good.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from gatekeeper.core import redaction
from gatekeeper.dnslists.dns_list import DnsList, ListKind, refusal
from gatekeeper.dnslists.probes import GOOD, ListFinding, ListState

STRIKES = 3
"""Probes in a row without an answer, after which a list is off."""

_NOT_ASKED = {ListState.EVERYTHING, ListState.FOREIGN, ListState.REFUSES, ListState.TROUBLE}


@dataclass(slots=True)
class ListHealth:
    """One zone: in which ways it is used, and how it does. `proven` is set unless its first probe is still out."""

    zone: str
    lists: set[DnsList] = field(default_factory=set)
    kinds: set[ListKind] = field(default_factory=set)
    finding: ListFinding = GOOD
    strikes: int = 0
    proven: asyncio.Event = field(default_factory=asyncio.Event)
    quiet: bool = False
    """It went off when the resolver did, and no line was written about it alone."""
    _tested: bool = False  # it has shown a test point
    _alive: bool = False  # it has listed somebody since it was last seen without one
    _told: set[str] = field(default_factory=set)

    @property
    def shown(self) -> str:
        """The zone as people may see it."""
        return redaction.without_key(self.zone)

    @property
    def asked(self) -> bool:
        """Whether live questions go to it."""
        if self.finding is GOOD:
            return True
        lost_its_point = self.finding.state is ListState.NOTHING and self._tested
        return self.finding.state not in _NOT_ASKED and not lost_its_point

    @property
    def doubtful(self) -> bool:
        """Whether the next probe may switch it off."""
        return 0 < self.strikes < STRIKES

    def take(self, finding: ListFinding) -> bool:
        """Take in what a probe found; True if that changes the state."""
        self.strikes = self.strikes + 1 if finding.state is ListState.TROUBLE else 0
        if self.doubtful:
            return False
        if finding.state is ListState.GOOD:
            self._tested = True
        elif finding.state is ListState.NOTHING and self._alive:
            self._alive = not self._tested
            finding = GOOD
        changed = finding.state is not self.finding.state
        self.finding = finding
        return changed

    def lists_somebody(self) -> bool:
        """A live question had a hit; True if that brings the list back."""
        self._alive = True
        back = self.finding.state is ListState.NOTHING
        if back:
            self.finding, self.quiet = GOOD, False
        return back

    def error_in(self, records: Sequence[str]) -> str:
        """The operator's error in the answer to a live question, if it was not told yet; empty if there is none."""
        for record in records:
            if (why := refusal(self.zone, record)) and record not in self._told:
                self._told.add(record)
                return why
        return ""

    def forget_errors(self) -> None:
        """Tell them again from now on."""
        self._told.clear()
