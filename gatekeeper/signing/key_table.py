# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenDKIM's KeyTable, which lists the keys; an existing file can be used unchanged.

A line is `name domain:selector:key[:algorithm]`. A privileged process reads the table once, with every key file that it
names; each mistake is a Problem with its location, and the other lines still work. A key that cannot sign leaves the
one of its name that it was to replace in force (`inherit`).

Deliberate deviations from OpenDKIM: white space around the fields is ignored, with a warning; keys whose path contains
a `%` for the From domain are found when the table is read, not for each message; a domain is written into `d=` in the
form of auth/domains.py, in lower case and as A-labels.
"""

import copy
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from gatekeeper.auth.domains import configured_domain
from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet, DataSetEntry
from gatekeeper.signing.keys import ALGORITHMS, BadKey, KeyFiles, PrivateKey

_DOMAIN = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)
_SEED = re.compile(r"/[A-Za-z0-9+/]{42}=")
"""One Ed25519 seed in 64 begins with a slash, like a path."""


def is_selector(text: str) -> bool:
    """Return whether `text` is a valid selector."""
    return _DOMAIN.fullmatch(text) is not None


def is_path(text: str) -> bool:
    """Return whether `text`, the key of a KeyTable line, is the path of a file rather than the key itself."""
    return text.startswith(("/", "./", "../")) and not _SEED.fullmatch(text)


@dataclass(frozen=True, slots=True)
class TableKey:
    """One line of the KeyTable.

    `path` is empty for an inline key. `private` is None if the key could not be used when the table was read.
    `previous` is the line of that name, for the same domain, whose key signed before this one came.
    """

    name: str
    domain: str
    selector: str
    path: str
    private: PrivateKey | None = None
    previous: "TableKey | None" = None

    @property
    def per_domain(self) -> bool:
        """Whether each From domain has a key file of its own."""
        return self.domain == "%" and "%" in self.path

    @property
    def usable(self) -> bool:
        """Whether it can sign; parses the key."""
        return self.private is not None and self.private.usable

    def same_key(self, other: "TableKey") -> bool:
        """Return whether signatures with both are the same."""
        mine, theirs = (self.domain, self.selector, self.path), (other.domain, other.selector, other.path)
        if self.private is None or other.private is None:
            return mine == theirs and self.private is other.private
        return mine == theirs and self.private.same(other.private)


class KeyTable:
    """The keys by name, case-sensitive; in a refile the names are patterns.

    `unusable` are those problems that concern only one key, so that the others can still be used.
    """

    def __init__(self, data: DataSet, base: Path, files: KeyFiles, problems: list[Problem]) -> None:
        self._name = data.name
        self._base = base
        self._files = files
        self._keys: dict[str, TableKey] = {}
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self._domains: dict[str, str] = {}  # the names that are domains with umlauts, by the domain as A-labels
        self._inline: list[PrivateKey] = []
        self._by_path: dict[str, PrivateKey | None] = {}
        self._per_domain: dict[str, PrivateKey | None] = {}  # by path, for names with a key file for each domain
        self._previous: dict[str, PrivateKey] = {}  # by path, likewise
        self.unusable: list[Problem] = []
        for entry in data.entries:
            key = self._parse(data, entry, problems)
            if key is not None:
                self._add(data, entry, key, problems)

    @classmethod
    def read(
        cls, spec: str | Sequence[str], where: str = "KeyTable", *, base: Path = Path(), files: KeyFiles | None = None
    ) -> "tuple[KeyTable, list[Problem]]":
        """Read the table and the keys it names.

        `where` is the option's name, `base` the directory where relative paths start.
        """
        data, problems = data_set.read(spec, where, base)
        files = files or KeyFiles()
        table = cls(data, base, files, problems)
        table._files = KeyFiles()  # what it has read, it has told
        table.unusable += files.problems
        return table, problems + table.unusable

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def __iter__(self) -> Iterator[TableKey]:
        """Yield every line; one with a file for each domain, once for each domain that has one."""
        for key in self._keys.values():
            if not key.per_domain:
                yield key
                continue
            for path in self._per_domain:
                if domain := _domain_in(key.path, path):
                    yield _for_domain(key, domain, self._per_domain)

    def find(self, name: str, domain: str) -> TableKey | None:
        """Return the key called `name`, with `%` replaced for mail from `domain`; None if there is none."""
        key = self._find(name)
        return key if key is None else _for_domain(key, domain, self._per_domain)

    def previous(self, name: str, domain: str) -> TableKey | None:
        """Return the key that signed as `name` before the one that cannot; None if there was none."""
        key = self._find(name)
        if key is not None and not key.per_domain:
            key = key.previous
        return key and _for_domain(key, domain, self._previous)

    def inherit(self, old: "KeyTable") -> None:
        """Keep the keys of the table that this one replaces, if they were usable and have changed."""
        for name, key in self._keys.items():
            old_key = old._keys.get(name)
            if old_key is not None and old_key.domain == key.domain:  # never the signature of another domain
                previous = old_key.previous if key.same_key(old_key) or not old_key.usable else old_key
                self._keys[name] = replace(key, previous=previous and replace(previous, previous=None))
        self._previous = dict(old._previous)
        for path, old_private in old._per_domain.items():
            private = self._per_domain.get(path)
            if old_private is not None and old_private.usable and (private is None or not private.same(old_private)):
                self._previous[path] = old_private

    def check(self) -> list[Problem]:
        """Validate every key fully, for check-config; takes 37 ms for each RSA key."""
        return [problem for key in self._unique() for problem in key.check()]

    def prove(self) -> list[Problem]:
        """Find the keys that cannot sign, by trying each; their problems are `unusable`, too."""
        problems = [Problem(key.origin, 0, key.fault) for key in self._unique() if key.fault]
        self.unusable += problems
        return problems

    def without_keys(self) -> "KeyTable":
        """Return the same table without any private key, for those who only want to know what there is."""
        outline = copy.copy(self)
        outline._files = KeyFiles()
        outline._keys = {name: replace(key, private=None, previous=None) for name, key in self._keys.items()}
        outline._per_domain = dict.fromkeys(self._per_domain)
        outline._inline, outline._by_path, outline._previous = [], {}, {}
        return outline

    def _unique(self) -> list[PrivateKey]:
        found = [*self._inline, *self._by_path.values(), *self._per_domain.values()]
        return list({id(key): key for key in found if key is not None}.values())

    def _find(self, name: str) -> TableKey | None:
        key = self._keys.get(name)
        if key is None and name in self._domains:
            return self._keys[self._domains[name]]
        if key is None:
            for pattern, text in self._patterns:
                if data_set.matches(pattern, name):
                    return self._keys[text]
        return key

    def _parse(self, data: DataSet, entry: DataSetEntry, problems: list[Problem]) -> TableKey | None:
        fields = entry.value.split(":", 2)
        if len(fields) < 3 or not all(part.strip() for part in fields):
            what = f"key {entry.key}: expected domain:selector:key, with a path or the key itself after the second :"
            problems.append(data.problem(entry, what))
            return None
        if any(part != part.strip() for part in fields):
            what = f"key {entry.key}: white space around a : is part of the value for OpenDKIM; remove it"
            problems.append(data.problem(entry, what, warning=True))
        domain, selector, text = (part.strip() for part in fields)
        if domain != "%":
            name = configured_domain(domain)
            if not _DOMAIN.fullmatch(name):
                problems.append(data.problem(entry, f"key {entry.key}: {domain} is neither a valid domain name nor %"))
                return None
            if "." not in name:
                what = f"key {entry.key}: {domain} has no dot, so nobody can look its key up; write DOMAIN:SELECTOR:KEY"
                problems.append(data.problem(entry, what, warning=True))
            domain = name
        if not is_selector(selector):
            problems.append(data.problem(entry, f"key {entry.key}: {selector} is not a valid selector"))
            return None
        source, _, algorithm = text.rpartition(":")
        if algorithm not in ALGORITHMS:
            source, algorithm = text, ""
        key = TableKey(entry.key, domain, selector, *self._load(data, entry, domain, source))
        if algorithm and key.private is not None and (wrong := _wrong_algorithm(data, entry, algorithm, key.private)):
            self.unusable += wrong
            key = replace(key, private=None)
        return key

    def _load(self, data: DataSet, entry: DataSetEntry, domain: str, text: str) -> tuple[str, PrivateKey | None]:
        """Return the path (empty for an inline key) and the key; None if each From domain has its own."""
        if not is_path(text):
            key = PrivateKey(text.encode("utf-8", "surrogateescape"), data.location(entry), self._files.requirements)
            self._inline.append(key)
            return "", key
        path = text if text.startswith("/") else str(self._base / text)
        if "%" in path and domain == "%":
            self._load_all(path)
            return path, None
        path = path.replace("%", domain)
        found = self._by_path[path] = self._files.read(path, named_in=data.location(entry) if entry.line else "")
        return path, found

    def _load_all(self, template: str) -> None:
        """Read the keys of all domains that have a file by `template`: a worker could not read them."""
        watched_files.record(Path(template.partition("%")[0]).parent if "/" in template else ".")
        for found in glob.glob("*".join(map(glob.escape, template.split("%")))):
            if domain := _domain_in(template, found):
                # a file named in umlauts is that of the domain as A-labels
                name = domain if domain.isascii() else configured_domain(domain)
                self._per_domain[template.replace("%", name)] = self._files.read(found)

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
        if not entry.key.isascii() and (domain := configured_domain(entry.key)):
            self._domains.setdefault(domain, entry.key)


def _domain_in(template: str, path: str) -> str:
    """Return what `path` has where `template` has `%`: a domain; empty if `path` does not fit."""
    match = _template_pattern(template).fullmatch(path)
    return match["domain"] if match else ""


@lru_cache
def _template_pattern(template: str) -> re.Pattern[str]:
    head, *tail = map(re.escape, template.split("%"))
    return re.compile(f"{head}(?P<domain>[^/]+)" + "(?P=domain)".join(tail))


def _for_domain(key: TableKey, domain: str, private_keys: Mapping[str, PrivateKey | None]) -> TableKey:
    """Return `key` for mail from `domain`; `private_keys` are those of single domains, by path."""
    if key.domain != "%":
        return key
    if not key.per_domain:
        return replace(key, domain=domain)
    path = key.path.replace("%", domain)
    return replace(key, domain=domain, path=path, private=private_keys.get(path))


def _wrong_algorithm(data: DataSet, entry: DataSetEntry, algorithm: str, key: PrivateKey) -> list[Problem]:
    try:
        if key.algorithm == algorithm:
            return []
        what = f"key {entry.key}: its algorithm is {key.algorithm}, not {algorithm}"
    except BadKey as bad:
        what = f"key {entry.key}: {bad}"
    return [data.problem(entry, what)]
