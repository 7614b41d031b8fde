# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of a restriction list, with their arguments, made into checks.

A word is Postfix's own (postfix_words.py says which, and why some cannot be had here) or one of ours, with its section
`[checks.NAME]`, or the name of a restriction class. The tables that words name are opened here and nowhere later, and
every mistake is collected instead of stopping at the first.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel

from gatekeeper.checks.base.check_types import ConfiguredCheck, SourceLine
from gatekeeper.checks.base.nested import RestrictionClass, WarnIfReject
from gatekeeper.checks.builder.errors import known_words, no_parameters, takes, why_not
from gatekeeper.checks.builder.own_checks import OPINIONS
from gatekeeper.checks.builder.postfix_words import (
    BARE_TABLES,
    LIST_WORDS,
    MAP_WORDS,
    NO_OK,
    OLD_NAMES,
    PLAIN_WORDS,
    TABLE_WORDS,
    build_access,
    build_list,
    build_mapped,
    table_of,
)
from gatekeeper.checks.dnslists.rbl import PermitListed, RejectListed
from gatekeeper.checks.greylisting.greylist import SHIPPED, Greylist
from gatekeeper.checks.limits.ratelimit import Limiter, RateLimit
from gatekeeper.checks.tables.access import (
    Access,
    AccessOptions,
    Find,
    LookUp,
    find_client,
    find_helo,
    find_recipient,
    find_sender,
)
from gatekeeper.checks.tables.reader import TableReader
from gatekeeper.checks.tables.sender_login import SenderOwners
from gatekeeper.checks.tables.table import Table
from gatekeeper.core.problem import Problem
from gatekeeper.core.verdict import Mode
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.pipeline.check import Check
from gatekeeper.postfix.restriction_list import parse_restrictions

_ACCESS_KINDS: tuple[tuple[str, Find, str], ...] = (
    ("client", find_client, ""),
    ("helo", find_helo, "helo"),
    ("sender", find_sender, "sender"),
    ("recipient", find_recipient, "recipient"),
)
"""In the order in which `access` asks."""

_ENDS = ("permit", "reject", "defer")
"""Words behind which nothing is asked."""

Words = tuple[Sequence[str], SourceLine]
"""A restriction as it is written, and where."""


