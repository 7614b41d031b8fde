# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of each attack: counts, figures, and what was required and did not hold."""

import time
from dataclasses import dataclass, field
from typing import Any

from tests.attack.honest import Tally
from tests.attack.world import World


@dataclass
class Result:
    """One attack. `findings` is empty if everything held."""

    name: str
    begun: float = field(default_factory=time.monotonic)
    counts: dict[str, int] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    policy: Tally = field(default_factory=Tally)
    milter: Tally = field(default_factory=Tally)

    def count(self, what: str, number: int) -> None:
        """Add to a count."""
        self.counts[what] = self.counts.get(what, 0) + number

    def figure(self, what: str, value: str) -> None:
        """Tell something measured."""
        self.figures[what] = value

    def note(self, line: str) -> None:
        """Tell something more."""
        self.notes.append(line)

    def require(self, holds: bool, what: str) -> None:
        """Make a finding of `what` unless it holds."""
        if not holds:
            self.findings.append(f"does not hold: {what}")

    def clients(self, policy: Tally, milter: Tally, during: str = "") -> None:
        """Add what honest clients have seen `during` something; a wrong answer is a finding."""
        self.policy.add(policy)
        self.milter.add(milter)
        wrong = policy.wrong_count + milter.wrong_count
        if wrong:
            first = (*policy.wrong, *milter.wrong)[0]
            self.findings.append(f"{during or self.name}: {wrong} wrong answers, the first to {first}")

    def end(self, attacked: World) -> None:
        """End the attacked service, and make findings of its accidents."""
        self.findings += attacked.end()
        self.findings += attacked.accidents()[:8]

    def lines(self) -> list[str]:
        """Return the result for a person to read."""
        took = time.monotonic() - self.begun
        told = [f"{self.name} ({took:.0f} s): {'held' if not self.findings else 'DID NOT HOLD'}"]
        for kind, tally in (("policy requests", self.policy), ("messages", self.milter)):
            if tally.asked:
                told.append(f"  {kind}: {tally}")
        told += [f"  {what}: {number}" for what, number in self.counts.items()]
        told += [f"  {what}: {value}" for what, value in self.figures.items()]
        told += [f"  {note}" for note in self.notes]
        return told + [f"  ! {finding}" for finding in self.findings]

    def as_json(self) -> dict[str, Any]:
        """Return the result for a program to read."""
        return {
            "name": self.name,
            "seconds": round(time.monotonic() - self.begun, 1),
            "policy": vars(self.policy),
            "milter": vars(self.milter),
            "counts": self.counts,
            "figures": self.figures,
            "notes": self.notes,
            "findings": self.findings,
        }
