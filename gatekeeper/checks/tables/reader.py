# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading of the tables that a configuration names as `TYPE:FILE`.

Each file is read once, and every mistake in it is collected. Indexed tables are read from their source text. Tables in
a server or in Postfix (`mysql:`, `ldap:`, `proxy:`) are refused, with what is allowed.
"""

from collections.abc import Callable
from pathlib import Path

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.action import RestrictionBuilder
from gatekeeper.checks.tables.indexed import parse_indexed
from gatekeeper.checks.tables.inline import inline_lines, parse_inline, parse_static
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
        self.problems: list[Problem] = []
        self.conditions: set[str] = set()
        """The conditions on allow entries in all tables."""
        self._folder = folder
        self._restrictions = restrictions
        self._read: dict[tuple[str, Path, bool], Table | None] = {}

    def read(self, name: str, place: SourceLine, *, values: bool = False) -> Table | None:
        """Return the table `TYPE:FILE`; None, and note a problem, if it cannot be used.

        `place` is where the table is named. With `values` the right-hand sides are not actions but texts of any kind.
        """
        type, colon, file = name.partition(":")
        if type in FILELESS_READERS:
            return self._parse(
                FILELESS_READERS[type],
                file.encode("utf-8", "surrogateescape"),
                Actions(place.file, self._restrictions, values, place.line),
            )
        if type in RULE_TYPES and file.startswith("{"):
            return self._read_braces(type, file, place, values)
        if not colon or not file or type not in READERS:
            self.problems.append(place.problem(_explain_bad_name(name, type if colon else "")))
            return None
        path = self._folder / file
        if (type, path, values) not in self._read:
            self._read[type, path, values] = self._read_file(type, path, place, values)
        return self._read[type, path, values]

    def _read_braces(self, type: str, text: str, place: SourceLine, values: bool) -> Table | None:
        try:
            data = inline_lines(text)
        except ValueError as error:
            self.problems.append(place.problem(str(error)))
            return None
        return self._parse(READERS[type], data, Actions(place.file, self._restrictions, values, place.line))

    def _read_file(self, type: str, path: Path, place: SourceLine, values: bool) -> Table | None:
        try:
            data = without_bom(watched_files.read(path))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            self.problems.append(place.problem(f"cannot read {path}: {reason}"))
            return None
        return self._parse(READERS[type], data, Actions(str(path), self._restrictions, values))

    def _parse(self, parse: Callable[[bytes, Actions], Table], data: bytes, actions: Actions) -> Table | None:
        table = parse(data, actions)
        problems = actions.finish()
        self.conditions |= actions.conditions
        self.problems += problems
        return table if all(problem.warning for problem in problems) else None


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
