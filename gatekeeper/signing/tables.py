# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenDKIM's KeyTable (which keys there are) and SigningTable (who signs with which), used as they are.

KeyTable: `name domain:selector:key[:algorithm]`. SigningTable: `pattern keyname[:signer]`. Read once, by the
privileged parent, with every key file they name; each mistake is a Problem with its place, and what is right still
works. A look-up costs the same with ten entries and with a hundred thousand; only refile patterns of unusual shape
are tried one by one.

Wanted deviations from OpenDKIM: `*@domain` in a SigningTable that is no refile does match (OpenDKIM silently signs
nothing), with a warning; white space around the fields of a KeyTable is dropped, with a warning; keys whose path
holds a `%` for the From domain are found when the table is read, not at each message.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gatekeeper.problem import Problem
from gatekeeper.signing import dataset
from gatekeeper.signing.dataset import DataSet, Entry
from gatekeeper.signing.keys import ALGORITHMS, BadKey, KeyFiles, PrivateKey

_DOMAIN = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)


_SEED = re.compile(r"/[A-Za-z0-9+/]{42}=")
"""One Ed25519 seed in 64 begins as a path does."""


@dataclass(frozen=True, slots=True)
class TableKey:
    """One line of the KeyTable. `location` is a path or, for an inline key, empty. `private` is None if the key could
    not be used when the table was read."""

    name: str
    domain: str
    selector: str
    location: str
    private: PrivateKey | None = None


class KeyTable:
    """The keys by name; names are case-sensitive. In a refile the names are patterns."""

    def __init__(self, data: DataSet, base: Path, files: KeyFiles, problems: list[Problem]) -> None:
        self._name = data.name
        self._base = base
        self._files = files
        self._keys: dict[str, TableKey] = {}
        self._patterns: list[tuple[re.Pattern[str], TableKey]] = []
        self._inline: list[PrivateKey] = []
        self._by_path: dict[str, PrivateKey | None] = {}
        for entry in data.entries:
            key = self._parse(data, entry, problems)
            if key is not None:
                self._add(data, entry, key, problems)

    @classmethod
    def read(
        cls, spec: str | Sequence[str], where: str = "KeyTable", *, base: Path = Path(), files: KeyFiles | None = None
    ) -> "tuple[KeyTable, list[Problem]]":
        """Read the table and the keys it names. `where` is the option's name, `base` where relative paths start."""
        data, problems = dataset.read(spec, where, base)
        files = files or KeyFiles()
        table = cls(data, base, files, problems)
        return table, problems + files.problems

    def __len__(self) -> int:
        return len(self._keys) + len(self._patterns)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def find(self, name: str, domain: str) -> TableKey | None:
        """The key called `name`, with `%` filled in for mail from `domain`; None if there is none of that name."""
        key = self._find(name)
        if key is None or key.domain != "%":
            return key
        if "%" not in key.location:
            return replace(key, domain=domain)
        location = key.location.replace("%", domain)
        return replace(key, domain=domain, location=location, private=self._by_path.get(location))

    def check(self) -> list[Problem]:
        """Validate every key fully (37 ms for each RSA key): for check-config."""
        unique = {id(key): key for key in [*self._inline, *self._by_path.values()] if key is not None}
        return [problem for key in unique.values() for problem in key.check()]

    def _find(self, name: str) -> TableKey | None:
        key = self._keys.get(name)
        if key is None:
            for pattern, candidate in self._patterns:
                if pattern.search(name):
                    return candidate
        return key

    def _parse(self, data: DataSet, entry: Entry, problems: list[Problem]) -> TableKey | None:
        fields = entry.value.split(":", 2)
        if len(fields) < 3 or not all(part.strip() for part in fields):
            what = f"key {entry.key}: expected domain:selector:key, with a path or the key itself behind the second :"
            problems.append(data.problem(entry, what))
            return None
        if any(part != part.strip() for part in fields):
            what = f"key {entry.key}: white space around a : is part of the value for OpenDKIM; remove it"
            problems.append(data.problem(entry, what, warning=True))
        domain, selector, text = (part.strip() for part in fields)
        if domain != "%" and not _DOMAIN.fullmatch(domain):
            problems.append(data.problem(entry, f"key {entry.key}: {domain} is no domain name, nor %"))
            return None
        if not _DOMAIN.fullmatch(selector):
            problems.append(data.problem(entry, f"key {entry.key}: {selector} is no selector"))
            return None
        location, _, algorithm = text.rpartition(":")
        if algorithm not in ALGORITHMS:
            location, algorithm = text, ""
        key = TableKey(entry.key, domain.lower(), selector, *self._load(data, entry, domain.lower(), location))
        if algorithm and key.private is not None:
            problems += _wrong_algorithm(data, entry, algorithm, key.private)
        return key

    def _load(self, data: DataSet, entry: Entry, domain: str, text: str) -> tuple[str, PrivateKey | None]:
        """Where the key lies, and the key; a path that waits for the From domain has none yet."""
        if not text.startswith(("/", "./", "../")) or _SEED.fullmatch(text):
            key = PrivateKey(text.encode("utf-8", "surrogateescape"), data.place(entry))
            self._inline.append(key)
            return "", key
        location = str(self._base / text)
        if "%" in location and domain == "%":
            self._load_all(location)
            return location, None
        location = location.replace("%", domain)
        return location, self._read(location)

    def _load_all(self, template: str) -> None:
        """Read the keys of all domains for which there is a file of this name: a worker could not read them."""
        head, *tail = map(re.escape, template.split("%"))
        shape = re.compile(f"{head}(?P<domain>[^/]+)" + "(?P=domain)".join(tail))
        for found in glob.glob("*".join(map(glob.escape, template.split("%")))):
            if shape.fullmatch(found):
                self._read(found)

    def _read(self, location: str) -> PrivateKey | None:
        key = self._by_path[location] = self._files.read(location)
        return key

    def _add(self, data: DataSet, entry: Entry, key: TableKey, problems: list[Problem]) -> None:
        if data.kind == "refile" and not dataset.is_literal(entry.key):
            try:
                self._patterns.append((dataset.pattern(entry.key, ignore_case=False), key))
            except ValueError as error:
                problems.append(data.problem(entry, str(error)))
        elif entry.key in self._keys:
            what = f"key {entry.key}: an earlier line has this name; this one is unused"
            problems.append(data.problem(entry, what, warning=True))
        else:
            self._keys[entry.key] = key


