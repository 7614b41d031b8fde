# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading of the tables that a configuration names as `TYPE:FILE`.

Each file is read once, and every mistake in it is collected. Indexed tables are read from their source text. Tables in
a server or in Postfix (`mysql:`, `ldap:`, `proxy:`) are refused, with what is allowed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.action import RestrictionBuilder
from gatekeeper.checks.tables.indexed import parse_indexed
from gatekeeper.checks.tables.inline import inline_lines, parse_inline, parse_static
from gatekeeper.checks.tables.keys import Asked
from gatekeeper.checks.tables.patterns import parse_cidr, parse_pcre, parse_regexp
from gatekeeper.checks.tables.table import Actions, Table
from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.core.text_files import without_bom

READERS: dict[str, Callable[[bytes, Actions], Table]] = {
    "hash": parse_indexed,
    "btree": parse_indexed,
    "dbm": parse_indexed,
    "lmdb": parse_indexed,
    "texthash": parse_indexed,
    "cidr": parse_cidr,
    "regexp": parse_regexp,
    "pcre": parse_pcre,
}
FILELESS_READERS: dict[str, Callable[[bytes, Actions], Table]] = {"inline": parse_inline, "static": parse_static}
RULE_TYPES = ("cidr", "regexp", "pcre")
"""Types whose rules may stand in braces instead of a file (Postfix 3.7)."""


class TableReader:
    """Reads the tables that a configuration names, each file once, and collects every mistake in them."""

    def __init__(self, folder: Path, restrictions: RestrictionBuilder) -> None:
        self.conditions: set[str] = set()
        """The conditions on allow entries in all tables."""
        self._problems: list[Problem] = []
        self._folder = folder
        self._restrictions = restrictions
        self._files: dict[tuple[str, Path, bool, bool], _Read | None] = {}
        self._all: list[_Read] = []

    @property
    def problems(self) -> list[Problem]:
        """Every mistake and warning so far; some depend on all that a table is asked for."""
        return [*self._problems, *(problem for read in self._all for problem in read.problems())]

    @property
    def rejected(self) -> list[Problem]:
        """The lines in files that cannot be used, though their tables are."""
        return [problem for read in self._all for problem in read.actions.rejected]

    @property
    def tallies(self) -> list[Problem]:
        """How many such lines there are in each file, and what comes of it."""
        return [problem for read in self._all for problem in read.actions.tally()]

    def read(self, name: str, place: SourceLine, asked: Asked, *, strict: bool = False) -> Table | None:
        """Return the table `TYPE:FILE`; None, and note a problem, if it cannot be used.

        `place` is where the table is named, `asked` what it is asked for. A file that is read `strict` is used as a
        whole or not at all, as is what stands in the configuration itself.
        """
        type, colon, file = name.partition(":")
        if not colon or not file or (type not in READERS and type not in FILELESS_READERS):
            self._problems.append(place.problem(_explain_bad_name(name, type if colon else "")))
            return None
        if type == "cidr" and not asked.has_addresses:
            what = f"{name} never matches: a cidr: table knows addresses only, and it is asked for {asked} here"
            self._problems.append(place.problem(what, warning=True))
        if type in FILELESS_READERS or (type in RULE_TYPES and file.startswith("{")):
            found = self._read_inline(type, file, place, asked.has_values)
        else:
            key = (type, self._folder / file, asked.has_values, strict)
            if key not in self._files:
                self._files[key] = self._read_file(*key[:2], place, asked, strict)
            found = self._files[key]
        if found is None:
            return None
        found.asked.add(asked)
        return found.table

    def _read_inline(self, type: str, text: str, place: SourceLine, values: bool) -> "_Read | None":
        try:
            data = text.encode("utf-8", "surrogateescape") if type in FILELESS_READERS else inline_lines(text)
        except ValueError as error:
            self._problems.append(place.problem(str(error)))
            return None
        actions = Actions(place.file, self._restrictions, values, place.line)
        return self._parse({**READERS, **FILELESS_READERS}[type], data, actions)

    def _read_file(self, type: str, path: Path, place: SourceLine, asked: Asked, strict: bool) -> "_Read | None":
        try:
            data = without_bom(watched_files.read(path))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            self._problems.append(place.problem(f"cannot read {path}: {reason}"))
            return None
        actions = Actions(str(path), self._restrictions, asked.has_values, strict=strict)
        return self._parse(READERS[type], data, actions)

    def _parse(self, parse: Callable[[bytes, Actions], Table], data: bytes, actions: Actions) -> "_Read":
        table = parse(data, actions)
        problems = actions.finish()
        self.conditions |= actions.conditions
        found = _Read(table if all(problem.warning for problem in problems) else None, actions)
        self._all.append(found)
        return found


@dataclass(slots=True)
class _Read:
    """A table that was read, None if it cannot be used, and all that it is asked for."""

    table: Table | None
    actions: Actions
    asked: set[Asked] = field(default_factory=set)

    def problems(self) -> list[Problem]:
        """Return what is wrong with the table."""
        about_keys = self.actions.keys.remarks(frozenset(self.asked))
        return [*self.actions.problems, *(self.actions.problem(*remark, warning=True) for remark in about_keys)]


def _explain_bad_name(name: str, type: str) -> str:
    allowed = f"allowed: {', '.join(f'{known}:FILE' for known in READERS)}, inline:{{ KEY=ACTION, ... }}"
    inner = name.removeprefix("proxy:")
    type_within = inner.partition(":")[0]
    if inner != name and type_within in READERS:
        return f"{name!r}: gatekeeper reads the file itself; write {inner}"
    if name.startswith("{"):
        return f"{name!r} is not a table; only check_ccert_access takes one in braces; {allowed}"
    if type and type not in READERS:
        what = f"{inner!r}: tables of type {type_within} cannot be read"
        return f"{what}; leave this restriction in main.cf, or write the table's contents into a file; {allowed}"
    return f"{name!r} is not a table; {allowed}"
