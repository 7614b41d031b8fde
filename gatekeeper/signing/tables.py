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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet, DataSetEntry
from gatekeeper.signing.keys import ALGORITHMS, BadKey, KeyFiles, PrivateKey

_DOMAIN = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)


_SEED = re.compile(r"/[A-Za-z0-9+/]{42}=")
"""One Ed25519 seed in 64 begins as a path does."""


def is_path(text: str) -> bool:
    """Whether the key of a KeyTable line is in a file, and not `text` itself."""
    return text.startswith(("/", "./", "../")) and not _SEED.fullmatch(text)


@dataclass(frozen=True, slots=True)
class TableKey:
    """One line of the KeyTable. `location` is a path or, for an inline key, empty. `private` is None if the key could
    not be used when the table was read. `previous` is the line of that name before the last reload that changed it."""

    name: str
    domain: str
    selector: str
    location: str
    private: PrivateKey | None = None
    previous: "TableKey | None" = None

    @property
    def waits_for_domain(self) -> bool:
        """Whether each From domain has a key file of its own."""
        return self.domain == "%" and "%" in self.location

    @property
    def usable(self) -> bool:
        """Whether it can sign; parses the key."""
        return self.private is not None and self.private.usable

    def same_key(self, other: "TableKey") -> bool:
        """Whether both sign alike."""
        mine, theirs = (self.domain, self.selector, self.location), (other.domain, other.selector, other.location)
        if self.private is None or other.private is None:
            return mine == theirs and self.private is other.private
        return mine == theirs and self.private.same(other.private)


class KeyTable:
    """The keys by name; names are case-sensitive. In a refile the names are patterns. `unusable` are those problems
    that concern one key alone, so that the others can work."""

    def __init__(self, data: DataSet, base: Path, files: KeyFiles, problems: list[Problem]) -> None:
        self._name = data.name
        self._base = base
        self._files = files
        self._keys: dict[str, TableKey] = {}
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self._inline: list[PrivateKey] = []
        self._by_path: dict[str, PrivateKey | None] = {}
        self._by_domain: dict[str, PrivateKey | None] = {}
        self._before: dict[str, PrivateKey] = {}
        self.unusable: list[Problem] = []
        for entry in data.entries:
            key = self._parse(data, entry, problems)
            if key is not None:
                self._add(data, entry, key, problems)

    @classmethod
    def read(
        cls, spec: str | Sequence[str], where: str = "KeyTable", *, base: Path = Path(), files: KeyFiles | None = None
    ) -> "tuple[KeyTable, list[Problem]]":
        """Read the table and the keys it names. `where` is the option's name, `base` where relative paths start."""
        data, problems = data_set.read(spec, where, base)
        files = files or KeyFiles()
        table = cls(data, base, files, problems)
        table.unusable += files.problems
        return table, problems + table.unusable

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def __iter__(self) -> Iterator[TableKey]:
        """Every line; those whose path waits for the From domain once for each domain that has a key file."""
        for key in self._keys.values():
            if not key.waits_for_domain:
                yield key
                continue
            for location in self._by_domain:
                if domain := _domain_in(key.location, location):
                    yield _filled_in(key, domain, self._by_domain)

    def find(self, name: str, domain: str) -> TableKey | None:
        """The key called `name`, with `%` filled in for mail from `domain`; None if there is none of that name."""
        key = self._find(name)
        return key if key is None else _filled_in(key, domain, self._by_domain)

    def previous(self, name: str, domain: str) -> TableKey | None:
        """The key that was called `name` before the last reload that changed it; None if none is known."""
        key = self._find(name)
        if key is not None and not key.waits_for_domain:
            key = key.previous
        return key and _filled_in(key, domain, self._before)

    def inherit(self, old: "KeyTable") -> None:
        """Remember the keys of the table that this one replaces, where they were usable and have changed."""
        for name, key in self._keys.items():
            before = old._keys.get(name)
            if before is not None:
                keep = before.previous if key.same_key(before) or not before.usable else before
                self._keys[name] = replace(key, previous=keep and replace(keep, previous=None))
        self._before = dict(old._before)
        for path, was in old._by_domain.items():
            now = self._by_domain.get(path)
            if was is not None and was.usable and (now is None or not now.same(was)):
                self._before[path] = was

    def check(self) -> list[Problem]:
        """Validate every key fully (37 ms for each RSA key): for check-config."""
        found = [*self._inline, *self._by_path.values(), *self._by_domain.values()]
        unique = {id(key): key for key in found if key is not None}
        return [problem for key in unique.values() for problem in key.check()]

    def _find(self, name: str) -> TableKey | None:
        key = self._keys.get(name)
        if key is None:
            for pattern, text in self._patterns:
                if pattern.search(name):
                    return self._keys[text]
        return key

    def _parse(self, data: DataSet, entry: DataSetEntry, problems: list[Problem]) -> TableKey | None:
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
            self.unusable += _wrong_algorithm(data, entry, algorithm, key.private)
        return key

    def _load(self, data: DataSet, entry: DataSetEntry, domain: str, text: str) -> tuple[str, PrivateKey | None]:
        """Where the key lies, and the key; a path that waits for the From domain has none yet."""
        if not is_path(text):
            key = PrivateKey(text.encode("utf-8", "surrogateescape"), data.place(entry), self._files.demands)
            self._inline.append(key)
            return "", key
        location = text if text.startswith("/") else str(self._base / text)
        if "%" in location and domain == "%":
            self._load_all(location)
            return location, None
        location = location.replace("%", domain)
        found = self._by_path[location] = self._files.read(location, named_in=data.place(entry) if entry.line else "")
        return location, found

    def _load_all(self, template: str) -> None:
        """Read the keys of all domains for which there is a file of this name: a worker could not read them."""
        watched_files.record(Path(template.partition("%")[0]).parent if "/" in template else ".")
        for found in glob.glob("*".join(map(glob.escape, template.split("%")))):
            if _domain_in(template, found):
                self._by_domain[found] = self._files.read(found)

    def _add(self, data: DataSet, entry: DataSetEntry, key: TableKey, problems: list[Problem]) -> None:
        if entry.key in self._keys:
            what = f"key {entry.key}: an earlier line has this name; this one is unused"
            problems.append(data.problem(entry, what, warning=True))
            return
        if data.kind == "refile" and not data_set.is_literal(entry.key):
            try:
                self._patterns.append((data_set.pattern(entry.key, ignore_case=False), entry.key))
            except ValueError as error:
                problems.append(data.problem(entry, str(error)))
                return
        self._keys[entry.key] = key


