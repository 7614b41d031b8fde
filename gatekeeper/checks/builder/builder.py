# SPDX-License-Identifier: GPL-3.0-or-later
"""CheckBuilder: turns the words of a restriction list, with their arguments, into checks.

A word is Postfix's own (postfix_words.py says which, and why some are not supported) or one of ours, with its section
`[checks.NAME]`, or the name of a restriction class. The tables that words name are opened here and never later, and
every mistake is collected instead of stopping at the first.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import dropwhile, pairwise
from pathlib import Path

from pydantic import BaseModel

from gatekeeper.checks.base.check_types import ConfiguredCheck, SourceLine
from gatekeeper.checks.base.nested import RestrictionClass, WarnIfReject
from gatekeeper.checks.builder.errors import expect_arguments, explain_unknown, known_words, refuse_parameters
from gatekeeper.checks.builder.own_checks import OWN_CHECKS
from gatekeeper.checks.builder.postfix_words import (
    ALLOWS_STRANGERS,
    ASKED,
    BARE_TABLES,
    LIST_WORDS,
    LOGIN_WORDS,
    MAP_ASKED,
    MAP_WORDS,
    OK_FORBIDDEN,
    OLD_NAMES,
    PLAIN_WORDS,
    TABLE_WORDS,
    build_access,
    build_list,
    build_map_check,
    parse_table_argument,
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
from gatekeeper.checks.tables.keys import Asked
from gatekeeper.checks.tables.reader import TableReader
from gatekeeper.checks.tables.sender_login import SenderOwners
from gatekeeper.checks.tables.table import Table
from gatekeeper.core.problem import Problem
from gatekeeper.core.verdict import Mode
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.pipeline.check import Check
from gatekeeper.pipeline.pipeline import DATA, END_OF_DATA
from gatekeeper.postfix.restriction_list import parse_restrictions

_ACCESS_KINDS: tuple[tuple[str, Find, str], ...] = (
    ("client", find_client, ""),
    ("helo", find_helo, "helo"),
    ("sender", find_sender, "sender"),
    ("recipient", find_recipient, "recipient"),
)
"""Option, lookup function and required Request attribute of each kind of table, in the order in which `access` asks."""

_ENDS = ("permit", "reject", "defer")
"""Words that end every list: nothing after them is evaluated."""

_PERMITS_USERS = "permit_sasl_authenticated"

_AT_END = (DATA, END_OF_DATA, "")
"""The lists that are asked once the recipients of a message are known; those of a table's restrictions are not."""
_MAX_NESTED = 50  # classes in classes: each is some calls deep when a mail is judged

Words = tuple[Sequence[str], SourceLine]
"""A restriction as it is written, and where it stands."""


def _section_header(section: str, _option: str, _index: int) -> SourceLine:
    return SourceLine(f"[checks.{section}]")


