# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of names (OpenDKIM's MTA, ExemptDomains, DontSignMailTo), and MacroList, milter macros with their values.

Names are case-insensitive, and domains, alone or behind an @, are compared in the form of auth/domains.py; in a refile
the entries are patterns.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gatekeeper.auth.domains import configured_mailbox
from gatekeeper.core.problem import Problem
from gatekeeper.signing import data_set


class NameSet:
    """Names and patterns of names. False if empty."""

    def __init__(self, *names: str) -> None:
        self._names = {_normal(name): name for name in names}
        self._patterns: list[tuple[re.Pattern[str], str]] = []

    @classmethod
    def read(cls, spec: str | Sequence[str], where: str, *, base: Path = Path()) -> "tuple[NameSet, list[Problem]]":
        """Read the set. `where` is the option's name, `base` the directory where relative paths start."""
        data, problems = data_set.read(spec, where, base)
        names = cls()
        for entry in data.entries:
            if data.kind != "refile" or data_set.is_literal(entry.key):
                names._names.setdefault(_normal(entry.key), entry.key)
                continue
            try:
                names._patterns.append((data_set.pattern(data_set.without_final_dot(entry.key)), entry.key))
            except ValueError as error:
                problems.append(data.problem(entry, str(error)))
        return names, problems

    def __bool__(self) -> bool:
        return bool(self._names or self._patterns)

    def find(self, name: str) -> str:
        """Return the entry that matches `name`, as written; empty if there is none."""
        name = _normal(name)
        found = self._names.get(name, "")
        return found or next((entry for pattern, entry in self._patterns if data_set.matches(pattern, name)), "")


def _normal(name: str) -> str:
    return configured_mailbox(name).lower()


class MacroList:
    """Milter macros that make a message ours, by being set at all or by having one of certain values (`a|b`)."""

    def __init__(self) -> None:
        self._values: dict[str, frozenset[str]] = {}  # by macro; empty: any value

    @classmethod
    def read(cls, spec: str | Sequence[str], where: str, *, base: Path = Path()) -> "tuple[MacroList, list[Problem]]":
        """Read the list: `name value|value` in files, `name=value|value` in comma lists."""
        data, problems = data_set.read(spec, where, base)
        macros = cls()
        for entry in data.entries:
            name = entry.key.removeprefix("{").removesuffix("}")
            if not re.fullmatch(r"\w+", name, re.ASCII):
                problems.append(
                    data.problem(entry, f"{entry.key} is not a milter macro; allowed: NAME or NAME VALUE|VALUE")
                )
                continue
            values = frozenset(value.strip() for value in entry.value.split("|") if value.strip())
            macros._values[f"{{{name}}}" if len(name) > 1 else name] = values
        return macros, problems

    @property
    def names(self) -> tuple[str, ...]:
        """The macros to request from libmilter, as it spells them: `{name}`, or one letter."""
        return tuple(self._values)

    def find(self, macros: Mapping[str, str]) -> str:
        """Return the first macro that is set to one of its values, as `{name}=value`; empty if none is."""
        for name, values in self._values.items():
            value = macros.get(name, "")
            if value and (not values or value in values):
                return f"{name}={value}"
        return ""