def _domain_in(template: str, path: str) -> str:
    """The domain that stands in `path` where `template` has its `%`; empty if `path` is of another shape."""
    match = _shape(template).fullmatch(path)
    return match["domain"] if match else ""


@lru_cache
def _shape(template: str) -> re.Pattern[str]:
    head, *tail = map(re.escape, template.split("%"))
    return re.compile(f"{head}(?P<domain>[^/]+)" + "(?P=domain)".join(tail))


def _filled_in(key: TableKey, domain: str, by_domain: Mapping[str, PrivateKey | None]) -> TableKey:
    """`key` for mail from `domain`."""
    if key.domain != "%":
        return key
    if not key.waits_for_domain:
        return replace(key, domain=domain)
    location = key.location.replace("%", domain)
    return replace(key, domain=domain, location=location, private=by_domain.get(location))


def _wrong_algorithm(data: DataSet, entry: DataSetEntry, algorithm: str, key: PrivateKey) -> list[Problem]:
    try:
        if key.algorithm == algorithm:
            return []
        what = f"key {entry.key}: its algorithm is {key.algorithm}, not {algorithm}"
    except BadKey as bad:
        what = f"key {entry.key}: {bad}"
    return [data.problem(entry, what)]


@dataclass(frozen=True, slots=True)
class SigningRule:
    """One line of the SigningTable; `key_name` and `signer` may hold a `%` for the From domain."""

    place: str
    pattern: str
    key_name: str
    signer: str = ""

    @property
    def is_for_all(self) -> bool:
        """Whether it says nothing about whose domain is whose."""
        return self.pattern in ("*", "*@*")

    def key_for(self, domain: str) -> str:
        """The name in the KeyTable for mail from `domain`."""
        return domain if self.key_name == "%" else self.key_name

    def signer_for(self, domain: str) -> str:
        """The `i=` for mail from `domain`; empty if there is none."""
        return self.signer.replace("%", domain)


