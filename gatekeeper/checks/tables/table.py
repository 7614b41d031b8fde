# SPDX-License-Identifier: GPL-3.0-or-later
"""What all access tables share: logical lines, right-hand sides with their mistakes, and how a table is asked."""

import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Protocol

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.action import Restrictions, TableAction, parse_action, plain
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import Address

MAX_PROBLEMS = 50
"""Problems and warnings that one file may raise before the rest is only counted."""
_KEPT = 1000
"""Right-hand sides that stay parsed: most tables have few, and one of a million texts of its own is no reason to hold
a million objects."""
_SURELY_FINE = re.compile(r"(?:REJECT|DEFER|DEFER_IF_PERMIT|DEFER_IF_REJECT|DUNNO)(?:[ \t].*)?", re.IGNORECASE)


class Table(Protocol):
    """What can be looked up."""

    @property
    def allows(self) -> Sequence[SourceLine]:
        """Where entries say OK without a condition; at most a few."""
        ...

    def search(self, keys: Iterable[str]) -> TableAction | None:
        """The entry for the first of `keys` that has one. The first key is the whole thing that is looked up, the
        others are parts of it, which tables of patterns do not match.
        """
        ...

    def search_address(self, address: Address) -> TableAction | None:
        """The entry for a client address."""
        ...


def logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines with what continues them, and the number of the first (postmap(1)): comments and blank lines do not count,
    a line that starts with white space continues the one before. White space is ASCII's, as in Postfix.
    """
    start, content = 0, b""
    for number, line in enumerate(BytesIO(data), 1):
        bare = line.strip()
        if not bare or bare[0] == 35:  # a comment
            continue
        if line[0] in b" \t\r\v\f" and start:
            content += b" " + bare
            continue
        if start:
            yield start, content
        start, content = number, bare
    if start:
        yield start, content


def text_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """The same as text; bytes that are no UTF-8 are kept as surrogates."""
    for line, content in logical_lines(data):
        yield line, content.decode("utf-8", "surrogateescape")


class Actions:
    """The right-hand sides of one file: mistakes are collected with their line while it is read; afterwards what an
    entry says is parsed when it is found.
    """

    def __init__(self, file: str, restrictions: Restrictions, values: bool = False, line: int = 0) -> None:
        """`values`: the right-hand sides are no actions but plain texts. `line` is where a table without a file is."""
        self.file = file
        self.values = values
        self._line = line
        self.problems: list[Problem] = []
        self.allows: list[SourceLine] = []
        self.conditions: set[str] = set()
        """What allow entries demand."""
        self._restrictions = restrictions
        self._known: dict[str, TableAction | str] = {}
        self._restricting: dict[str, TableAction] = {}
        self._dropped = 0

    def action(self, line: int, text: str) -> TableAction | None:
        """What `text` says; None, and a problem, if it says nothing that can be done."""
        action = self._parse(text)
        if isinstance(action, str):
            self.mistake(line, action)
            return None
        if action.condition:
            self.conditions.add(action.condition)
        elif action.allows and len(self.allows) < MAX_PROBLEMS:
            self.allows.append(SourceLine(self.file, self._line or line))
        return action

    def check(self, line: int, text: str) -> bool:
        """Whether `found` will know what `text` says; False, and a problem, if not."""
        return _SURELY_FINE.fullmatch(text) is not None or self.action(line, text) is not None

    def found(self, text: str) -> TableAction:
        """What `text`, which has been checked, says."""
        action = self._parse(text)
        assert isinstance(action, TableAction), text
        return action

    def _parse(self, text: str) -> TableAction | str:
        known = self._restricting.get(text) or self._known.get(text)
        if known is not None:
            return known
        try:
            action: TableAction | str = plain(text) if self.values else parse_action(text, self._restrictions)
        except ValueError as error:
            action = str(error)
        if isinstance(action, TableAction) and action.checks:
            # Its checks may be made of files that a worker could not read: they are made once.
            self._restricting[text] = action
            return action
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[text] = action
        return action

    def mistake(self, line: int, what: str, *, warning: bool = False) -> None:
        """Note a problem, within bounds."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(SourceLine(self.file, self._line or line).problem(what, warning=warning))
        else:
            self._dropped += 1

    def finish(self) -> list[Problem]:
        """All problems; the last says how many more there are."""
        if self._dropped:
            self.problems.append(SourceLine(self.file).problem(f"and {self._dropped} more", warning=True))
            self._dropped = 0
        return self.problems
