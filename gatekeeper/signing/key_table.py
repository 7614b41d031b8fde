# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenDKIM's KeyTable: which keys there are, used as it is.

A line is `name domain:selector:key[:algorithm]`. Read once, by the privileged parent, with every key file it names;
each mistake is a Problem with its place, and what is right still works.

Wanted deviations from OpenDKIM: white space around the fields is dropped, with a warning; keys whose path holds a `%`
for the From domain are found when the table is read, not at each message.
"""

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    not be used when the table was read. `previous` is the line of that name before the last reload that changed it.
    """

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
    that concern one key alone, so that the others can work.
    """

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