_Candidates = dict[str, list[tuple[int, str]]]
_compiled = lru_cache(maxsize=1024)(data_set.pattern)


@dataclass(slots=True)
class _Ordered:
    """A refile: the file's order decides. Patterns are found by the domain that they end in, so that only those of
    unusual shape are tried one by one. A pattern that says nothing else is empty, others are compiled at first use."""

    literal: dict[str, list[int]] = field(default_factory=dict)  # joe@example.com
    domain: _Candidates = field(default_factory=dict)  # *@example.com, joe+*@example.com
    parent: _Candidates = field(default_factory=dict)  # *@*.example.com, by .example.com
    other: list[tuple[int, re.Pattern[str]]] = field(default_factory=list)

    def add(self, number: int, pattern: str) -> None:
        user, at, domain = pattern.lower().rpartition("@")
        parent = domain.startswith("*.")
        if data_set.is_literal(pattern):
            self.literal.setdefault(pattern.lower(), []).append(number)
        elif at and "|" not in user and data_set.is_literal(domain.removeprefix("*") if parent else domain):
            if not data_set.is_literal(user.replace("*", "")):
                data_set.pattern(pattern)  # it may be no regular expression
            by_domain = self.parent if parent else self.domain
            by_domain.setdefault(domain.removeprefix("*"), []).append((number, "" if user == "*" else pattern))
        else:
            self.other.append((number, data_set.pattern(pattern)))

    def match(self, user: str, domain: str) -> list[int]:
        address = f"{user}@{domain}"
        found = list(self.literal.get(address.lower(), ()))
        candidates = list(self.domain.get(domain, ()))
        for parent in data_set.parents(domain):
            candidates += self.parent.get(parent, ())
        found += [number for number, pattern in candidates if not pattern or _compiled(pattern).search(address)]
        found += [number for number, expression in self.other if expression.search(address)]
        return sorted(found)


class SigningTable:
    """Who signs with which key. Matched without regard to case. `unusable` are lines whose key does not exist."""

    def __init__(self, data: DataSet, keys: KeyTable, problems: list[Problem]) -> None:
        self.unusable: list[Problem] = []
        self._rules: list[SigningRule] = []
        self._plain: dict[str, int] = {}
        self._ordered = _Ordered() if data.kind == "refile" else None
        for entry in data.entries:
            name, _, signer = (part.strip() for part in entry.value.partition(":"))
            problems += _mistakes(data, entry, name, signer)
            if not name:
                continue
            if name != "%" and name not in keys:
                self.unusable.append(data.problem(entry, f"{entry.key}: there is no key {name} in the KeyTable"))
            self._rules.append(SigningRule(data.place(entry), entry.key, name, signer))
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
        data, problems = data_set.read(spec, where, base)
        table = cls(data, keys, problems)
        return table, sorted(problems + table.unusable, key=lambda problem: problem.line)

    def __len__(self) -> int:
        return len(self._rules)

    def match(self, user: str, domain: str) -> Iterator[SigningRule]:
        """The rules for mail from `user@domain` (`domain` in lower case), best first."""
        if self._ordered is not None:
            numbers: Sequence[int] = self._ordered.match(user, domain)
        else:
            numbers = [self._plain[probe] for probe in probes(user.lower(), domain) if probe in self._plain]
        for number in numbers:
            yield self._rules[number]

    def _add_pattern(self, ordered: _Ordered, data: DataSet, entry: DataSetEntry) -> list[Problem]:
        try:
            ordered.add(len(self._rules) - 1, entry.key)
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


def _mistakes(data: DataSet, entry: DataSetEntry, name: str, signer: str) -> Iterator[Problem]:
    if not name:
        yield data.problem(entry, f"{entry.key}: the name of a key is missing")
        return
    if signer and "@" not in signer:
        what = f"{entry.key}: {signer} has no @, so that OpenDKIM signs nothing; here the signature has no i="
        yield data.problem(entry, what, warning=True)


def probes(user: str, domain: str) -> Iterator[str]:
    """What a plain SigningTable is asked, in OpenDKIM's order; `*@domain` is ours."""
    yield f"{user}@{domain}"
    yield domain
    yield f"*@{domain}"
    for parent in data_set.parents(domain):
        yield f"{user}@{parent}"
        yield parent
    yield f"{user}@*"
    yield "*"
