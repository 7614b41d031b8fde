# SPDX-License-Identifier: GPL-3.0-or-later
"""What all access tables share: the lookup protocol, logical lines, and right-hand sides with their mistakes."""

import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Protocol

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.base.nested import may_permit
from gatekeeper.checks.tables.action import (
    RestrictionBuilder,
    TableAction,
    broken_action,
    parse_action,
    text_action,
    without_trust,
)
from gatekeeper.checks.tables.keys import SeenKeys
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import Address
from gatekeeper.core.verdict import Outcome

MAX_PROBLEMS = 50
"""Problems and warnings recorded for one file; any more are only counted."""
_MAX_PARSED = 1000
"""Right-hand sides that stay parsed: most tables have few different ones.

A table with a million different ones must not keep a million objects.
"""
_REPLY_CODE = re.compile(r"[245]\d\d", re.ASCII)
_ALWAYS_VALID = re.compile(r"(?:REJECT|DEFER|DEFER_IF_PERMIT|DEFER_IF_REJECT|DUNNO)(?:[ \t].*)?", re.IGNORECASE)


class Table(Protocol):
    """An access table, as lookups use it."""

    @property
    def allows(self) -> Sequence[SourceLine]:
        """The lines of entries that say OK or `permit` without a condition, at most MAX_PROBLEMS of them."""
        ...

    @property
    def asks_spf(self) -> bool:
        """Whether an entry may ask for SPF of the sender."""
        ...

    def search(self, keys: Iterable[str]) -> TableAction | None:
        """Return the entry for the first of `keys` that has one.

        The first key is the whole string that is looked up; the others are parts of it, which tables of patterns
        do not match.
        """
        ...

    def search_address(self, address: Address) -> TableAction | None:
        """Return the entry for a client address."""
        ...


def logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each logical line with the number of its first line, as postmap(1) reads them.

    Comments and blank lines are skipped; a line that starts with white space continues the one before. White space is
    ASCII only, as in Postfix.
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
    """Yield logical lines as text; bytes that are not UTF-8 become surrogates."""
    for line, content in logical_lines(data):
        yield line, content.decode("utf-8", "surrogateescape")


