# SPDX-License-Identifier: GPL-3.0-or-later
"""Health of one list: its state according to probes (probes.py), and what its answers to live queries add.

- Refuses to answer, answers nonsense: off at once. Its answers do not count, and it is not queried.
- Lists everything: likewise, but only for the uses whose filter counts what it says of everything.
- Does not answer: off after three probes in a row.
- Lists nothing: off, and no longer queried if it ever had a test point. One that never had is still queried, because a
  private list without test points looks the same; its first hit counts and brings it back for good.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gatekeeper.core import redaction
from gatekeeper.dnslists.dns_list import ListKind, ListUse, refusal
from gatekeeper.dnslists.probes import GOOD, ListFinding, ListState

STRIKES = 3
"""Probes in a row without an answer, after which a list is off."""

_NOT_QUERIED = {ListState.EVERYTHING, ListState.FOREIGN, ListState.REFUSES, ListState.TROUBLE}
_NO_USES: Mapping[ListUse, ListFinding] = {}


@dataclass(slots=True)
class ListHealth:
    """One zone: how it is used, and its health. `probed` is set unless its first probe is still under way.

    `finding` is about the zone, `everything` about those of its uses for which it lists everything.
    """

    zone: str
    uses: set[ListUse] = field(default_factory=set)
    finding: ListFinding = GOOD
    everything: Mapping[ListUse, ListFinding] = field(default_factory=dict)
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
    def kinds(self) -> set[ListKind]:
        """What it is queried for."""
        return {kind for _, kind in self.uses}

    @property
    def overall(self) -> ListFinding:
        """What is known about all uses together."""
        of_uses = [self.everything.get(use, GOOD) for use in self.uses]
        return self.finding if not of_uses or GOOD in of_uses else of_uses[0]

    def finding_for(self, use: ListUse) -> ListFinding:
        """Return what is known about one use."""
        return self.everything.get(use, self.finding)

    def is_queried(self, use: ListUse) -> bool:
        """Return whether live queries are sent to it for this use."""
        finding = self.finding_for(use)
        if finding is GOOD:
            return True
        lost_test_point = finding.state is ListState.NOTHING and self._has_test_point
        return finding.state not in _NOT_QUERIED and not lost_test_point

    @property
    def is_suspect(self) -> bool:
        """Whether the next probe may switch it off."""
        return 0 < self.strikes < STRIKES

    def update(self, finding: ListFinding, everything: Mapping[ListUse, ListFinding] = _NO_USES) -> bool:
        """Apply the result of a probe. Return True if that changes the state."""
        trouble = finding.state is ListState.TROUBLE
        before, self.everything = self.everything, {**(self.everything if trouble else {}), **everything}
        changed = before.keys() != self.everything.keys()
        self.strikes = self.strikes + 1 if trouble else 0
        if self.is_suspect:
            return changed
        if finding.state is ListState.GOOD:
            self._has_test_point = True
        elif finding.state is ListState.NOTHING and self._has_listed:
            self._has_listed = not self._has_test_point
            finding = GOOD
        changed |= finding.state is not self.finding.state
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