def _wrong_algorithm(data: DataSet, entry: Entry, algorithm: str, key: PrivateKey) -> list[Problem]:
    try:
        if key.algorithm == algorithm:
            return []
        what = f"key {entry.key}: its algorithm is {key.algorithm}, not {algorithm}"
    except BadKey as bad:
        what = f"key {entry.key}: {bad}"
    return [data.problem(entry, what)]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the SigningTable; `key_name` and `signer` may hold a `%` for the From domain."""

    place: str
    pattern: str
    key_name: str
    signer: str = ""

    def key_for(self, domain: str) -> str:
        """The name in the KeyTable for mail from `domain`."""
        return domain if self.key_name == "%" else self.key_name

    def signer_for(self, domain: str) -> str:
        """The `i=` for mail from `domain`; empty if there is none."""
        return self.signer.replace("%", domain)


@dataclass(slots=True)
class _Ordered:
    """A refile: the file's order decides. Patterns of the usual shapes are found by what they end in."""

    literal: dict[str, list[int]] = field(default_factory=dict)  # joe@example.com
    domain: dict[str, list[int]] = field(default_factory=dict)  # *@example.com
    parent: dict[str, list[int]] = field(default_factory=dict)  # *@*.example.com, as .example.com
    other: list[tuple[int, re.Pattern[str]]] = field(default_factory=list)

    def add(self, number: int, pattern: str) -> None:
        folded = pattern.lower()
        if dataset.is_literal(pattern):
            self.literal.setdefault(folded, []).append(number)
        elif folded.startswith("*@*.") and dataset.is_literal(folded[3:]):
            self.parent.setdefault(folded[3:], []).append(number)
        elif folded.startswith("*@") and dataset.is_literal(folded[2:]):
            self.domain.setdefault(folded[2:], []).append(number)
        else:
            self.other.append((number, dataset.pattern(pattern)))

    def match(self, user: str, domain: str) -> list[int]:
        address = f"{user}@{domain}"
        found = [*self.literal.get(address.lower(), ()), *self.domain.get(domain, ())]
        for parent in dataset.parents(domain):
            found += self.parent.get(parent, ())
        found += [number for number, pattern in self.other if pattern.search(address)]
        return sorted(found)


