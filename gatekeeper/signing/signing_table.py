# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenDKIM's SigningTable, which says whose mail is signed with which key; an existing file can be used unchanged.

A line is `pattern keyname[:signer]`. The privileged parent reads the table once; each mistake is a Problem with its
location, and the other lines still work. A look-up costs the same with ten entries as with a hundred thousand; only
refile patterns of unusual form are tried one by one.

Deliberate deviations from OpenDKIM: `*@domain` in a table that is not a refile does match (OpenDKIM silently signs
nothing), with a warning; and domains are compared in one form, in which mail has them too (auth/domains.py), whether
they are written with umlauts or as A-labels, or with a final dot.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from gatekeeper.auth.domains import configured_domain, configured_mailbox
from gatekeeper.core.problem import Problem
from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet, DataSetEntry
from gatekeeper.signing.key_table import KeyTable


@dataclass(frozen=True, slots=True)
class SigningRule:
    """One line of the SigningTable; `key_name` and `signer` may contain a `%` for the From domain.

    `location` is where it was read: `file:line`, or the option.
    """

    location: str
    pattern: str
    key_name: str
    signer: str = ""

    @property
    def is_for_all(self) -> bool:
        """Whether it matches every sender, so that it does not tell which domains are ours."""
        return self.pattern in ("*", "*@*")

    def key_for(self, domain: str) -> str:
        """Return the name in the KeyTable for mail from `domain`."""
        return domain if self.key_name == "%" else self.key_name

    def signer_for(self, domain: str) -> str:
        """Return the `i=` for mail from `domain`; empty if there is none."""
        return self.signer.replace("%", domain)


_Candidates = dict[str, list[tuple[int, str]]]
_compiled = lru_cache(maxsize=1024)(data_set.pattern)


@dataclass(slots=True)
class _RefileIndex:
    """The numbers of the rules of a refile, in whose order rules apply, by their pattern.

    Patterns are found by the domain that they end in, so that only those of unusual form are tried one by one. A
    pattern that only tests the domain is stored as an empty string; others are compiled at first use.
    """

    literal: dict[str, list[int]] = field(default_factory=dict)  # joe@example.com
    domain: _Candidates = field(default_factory=dict)  # *@example.com, joe+*@example.com
    parent: _Candidates = field(default_factory=dict)  # *@*.example.com, by .example.com
    other: list[tuple[int, re.Pattern[str]]] = field(default_factory=list)

    def add(self, number: int, pattern: str) -> None:
        user, at, domain = pattern.lower().rpartition("@")
        parent = domain.startswith("*.")
        if data_set.is_literal(pattern):
            self.literal.setdefault(configured_mailbox(pattern).lower(), []).append(number)
        elif at and "|" not in user and data_set.is_literal(domain.removeprefix("*") if parent else domain):
            if not data_set.is_literal(user.replace("*", "")):
                data_set.pattern(pattern)  # raises ValueError unless it is a regular expression
            by_domain = self.parent if parent else self.domain
            domain = domain.removeprefix("*")
            domain = configured_domain(domain) or domain
            whole = f"{user}@{'*' if parent else ''}{domain}"
            by_domain.setdefault(domain, []).append((number, "" if user == "*" else whole))
        else:
            self.other.append((number, data_set.pattern(data_set.without_final_dot(pattern))))

    def match(self, user: str, domain: str) -> list[int]:
        address = f"{user}@{domain}"
        found = list(self.literal.get(address.lower(), ()))
        candidates = list(self.domain.get(domain, ()))
        for parent in data_set.parents(domain):
            candidates += self.parent.get(parent, ())
        found += [number for number, pattern in candidates if not pattern or _compiled(pattern).search(address)]
        found += [number for number, expression in self.other if data_set.matches(expression, address)]
        return sorted(found)