class Actions:
    """The right-hand sides of one file, and what becomes of lines that cannot be understood.

    Mistakes are collected with their line while the file is read; afterwards a right-hand side is parsed when its
    entry is found.

    As in Postfix, one bad line does not take the whole table away, unless it is `strict`: a rule that cannot be read is
    skipped, and an action that cannot be read is answered 451 4.3.5. But no trust comes of it. A rule that was skipped
    may have been an exception to what comes after it, so in a table where order counts an OK below it is a DUNNO.
    """

    def __init__(
        self,
        file: str,
        restrictions: RestrictionBuilder,
        values: bool = False,
        line: int = 0,
        *,
        strict: bool = True,
    ) -> None:
        """Prepare for one file; with `values` the right-hand sides are not actions but plain texts.

        `line` is the line in which a table without a file is written. In a `strict` table every mistake is an error.
        """
        self.file = file
        self.values = values
        self.strict = strict
        self.rejected: list[Problem] = []
        """Lines that cannot be used in a table that is, as many as are told."""
        self.skipped = 0
        self.broken = 0
        """Entries whose action cannot be understood."""
        self.doubted = 0
        """The line of the first rule that was skipped and is not known to be an OK."""
        self._untrusted = 0
        self._line = line
        self.problems: list[Problem] = []
        self.allows: list[SourceLine] = []
        self.keys = SeenKeys()
        self.conditions: set[str] = set()
        """The conditions on allow entries."""
        self.asks_spf = False
        """Whether an entry may ask for SPF of the sender."""
        self._restrictions = restrictions
        self._known: dict[str, TableAction | str] = {}
        self._with_checks: dict[str, TableAction] = {}
        self._dropped = 0

    def action(self, line: int, text: str) -> TableAction | None:
        """Return the action that `text` says; None, and note a problem, if it is not valid in a strict table."""
        action = self._parse(text)
        if isinstance(action, str):
            if self.strict:
                self.mistake(line, action)
                return None
            broken = broken_action(text)
            what = "never counts" if broken.verdict.outcome is Outcome.PASS else "is answered 451 4.3.5"
            self._reject(line, action, f"this entry {what}")
            self.broken += 1
            return broken
        self.asks_spf = self.asks_spf or action.asks_spf
        if action.condition:
            self.conditions.add(action.condition)
        elif (action.allows or may_permit(action.checks)) and len(self.allows) < MAX_PROBLEMS:
            self.allows.append(SourceLine(self.file, self._line or line))
        if action.allows and _REPLY_CODE.fullmatch(text):
            what = f"a number alone means OK, as in Postfix (access(5)); write REJECT, or {text} with a text"
            self.mistake(line, what, warning=True)
        return action

    def check(self, line: int, text: str) -> bool:
        """Return whether `text` is valid and `parsed` may be called with it; if not, note a problem."""
        return _ALWAYS_VALID.fullmatch(text) is not None or self.action(line, text) is not None

    def parsed(self, text: str) -> TableAction:
        """Return the action that `text` says, which must have been checked."""
        action = self._parse(text)
        return broken_action(text) if isinstance(action, str) else action

    def skip(self, line: int, what: str, text: str = "") -> None:
        """Note that a rule with the right-hand side `text`, as far as it has one, cannot be used."""
        if self.strict:
            self.mistake(line, what)
            return
        self.skipped += 1
        self._reject(line, what, "this rule is skipped")
        action = self._parse(text) if text else ""
        if isinstance(action, str) or not action.allows:
            self.doubted = self.doubted or line

    def _reject(self, line: int, what: str, so: str) -> None:
        self.mistake(line, f"{so}: {what}", warning=True)
        if len(self.rejected) < MAX_PROBLEMS:
            self.rejected.append(self.problem(line, what))

    def trusted(self, action: TableAction) -> TableAction:
        """Return what the action of the next rule comes to behind the rules that were skipped."""
        doubted = without_trust(action) if self.doubted else action
        self._untrusted += doubted is not action
        return doubted

    def _parse(self, text: str) -> TableAction | str:
        known = self._with_checks.get(text) or self._known.get(text)
        if known is not None:
            return known
        try:
            action: TableAction | str = text_action(text) if self.values else parse_action(text, self._restrictions)
        except ValueError as error:
            action = str(error)
        if isinstance(action, TableAction) and action.checks:
            # Its checks may come from files that a worker could not read: they are built once.
            self._with_checks[text] = action
            return action
        if len(self._known) >= _MAX_PARSED:
            self._known.clear()
        self._known[text] = action
        return action

    def mistake(self, line: int, what: str, *, warning: bool = False) -> None:
        """Record a problem, or only count it if there are too many."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(self.problem(line, what, warning=warning))
        else:
            self._dropped += 1

    def problem(self, line: int, what: str, *, warning: bool = False) -> Problem:
        """Return a Problem at a line of this table."""
        return SourceLine(self.file, self._line or line).problem(what, warning=warning)

    def finish(self) -> list[Problem]:
        """Return all problems; the last one says how many more there are."""
        if self._dropped:
            self.problems.append(SourceLine(self.file).problem(f"and {self._dropped} more", warning=True))
            self._dropped = 0
        return self.problems

    def tally(self) -> list[Problem]:
        """Return how many lines cannot be used, and what comes of it."""
        said = [
            f"{count} {'line' if count == 1 else 'lines'} {what}; the rest is in force"
            for count, what in ((self.skipped, "skipped"), (self.broken, "with an action that is not understood"))
            if count
        ]
        if self._untrusted:
            what = f"{self._untrusted} below line {self.doubted} that would permit count as DUNNO until that is mended"
            said.append(f"{what}: it may have been an exception to them")
        return [self.problem(0, what, warning=True) for what in said]