class SigningTable:
    """Who signs with which key. Matched without regard to case."""

    def __init__(self, data: DataSet, keys: KeyTable, problems: list[Problem]) -> None:
        self._rules: list[Rule] = []
        self._plain: dict[str, int] = {}
        self._ordered = _Ordered() if data.kind == "refile" else None
        for entry in data.entries:
            name, _, signer = (part.strip() for part in entry.value.partition(":"))
            problems += _mistakes(data, entry, name, signer, keys)
            if not name:
                continue
            self._rules.append(Rule(data.place(entry), entry.key, name, signer))
            if self._ordered is not None:
                problems += self._add_pattern(self._ordered, data, entry)
            else:
                problems += self._add_plain(data, entry)

    @classmethod
    def read(
        cls, spec: str | Sequence[str], keys: KeyTable, where: str = "SigningTable", *, base: Path = Path()
    ) -> "tuple[SigningTable, list[Problem]]":
        """Read the table. A key name that `keys` does not know is a problem, but its line still matches: such mail is
        not to leave unsigned by a mistake."""
        data, problems = dataset.read(spec, where, base)
        return cls(data, keys, problems), problems

    def __len__(self) -> int:
        return len(self._rules)

    def match(self, user: str, domain: str) -> Iterator[Rule]:
        """The rules for mail from `user@domain` (`domain` in lower case), best first."""
        if self._ordered is not None:
            numbers: Sequence[int] = self._ordered.match(user, domain)
        else:
            numbers = [self._plain[probe] for probe in probes(user.lower(), domain) if probe in self._plain]
        for number in numbers:
            yield self._rules[number]

    def _add_pattern(self, ordered: _Ordered, data: DataSet, entry: Entry) -> list[Problem]:
        try:
            ordered.add(len(self._rules) - 1, entry.key)
        except ValueError as error:
            return [data.problem(entry, str(error))]
        if "\\" in entry.key:
            what = "a backslash stands for itself here; . and + need none"
            return [data.problem(entry, what, warning=True)]
        if dataset.is_literal(entry.key) and "@" not in entry.key:
            what = f"{entry.key} matches nothing: a refile compares whole addresses; write *@{entry.key.lstrip('.')}"
            return [data.problem(entry, what, warning=True)]
        return []

    def _add_plain(self, data: DataSet, entry: Entry) -> list[Problem]:
        key = entry.key.lower()
        found = []
        if "*" in key.removesuffix("*"):
            if not key.startswith("*@") or "*" in key[2:]:
                what = f"{entry.key} matches nothing; patterns need refile: before the name of the file"
                found.append(data.problem(entry, what, warning=True))
            elif data.kind != "list":
                what = f"{entry.key} matches here, but in OpenDKIM only with refile: before the name of the file"
                found.append(data.problem(entry, what, warning=True))
        if key in self._plain:
            what = f"{entry.key}: an earlier line has this pattern; this one is unused"
            found.append(data.problem(entry, what, warning=True))
        else:
            self._plain[key] = len(self._rules) - 1
        return found


def _mistakes(data: DataSet, entry: Entry, name: str, signer: str, keys: KeyTable) -> Iterator[Problem]:
    if not name:
        yield data.problem(entry, f"{entry.key}: the name of a key is missing")
        return
    if name != "%" and name not in keys:
        yield data.problem(entry, f"{entry.key}: there is no key {name} in the KeyTable")
    if signer and "@" not in signer:
        what = f"{entry.key}: {signer} has no @, so that OpenDKIM signs nothing; here the signature has no i="
        yield data.problem(entry, what, warning=True)


def probes(user: str, domain: str) -> Iterator[str]:
    """What a plain SigningTable is asked, in OpenDKIM's order; `*@domain` is ours."""
    yield f"{user}@{domain}"
    yield domain
    yield f"*@{domain}"
    for parent in dataset.parents(domain):
        yield f"{user}@{parent}"
        yield parent
    yield f"{user}@*"
    yield "*"