class SigningTable:
    """The rules by sender, case-insensitive. `unusable` are problems with lines whose key does not exist."""

    def __init__(self, data: DataSet, keys: KeyTable, problems: list[Problem]) -> None:
        self.unusable: list[Problem] = []
        self._rules: list[SigningRule] = []
        self._plain: dict[str, int] = {}
        self._refile = _RefileIndex() if data.kind == "refile" else None
        for entry in data.entries:
            name, _, signer = (part.strip() for part in entry.value.partition(":"))
            problems += _check_fields(data, entry, name, signer)
            if not name:
                continue
            if name != "%" and name not in keys:
                self.unusable.append(data.problem(entry, f"{entry.key}: there is no key {name} in the KeyTable"))
            self._rules.append(SigningRule(data.location(entry), entry.key, name, _normal_signer(signer)))
            if self._refile is not None:
                problems += self._add_pattern(self._refile, data, entry)
            else:
                problems += self._add_plain(data, entry)

    @classmethod
    def read(
        cls, spec: str | Sequence[str], keys: KeyTable, where: str = "SigningTable", *, base: Path = Path()
    ) -> "tuple[SigningTable, list[Problem]]":
        """Read the table. `where` is the option's name, `base` the directory where relative paths start.

        A key name that is not in `keys` is a problem, but its line still matches: such mail must not leave unsigned
        because of a mistake.
        """
        data, problems = data_set.read(spec, where, base)
        table = cls(data, keys, problems)
        return table, sorted(problems + table.unusable, key=lambda problem: problem.line)

    def __len__(self) -> int:
        return len(self._rules)

    def match(self, user: str, domain: str) -> Iterator[SigningRule]:
        """Yield the rules for mail from `user@domain` (`domain` in lower case), best first."""
        if self._refile is not None:
            numbers: Sequence[int] = self._refile.match(user, domain)
        else:
            numbers = [self._plain[key] for key in lookup_keys(user.lower(), domain) if key in self._plain]
        for number in numbers:
            yield self._rules[number]

    def _add_pattern(self, refile: _RefileIndex, data: DataSet, entry: DataSetEntry) -> list[Problem]:
        try:
            refile.add(len(self._rules) - 1, entry.key)
        except ValueError as error:
            return [data.problem(entry, str(error))]
        if "\\" in entry.key:
            what = "a backslash stands for itself here; . and + need none"
            return [data.problem(entry, what, warning=True)]
        if data_set.is_literal(entry.key) and "@" not in entry.key:
            what = f"{entry.key} matches nothing: a refile compares whole addresses; write *@{entry.key.lstrip('.')}"
            return [data.problem(entry, what, warning=True)]
        return []

    def _add_plain(self, data: DataSet, entry: DataSetEntry) -> list[Problem]:
        key = configured_mailbox(entry.key).lower()
        found = []
        if "*" in key.removesuffix("*"):
            if not key.startswith("*@") or "*" in key[2:]:
                what = f"{entry.key} matches nothing; patterns need refile: before the name of the file"
                found.append(data.problem(entry, what, warning=True))
            elif data.kind != "list":
                what = f"{entry.key} matches here, but in OpenDKIM only with refile: before the name of the file"
                found.append(data.problem(entry, what, warning=True))
        elif not configured_domain(key.rpartition("@")[2].removesuffix("*") or "any"):
            found.append(data.problem(entry, f"{entry.key} matches nothing: its domain is not valid", warning=True))
        if key in self._plain:
            what = f"{entry.key}: an earlier line has this pattern; this one is unused"
            found.append(data.problem(entry, what, warning=True))
        else:
            self._plain[key] = len(self._rules) - 1
        return found


def _check_fields(data: DataSet, entry: DataSetEntry, name: str, signer: str) -> Iterator[Problem]:
    if not name:
        yield data.problem(entry, f"{entry.key}: the name of a key is missing")
        return
    if signer and "@" not in signer:
        what = f"{entry.key}: {signer} has no @, so that OpenDKIM signs nothing; here the signature has no i="
        yield data.problem(entry, what, warning=True)


def _normal_signer(signer: str) -> str:
    """Return the signer with its domain as A-labels; what needs no change, or has a `%`, stays as it is written."""
    return signer if signer.isascii() and not signer.endswith(".") else configured_mailbox(signer)


def lookup_keys(user: str, domain: str) -> Iterator[str]:
    """Yield what is looked up in a plain SigningTable, in OpenDKIM's order; `*@domain` is our addition."""
    yield f"{user}@{domain}"
    yield domain
    yield f"*@{domain}"
    for parent in data_set.parents(domain):
        yield f"{user}@{parent}"
        yield parent
    yield f"{user}@*"
    yield "*"
