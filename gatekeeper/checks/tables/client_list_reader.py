# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the files and tables that a list of clients names (postfix/client_list.py).

In our own files a mistake keeps the configuration from being used. In main.cf, which is not ours to refuse, it is a
warning, and the list ends there: nobody is trusted by what may have to be excluded first.
"""

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from gatekeeper.auth.domains import configured_domain
from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.inline import StaticTable
from gatekeeper.checks.tables.keys import Asked
from gatekeeper.checks.tables.patterns import NetworkTable, RuleTable
from gatekeeper.checks.tables.reader import TableReader
from gatekeeper.checks.tables.table import Table
from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import UNKNOWN, Client
from gatekeeper.core.text_files import without_bom
from gatekeeper.core.units import unmap_network
from gatekeeper.core.wide_networks import extent, find_wide
from gatekeeper.postfix.client_list import (
    COMMENT,
    THE_END,
    ClientList,
    ClientPattern,
    Lookup,
    end_of_list,
    name_and_parents,
    parse_pattern,
    parse_postfix_pattern,
)
from gatekeeper.postfix.restriction_list import split_words

_DEPTH = 10
"""How deep files may name files."""


def read_client_list(
    patterns: Sequence[ClientPattern],
    option: str,
    place: SourceLine,
    folder: Path,
    *,
    of_postfix: bool = False,
    parents: bool = True,
    opened: str = "",
) -> tuple[ClientList, list[Problem]]:
    """Return the list that `patterns` make, with what they name read, and what is wrong with it.

    `option` and `place` tell where they are written, relative paths start at `folder`. `parents` is as in ClientList.
    `opened` is what a list of who is trusted opens to those in it; then it is said if they are much of the world.
    """
    reader = _Reader(option, place, folder, of_postfix, parents)
    expanded = [*reader.expand(patterns)]
    hosts = ClientList(expanded, parents=parents, look_up=reader.lookups.__getitem__)
    if opened:
        reader.problems += [
            place.problem(f"{option}: {what}: {opened}; name your networks").opening() for what in _much(expanded)
        ]
    return hosts, reader.problems


def parse_own_pattern(text: str, *, included: bool = True) -> ClientPattern:
    """Parse one word of a list of our own, a name as names in mail are written. Raises ValueError."""
    word = text.strip()
    name = word.lstrip("!")
    if not set(name) & set("/:[]") and re.search(r"[^\d.]", name):
        name = configured_domain(name) or name
    return parse_pattern(word[: len(word) - len(word.lstrip("!"))] + name, included=included)


def _much(patterns: Sequence[ClientPattern]) -> Iterator[str]:
    """Say of each network, or of several together, and of each top-level domain how much of the world it is."""
    included: list[tuple[IPv4Network | IPv6Network, str]] = []
    excluded: set[IPv4Network | IPv6Network] = set()
    for pattern in patterns:
        if pattern.kind == "end":
            break
        if isinstance(pattern.value, IPv4Network | IPv6Network):
            network = unmap_network(pattern.value)
            if not pattern.included:
                excluded.add(network)
            elif network not in excluded:
                included.append((network, pattern.text))
        elif pattern.kind == "name" and pattern.included and _is_top_level(pattern.value.strip(".")):
            yield f"{pattern.text} is every host below it, a top-level domain"
    for network, text in find_wide(included):
        with_others = "" if (network, text) in included else f" with others makes {network}, which"
        yield f"{text}{with_others} is {extent(network)}"


def _is_top_level(name: str) -> bool:
    return "." not in name and name not in ("localhost", UNKNOWN)


class _Reader:
    def __init__(self, option: str, place: SourceLine, folder: Path, of_postfix: bool, parents: bool) -> None:
        self.problems: list[Problem] = []
        self.lookups: dict[str, Lookup] = {}
        self._option = option
        self._place = place
        self._folder = folder
        self._of_postfix = of_postfix
        self._parents = parents

    def expand(self, patterns: Sequence[ClientPattern], depth: int = 0) -> Iterator[ClientPattern]:
        """Yield `patterns` with files replaced by what is in them, up to what cannot be used."""
        for pattern in patterns:
            match pattern.kind:
                case "file":
                    yield from self._file(pattern, depth)
                case "table" if not self._table(str(pattern.value)):
                    yield end_of_list(pattern.text)
                case "name" if self._parents and str(pattern.value).startswith(".") and not self._of_postfix:
                    what = f"{pattern.text!r} matches nothing, as in Postfix"
                    self._say(self._place, f"{self._option}: {what}; write {str(pattern.value)[1:]!r}, for both")
                case _:
                    yield pattern

    def _file(self, pattern: ClientPattern, depth: int) -> Iterator[ClientPattern]:
        path = self._folder / str(pattern.value)
        if depth > _DEPTH:
            self._say(self._place, f"{self._option}: {path} names files that name files, more than {_DEPTH} deep")
            yield end_of_list(pattern.text)
            return
        try:
            lines = without_bom(watched_files.read(path)).decode("utf-8", "surrogateescape").split("\n")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            self._say(self._place, f"{self._option}: cannot read {path}: {reason}")
            yield end_of_list(pattern.text)
            return
        for number, line in enumerate(lines, 1):
            if not line.startswith("#"):
                yield from self._line(line, SourceLine(str(path), number), pattern.included, depth)

    def _line(self, line: str, place: SourceLine, included: bool, depth: int) -> Iterator[ClientPattern]:
        parse = parse_postfix_pattern if self._of_postfix else parse_own_pattern
        for _, word in split_words(line):
            if word.startswith("#"):
                self._say(place, COMMENT.format(word), warning=True)
                return
            try:
                pattern = parse(word, included=included)
            except ValueError as error:
                self._say(place, str(error))
                yield end_of_list(word)
            else:
                yield from self.expand([pattern], depth + 1)

    def _table(self, name: str) -> bool:
        """Read a table; return whether it can be used."""
        if name in self.lookups:
            return True
        reader = TableReader(self._folder, _no_restrictions)
        # Who is internal is never decided by a part of a table: it may stand behind a "!".
        asked = Asked.HOST if self._parents else Asked.DOTTED_HOST
        table = reader.read(name, self._place, asked, strict=True)
        for problem in reader.problems:
            own = problem.file == self._place.file
            what = f"{self._option}: {problem.what}" if own else problem.what
            self._say(SourceLine(problem.file, problem.line), what, warning=problem.warning)
        if table is not None:
            self.lookups[name] = _look_up(table, self._parents)
        return table is not None

    def _say(self, place: SourceLine, what: str, *, warning: bool = False) -> None:
        if self._of_postfix and not warning:
            what, warning = f"{what}; {THE_END}", True
        self.problems.append(place.problem(what, warning=warning))


def _no_restrictions(text: str) -> tuple[()]:
    raise AssertionError(text)


def _look_up(table: Table, parents: bool) -> Lookup:
    """Return how a table is asked: by the name, by what that is below where keys are exact, and by the address."""
    exact = not isinstance(table, RuleTable | NetworkTable | StaticTable)

    def has(client: Client) -> bool:
        names = name_and_parents(client.name, parents) if exact else [client.name]
        if client.name and table.search(names) is not None:
            return True
        return client.address is not None and table.search([str(client.address)]) is not None

    return has
