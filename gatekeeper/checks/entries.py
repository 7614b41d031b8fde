# SPDX-License-Identifier: GPL-3.0-or-later
"""What all access tables share: logical lines, right-hand sides with their mistakes, and how a table is asked."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from gatekeeper.checks.action import Action, Restrictions, parse_action
from gatekeeper.checks.opinion import Place
from gatekeeper.problem import Problem
from gatekeeper.request import Address

MAX_PROBLEMS = 50
"""Problems and warnings that one file may raise before the rest is only counted."""


class Table(Protocol):
    """What can be looked up."""

    @property
    def allows(self) -> Sequence[Place]:
        """Where entries say OK without a condition; at most a few."""
        ...

    def search(self, keys: Iterable[str]) -> Action | None:
        """The entry for the first of `keys` that has one. The first key is the whole thing that is looked up, the
        others are parts of it, which tables of patterns do not match."""
        ...

    def search_address(self, address: Address) -> Action | None:
        """The entry for a client address."""
        ...


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with what continues them, and the number of the first (postmap(1)): comments and blank lines do not count,
    a line that starts with white space continues the one before."""
    start, parts = 0, [""]
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if not bare or bare[0] == "#":
            continue
        if line[0] in " \t" and start:
            parts.append(bare)
            continue
        if start:
            yield start, " ".join(parts) if len(parts) > 1 else parts[0]
        start, parts = number, [bare]
    if start:
        yield start, " ".join(parts) if len(parts) > 1 else parts[0]


class Actions:
    """The right-hand sides of one file: each text is parsed once, mistakes are collected with their line."""

    def __init__(self, file: str, restrictions: Restrictions) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.allows: list[Place] = []
        self._restrictions = restrictions
        self._known: dict[str, Action | str] = {}
        self._dropped = 0

    def action(self, line: int, text: str) -> Action | None:
        """What `text` says; None, and a problem, if it says nothing that can be done."""
        if text not in self._known:
            try:
                self._known[text] = parse_action(text, self._restrictions)
            except ValueError as error:
                self._known[text] = str(error)
        action = self._known[text]
        if isinstance(action, str):
            self.mistake(line, action)
            return None
        if action.allows and not action.condition and len(self.allows) < MAX_PROBLEMS:
            self.allows.append(Place(self.file, line))
        return action

    def mistake(self, line: int, what: str, *, warning: bool = False) -> None:
        """Note a problem, within bounds."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Place(self.file, line).problem(what, warning=warning))
        else:
            self._dropped += 1

    def finish(self) -> list[Problem]:
        """All problems; the last says how many more there are."""
        if self._dropped:
            self.problems.append(Place(self.file).problem(f"and {self._dropped} more", warning=True))
            self._dropped = 0
        return self.problems