class CheckBuilder:
    """Builds checks from restrictions.

    `sections` holds the decoded `[checks.NAME]` sections by name; a missing one has its defaults. `classes` are the
    restriction classes by name, `maps` the tables of `[policy]` by option. `where(section, option, index)` returns the
    place of one value of an option. Table names are relative to `folder`.
    """

    def __init__(
        self,
        sections: Mapping[str, BaseModel],
        folder: Path,
        *,
        classes: Mapping[str, Sequence[Words]] = {},
        maps: Mapping[str, tuple[Sequence[str], SourceLine]] = {},
        where: Callable[[str, str, int], SourceLine] = _section_header,
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
        """Every mistake and warning so far, including those in tables, each once."""
        return list(dict.fromkeys([*self._problems, *self._tables.problems]))

    @property
    def rejected(self) -> list[Problem]:
        """The lines in tables that cannot be used, each once; the tables are used without them."""
        return list(dict.fromkeys(self._tables.rejected))

    @property
    def tallies(self) -> list[Problem]:
        """How many such lines each table has, and what comes of it."""
        return self._tables.tallies

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions on allow entries in tables that only the milter can check (checks/tables/sender_proof.py)."""
        return tuple(sorted(self._tables.conditions - {"spf"}))

    def owners(self, hostname: str, delimiter: str) -> SenderOwners:
        """Return the lookup of who owns a sender address, by `policy.sender_login_maps`."""
        names, place = self._maps.get("sender_login_maps", ((), SourceLine("")))
        tables = (self._tables.read(name, place, Asked.OWNER) for name in names)
        return SenderOwners(tuple(table for table in tables if table is not None), hostname.lower(), delimiter)

    def limiter(self) -> Limiter:
        """Return the limits of `[checks.ratelimit]`, for the restriction lists and for the milter's connections."""
        if self._limiter is None:
            options = self._sections.get("ratelimit")
            options = options if isinstance(options, RateLimit) else RateLimit()
            self._limiter, problems = Limiter.read(options, self._folder)
            self._problems += problems
        return self._limiter

    @property
    def lists(self) -> tuple[ListUse, ...]:
        """The DNS lists that the checks built so far query, including those named in tables."""
        return tuple(self._lists)

    def check(self, words: Sequence[str], place: SourceLine, list: str = "") -> Check | None:
        """Return the check for `words`, a word and its arguments; None, and note a problem, if there is none.

        `list` is the list of the pipeline that they stand in: it decides what a table without a word means.
        """
        try:
            return self._parse([*words], place, list)
        except ValueError as error:
            self._problems.append(place.problem(str(error)))
        except _AlreadyReported:
            pass
        return None

    def warn_unreachable(self, restrictions: Sequence[Words]) -> None:
        """Warn about a restriction after a word that ends every list, which is never evaluated; as Postfix does.

        And about one for users who have logged in after the word that permits them.
        """
        for ((word, *_), _), (words, place) in pairwise(restrictions):
            if word.lower() in _ENDS:
                self._problems.append(place.problem(f"{' '.join(words)} after {word} is never reached", warning=True))
                break
        permitted = False
        for words, place in restrictions:
            within = self._words_of(words)
            if permitted and any(map(self._is_for_users, within)):
                what = f"{' '.join(words)} after {_PERMITS_USERS} never sees a user who has logged in; put it before"
                self._problems.append(place.problem(what, warning=True))
            permitted = permitted or _PERMITS_USERS in within

    def _words_of(self, words: Sequence[str]) -> set[str]:
        """Return the word of a restriction, or those of the class that it names."""
        found, left, seen = set[str](), [words], set[str]()
        while left:
            written = next((word for word in left.pop() if word.lower() != "warn_if_reject"), "")
            if written not in self._classes:
                found.add(OLD_NAMES.get(written.lower(), written.lower()))
            elif written not in seen:
                seen.add(written)
                left += [inner for inner, _place in self._classes[written]]
        return found

    def _is_for_users(self, word: str) -> bool:
        """Return whether a restriction decides, or counts, something about users who have logged in."""
        if word == "ratelimit":
            options = self._sections.get("ratelimit", RateLimit())
            return isinstance(options, RateLimit) and options.mode is not Mode.OFF and options.counts_users
        return word == "check_sasl_access" or LOGIN_WORDS.get(word, (False,))[0]

    def check_classes(self) -> None:
        """Look for mistakes in the restriction classes, including those that no list uses."""
        for name, restrictions in self._classes.items():
            if name.lower() in known_words() and restrictions:
                what = f"{name!r} is already a restriction; give the class another name"
                self._problems.append(restrictions[0][1].problem(what))
            self.warn_unreachable(restrictions)
            if name.lower() not in known_words() and not any(built == name for built, _ in self._built):
                try:
                    self._class(name, "")
                except (ValueError, _AlreadyReported):
                    pass  # noted where it stands

    def _parse(self, words: list[str], place: SourceLine | None, list: str = "", *, first: bool = False) -> Check:
        """Return the check for `words`. Raises ValueError with what is wrong, _AlreadyReported if that is noted.

        Without a place (inside a table) no tables can be named; an action might stand there if it is the `first` word.
        """
        if not words:
            raise ValueError("the restriction is empty")
        written, *arguments = words
        word = OLD_NAMES.get(written.lower(), written.lower())
        refuse_parameters(words)
        if word == "warn_if_reject":
            arguments = [*dropwhile(lambda again: again.lower() == word, arguments)]  # repeating it changes nothing
            if not arguments:
                raise ValueError("warn_if_reject needs a restriction after it")
            return WarnIfReject(self._parse(arguments, place, list))
        if ":" in word and list in BARE_TABLES and place is not None:
            word, arguments = BARE_TABLES[list], [written, *arguments]
        if word in PLAIN_WORDS:
            expect_arguments(0, written, arguments)
            return PLAIN_WORDS[word]
        if word in LIST_WORDS:
            expect_arguments(1, written, arguments, "a DNS list, as zen.spamhaus.org=127.0.0.[2..11]")
            listed = build_list(word, arguments[0])
            if isinstance(listed.judge, RejectListed | PermitListed):
                self._lists[listed.judge.use] = None
            return listed
        if word in TABLE_WORDS:
            expect_arguments(1, written, arguments, "a table, as hash:/etc/postfix/access")
            name, attributes = parse_table_argument(word, arguments[0])
            return build_access(word, arguments[0], self._table(name, word, place), attributes)
        if word in MAP_WORDS:
            expect_arguments(0, written, arguments)
            return build_map_check(word, self._policy_tables(written, MAP_WORDS[word]))
        if word == "access":
            expect_arguments(0, written, arguments)
            return self._build_access()
        if word == "ratelimit":
            expect_arguments(0, written, arguments)
            if list in _AT_END:
                self.limiter().at_end.add(list)
            return self.limiter()
        if word in OWN_CHECKS:
            expect_arguments(0, written, arguments)
            section = self._sections.get(word, None)
            check = section if isinstance(section, ConfiguredCheck) else OWN_CHECKS[word]()
            if check.mode is not Mode.OFF:
                self._lists |= dict.fromkeys(check.queried_lists())
            return self._with_allow_lists(check) if isinstance(check, Greylist) else check
        if written in self._classes:
            expect_arguments(0, written, arguments)
            return self._class(written, list)
        raise ValueError(explain_unknown(written, self._classes, in_table=place is None, first=first))

    def _class(self, name: str, list: str) -> RestrictionClass:
        """Return the class as it runs in one list.

        Raises _AlreadyReported for a class with mistakes, ValueError for one that contains itself, or is nested too
        deeply.
        """
        if name in self._building:
            circle = " -> ".join([*self._building[self._building.index(name) :], name])
            raise ValueError(f"the restriction class {name} contains itself: {circle}")
        if len(self._building) >= _MAX_NESTED:
            raise ValueError(f"restriction classes are nested more than {_MAX_NESTED} deep")
        if (name, list) not in self._built:
            self._building.append(name)
            checks = [self.check(words, place, list) for words, place in self._classes[name]]
            self._building.pop()
            if None in checks:
                raise _AlreadyReported
            self._built[name, list] = RestrictionClass(name, tuple(check for check in checks if check is not None))
        return self._built[name, list]

    def _build_access(self) -> Access:
        if self._access is None:
            options = self._sections.get("access")
            if not isinstance(options, AccessOptions):
                options = AccessOptions()
            wanted = [
                (need, (kind, find, name, self._where("access", kind, index)))
                for kind, find, need in _ACCESS_KINDS
                for index, name in enumerate(getattr(options, kind))
            ]
            lookups = self._look_ups([one for _, one in wanted])
            self._access = Access(tuple(zip((need for need, _ in wanted), lookups, strict=True)), options.mode)
        return self._access

    def _with_allow_lists(self, greylist: Greylist) -> Greylist:
        """Return the check with its allow lists read."""
        shipped = (SHIPPED,) if greylist.allow_shipped else ()
        wanted = [
            (kind, find, name, self._where("greylist", option, index))
            for kind, option, names, find in (
                ("client", "allow_shipped", shipped, find_client),
                ("client", "allow_clients", greylist.allow_clients, find_client),
                ("recipient", "allow_recipients", greylist.allow_recipients, find_recipient),
            )
            for index, name in enumerate(names)
        ]
        return greylist.with_allow_lists(self._look_ups(wanted, strict=True))

    def _look_ups(self, wanted: Sequence[tuple[str, Find, str, SourceLine]], *, strict: bool = False) -> list[LookUp]:
        """Return the look-up of each kind in each table.

        Every table is read, so that all that cannot be used are noted; then raises _AlreadyReported.
        """
        found: list[LookUp] = []
        for kind, find, name, place in wanted:
            with suppress(_AlreadyReported):
                table = self._table(name, f"check_{kind}_access", place, strict=strict)
                found.append(LookUp(f"{kind} in {name}", find, table))
        if len(found) < len(wanted):
            raise _AlreadyReported
        return found

    def _table(self, name: str, word: str, place: SourceLine | None, *, strict: bool = False) -> Table:
        if place is None:
            raise ValueError("a table cannot name another table; name a restriction class")
        table = self._tables.read(name, place, ASKED[word], strict=strict)
        if table is None:
            raise _AlreadyReported
        if what := ALLOWS_STRANGERS.get(word):
            said = [entry.problem(what, warning=True) for entry in table.allows]
            self._problems += said if word in OK_FORBIDDEN else [problem.opening() for problem in said]
        return table

    def _policy_tables(self, word: str, option: str) -> list[Table]:
        """Return the tables that an option of `[policy]` names. Raises ValueError if `word` needs one and has none."""
        names, place = self._maps.get(option, ((), SourceLine("")))
        if not names and not word.lower().startswith("permit_tls_all"):
            raise ValueError(f"{word} needs the tables of Postfix's {option}; name them in policy.{option}")
        tables = [self._tables.read(name, place, MAP_ASKED[option]) for name in names]
        if None in tables:
            raise _AlreadyReported
        return [table for table in tables if table is not None]

    def _nested(self, text: str) -> tuple[Check, ...]:
        """Return the checks for the restrictions that a table entry names. Raises ValueError with what is wrong."""
        try:
            found = enumerate(parse_restrictions(text))
            return tuple(self._parse([*one.words], None, first=not number) for number, one in found)
        except _AlreadyReported:
            raise ValueError(f"{text!r} names a restriction class that has mistakes") from None


class _AlreadyReported(Exception):
    """The problem has been noted where it was found."""
