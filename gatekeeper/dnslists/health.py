# SPDX-License-Identifier: GPL-3.0-or-later
"""Health of one list: its state according to probes (probes.py), and what its answers to live queries add.

- Lists everything, refuses to answer, answers nonsense: off at once. Its answers do not count, and it is not queried.
- Does not answer: off after three probes in a row.
- Lists nothing: off, and no longer queried if it ever had a test point. One that never had is still queried, because a
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

_NOT_QUERIED = {ListState.EVERYTHING, ListState.FOREIGN, ListState.REFUSES, ListState.TROUBLE}


@dataclass(slots=True)
class ListHealth:
    """One zone: how it is used, and its health. `probed` is set unless its first probe is still under way."""

    zone: str
    lists: set[DnsList] = field(default_factory=set)
    kinds: set[ListKind] = field(default_factory=set)
    finding: ListFinding = GOOD
    strikes: int = 0
    probed: asyncio.Event = field(default_factory=asyncio.Event)
    unreported: bool = False
    """It went off together with the resolver, and no line was logged about it alone."""
    _has_test_point: bool = False  # a probe has seen a test point
    _has_listed: bool = False  # it has had a hit since a probe last found no test point
    _reported_errors: set[str] = field(default_factory=set)

    @property
    def shown(self) -> str:
        """The zone as people may see it."""
        return redaction.without_key(self.zone)

    @property
    def is_queried(self) -> bool:
        """Whether live queries are sent to it."""
        if self.finding is GOOD:
            return True
        lost_test_point = self.finding.state is ListState.NOTHING and self._has_test_point
        return self.finding.state not in _NOT_QUERIED and not lost_test_point

    @property
    def is_suspect(self) -> bool:
        """Whether the next probe may switch it off."""
        return 0 < self.strikes < STRIKES

    def update(self, finding: ListFinding) -> bool:
        """Apply the result of a probe. Return True if that changes the state."""
        self.strikes = self.strikes + 1 if finding.state is ListState.TROUBLE else 0
        if self.is_suspect:
            return False
        if finding.state is ListState.GOOD:
            self._has_test_point = True
        elif finding.state is ListState.NOTHING and self._has_listed:
            self._has_listed = not self._has_test_point
            finding = GOOD
        changed = finding.state is not self.finding.state
        self.finding = finding
        return changed

    def record_hit(self) -> bool:
        """Record that a live query had a hit. Return True if that brings the list back."""
        self._has_listed = True
        back = self.finding.state is ListState.NOTHING
        if back:
            self.finding, self.unreported = GOOD, False
        return back

    def new_error(self, records: Sequence[str]) -> str:
        """Return the operator's error in a live answer if it was not reported yet; empty if there is none."""
        for record in records:
            if (why := refusal(self.zone, record)) and record not in self._reported_errors:
                self._reported_errors.add(record)
                return why
        return ""

    def forget_errors(self) -> None:
        """Report errors again from now on."""
        self._reported_errors.clear()