class CheckBuilder:
    """Makes checks of restrictions. `sections` holds the decoded sections by name; one that is missing has its
    defaults. `classes` are the restriction classes by name, `maps` the tables of `[policy]` by option; `where` tells
    where the values of a section's option stand. Table names are relative to `folder`.
    """

    def __init__(
        self,
        sections: Mapping[str, BaseModel],
        folder: Path,
        *,
        classes: Mapping[str, Sequence[Words]] = {},
        maps: Mapping[str, tuple[Sequence[str], SourceLine]] = {},
        where: Callable[[str, str, int], SourceLine] = lambda section, option, index: SourceLine(f"[checks.{section}]"),
    ) -> None:
        self._sections = sections
        self._classes = classes
        self._maps = maps
        self._where = where
        self._tables = TableReader(folder, self._nested)
        self._problems: list[Problem] = []
        self._lists: dict[ListUse, None] = {}
        self._access: Access | None = None
        self._limiter: Limiter | None = None
        self._folder = folder
        self._built: dict[tuple[str, str], RestrictionClass] = {}
        self._building: list[str] = []

    @property
    def problems(self) -> list[Problem]:
        """Every mistake and warning so far, those in tables too, each once."""
        return list(dict.fromkeys([*self._problems, *self._tables.problems]))

    @property
    def conditions(self) -> tuple[str, ...]:
        """What allow entries of tables demand that only the milter can find out (checks/tables/sender_proof.py)."""
        return tuple(sorted(self._tables.conditions - {"spf"}))

    def owners(self, hostname: str, delimiter: str) -> SenderOwners:
        """Who owns an address, by `policy.sender_login_maps`."""
        names, place = self._maps.get("sender_login_maps", ((), SourceLine("")))
        tables = (self._tables.read(name, place, values=True) for name in names)
        return SenderOwners(tuple(table for table in tables if table is not None), hostname.lower(), delimiter)

    def limiter(self) -> Limiter:
        """The limits of `[checks.ratelimit]`, for the lists and for the milter's connections."""
        if self._limiter is None:
            options = self._sections.get("ratelimit")
            options = options if isinstance(options, RateLimit) else RateLimit()
            self._limiter, problems = Limiter.read(options, self._folder)
            self._problems += problems
        return self._limiter

    @property
    def lists(self) -> tuple[ListUse, ...]:
        """The DNS lists that the checks so far ask, those that tables name too."""
        return tuple(self._lists)

    def check(self, words: Sequence[str], place: SourceLine, list: str = "") -> Check | None:
        """The check that `words` name: a word and its arguments. None, and a problem, if there is none. `list` is the
        list of the pipeline that they stand in: it says what a table without a word means.
        """
        try:
            return self._parse([*words], place, list)
        except ValueError as error:
            self._problems.append(place.problem(str(error)))
        except _Told:
            pass
        return None

    def warn_behind(self, restrictions: Sequence[Words]) -> None:
        """Tell of what stands behind a word that ends every list, and is never asked; as Postfix does."""
        for ((word, *_), _), (words, place) in pairwise(restrictions):
            if word.lower() in _ENDS:
                self._problems.append(place.problem(f"{' '.join(words)} behind {word} is never asked", warning=True))
                return

    def check_classes(self) -> None:
        """Look for mistakes in the classes that no list asks, too."""
        for name, restrictions in self._classes.items():
            if name.lower() in known_words() and restrictions:
                what = f"{name!r} is a restriction already; give the class another name"
                self._problems.append(restrictions[0][1].problem(what))
            elif not any(built == name for built, _ in self._built):
                try:
                    self._class(name, "")
                except (ValueError, _Told):
                    pass  # noted where it stands

    def _parse(self, words: list[str], place: SourceLine | None, list: str = "") -> Check:
        """Raises ValueError with what is wrong. Without a place (inside a table) no tables can be named."""
        if not words:
            raise ValueError("the restriction is empty")
        written, *arguments = words
        word = OLD_NAMES.get(written.lower(), written.lower())
        no_parameters(words)
        if word == "warn_if_reject":
            while arguments and arguments[0].lower() == word:
                del arguments[0]  # more of them mean no more
            if not arguments:
                raise ValueError("warn_if_reject needs a restriction behind it")
            return WarnIfReject(self._parse(arguments, place, list))
        if ":" in word and list in BARE_TABLES and place is not None:
            word, arguments = BARE_TABLES[list], [written, *arguments]
        if word in PLAIN_WORDS:
            takes(0, written, arguments)
            return PLAIN_WORDS[word]
        if word in LIST_WORDS:
            takes(1, written, arguments, "a DNS list, as zen.spamhaus.org=127.0.0.[2..11]")
            listed = build_list(word, arguments[0])
            if isinstance(listed.judge, RejectListed | PermitListed):
                self._lists[listed.judge.use] = None
            return listed
        if word in TABLE_WORDS:
            takes(1, written, arguments, "a table, as hash:/etc/postfix/access")
            name, more = table_of(word, arguments[0])
            return build_access(word, arguments[0], self._table(name, word, place), more)
        if word in MAP_WORDS:
            takes(0, written, arguments)
            return build_mapped(word, self._mapped(written, MAP_WORDS[word]))
        if word == "access":
            takes(0, written, arguments)
            return self._build_access()
        if word == "ratelimit":
            takes(0, written, arguments)
            return self.limiter()
        if word in OPINIONS:
            takes(0, written, arguments)
            section = self._sections.get(word, None)
            opinion = section if isinstance(section, ConfiguredCheck) else OPINIONS[word]()
            if opinion.mode is not Mode.OFF:
                self._lists |= dict.fromkeys(opinion.lists_asked())
            return self._with_tables(opinion) if isinstance(opinion, Greylist) else opinion
        if written in self._classes:
            takes(0, written, arguments)
            return self._class(written, list)
        raise ValueError(why_not(written, self._classes, entry=place is None))

    def _class(self, name: str, list: str) -> RestrictionClass:
        """The class as it is asked in one list. Raises _Told for a class with mistakes, ValueError for a circle."""
        if name in self._building:
            circle = " -> ".join([*self._building[self._building.index(name) :], name])
            raise ValueError(f"the restriction class {name} asks itself: {circle}")
        if (name, list) not in self._built:
            self._building.append(name)
            checks = [self.check(words, place, list) for words, place in self._classes[name]]
            self._building.pop()
            if None in checks:
                raise _Told
            self._built[name, list] = RestrictionClass(name, tuple(check for check in checks if check is not None))
        return self._built[name, list]

    def _build_access(self) -> Access:
        if self._access is None:
            options = self._sections.get("access")
            if not isinstance(options, AccessOptions):
                options = AccessOptions()
            lookups: list[tuple[str, LookUp]] = []
            for kind, find, need in _ACCESS_KINDS:
                for index, name in enumerate(getattr(options, kind)):
                    table = self._table(name, f"check_{kind}_access", self._where("access", kind, index))
                    lookups.append((need, LookUp(f"{kind} in {name}", find, table)))
            self._access = Access(tuple(lookups), options.mode)
        return self._access

    def _with_tables(self, greylist: Greylist) -> Greylist:
        """The check with its allow lists."""
        shipped = (SHIPPED,) if greylist.allow_shipped else ()
        lookups: list[LookUp] = []
        for kind, option, names, find in (
            ("client", "allow_shipped", shipped, find_client),
            ("client", "allow_clients", greylist.allow_clients, find_client),
            ("recipient", "allow_recipients", greylist.allow_recipients, find_recipient),
        ):
            for index, name in enumerate(names):
                table = self._table(name, f"check_{kind}_access", self._where("greylist", option, index))
                lookups.append(LookUp(f"{kind} in {name}", find, table))
        return greylist.with_tables(lookups)

    def _table(self, name: str, word: str, place: SourceLine | None) -> Table:
        if place is None:
            raise ValueError("a table cannot name another table; name a restriction class")
        table = self._tables.read(name, place)
        if table is None:
            raise _Told
        if word == "check_sender_access":
            self._warn_of(
                table,
                "an OK for a sender lets in whoever forges it; demand proof: OK if=spf, if=dkim or if=dmarc",
            )
        if word in NO_OK:
            self._warn_of(table, "an OK for what a stranger chooses (PTR, servers) is answered 451 4.3.5; write DUNNO")
        return table

    def _warn_of(self, table: Table, what: str) -> None:
        self._problems += [entry.problem(what, warning=True) for entry in table.allows]

    def _mapped(self, word: str, option: str) -> list[Table]:
        """The tables that an option of `[policy]` names."""
        names, place = self._maps.get(option, ((), SourceLine("")))
        if not names and not word.lower().startswith("permit_tls_all"):
            raise ValueError(f"{word} needs the tables of Postfix's {option}; name them in policy.{option}")
        tables = [self._tables.read(name, place, values=True) for name in names]
        if None in tables:
            raise _Told
        return [table for table in tables if table is not None]

    def _nested(self, text: str) -> tuple[Check, ...]:
        """The restrictions that a table entry names. Raises ValueError."""
        try:
            return tuple(self._parse([*restriction.words], None) for restriction in parse_restrictions(text))
        except _Told:
            raise ValueError(f"{text!r} names a restriction class that has mistakes") from None


class _Told(Exception):
    """The problem has been noted where it was found."""
