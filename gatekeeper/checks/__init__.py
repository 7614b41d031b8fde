# SPDX-License-Identifier: GPL-3.0-or-later
"""The opinions, and the table of the words that name them in a restriction list.

A word is Postfix's own (words.py says which, and why some cannot be had here) or one of ours, with its section
`[checks.NAME]`. `Reader` turns the words of a list into checks; it opens the tables that they name, and collects every
mistake instead of stopping at the first.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from gatekeeper.checks.access import (
    Access,
    AccessOptions,
    Find,
    LookUp,
    find_client,
    find_helo,
    find_recipient,
    find_sender,
)
from gatekeeper.checks.dmarc import Dmarc
from gatekeeper.checks.dnsbl import Dnsbl
from gatekeeper.checks.entries import Table
from gatekeeper.checks.generic import WarnIfReject
from gatekeeper.checks.greylist import Greylist
from gatekeeper.checks.opinion import Opinion, Place
from gatekeeper.checks.ratelimit import Limiter, RateLimit
from gatekeeper.checks.rbl import PermitListed, RejectListed
from gatekeeper.checks.spf import Spf
from gatekeeper.checks.tables import Tables
from gatekeeper.checks.words import ACCESS_WORDS, LIST_WORDS, OLD_NAMES, PLAIN_WORDS, REFUSED, build_access, build_list
from gatekeeper.dnslists import Use
from gatekeeper.pipeline import Check
from gatekeeper.problem import Problem
from gatekeeper.restrictions import split
from gatekeeper.verdict import Mode

__all__ = ["SECTIONS", "Dmarc", "Place", "Reader"]

OPINIONS: Mapping[str, type[Opinion]] = {
    "dnsbl": Dnsbl,
    "spf": Spf,
    "greylist": Greylist,
}
SECTIONS: Mapping[str, type[BaseModel]] = {"access": AccessOptions, "ratelimit": RateLimit, **OPINIONS}
"""The models of the `[checks.NAME]` sections. `dmarc` has none: it is `verify.dmarc`."""

_ACCESS_KINDS: tuple[tuple[str, Find, str], ...] = (
    ("client", find_client, ""),
    ("helo", find_helo, "helo"),
    ("sender", find_sender, "sender"),
    ("recipient", find_recipient, "recipient"),
)
"""In the order in which `access` asks."""


class Reader:
    """Makes checks of restrictions. `sections` holds the decoded sections by name; one that is missing has its
    defaults. Table names are relative to `folder`. Files are opened here and nowhere later."""

    def __init__(self, sections: Mapping[str, BaseModel], folder: Path) -> None:
        self._sections = sections
        self._tables = Tables(folder, self._nested)
        self._problems: list[Problem] = []
        self._lists: dict[Use, None] = {}
        self._access: Access | None = None
        self._limiter: Limiter | None = None
        self._folder = folder

    @property
    def problems(self) -> list[Problem]:
        """Every mistake and warning so far, those in tables too."""
        return [*self._problems, *self._tables.problems]

    def limiter(self) -> Limiter:
        """The limits of `[checks.ratelimit]`, for the lists and for the milter's connections."""
        if self._limiter is None:
            options = self._sections.get("ratelimit")
            options = options if isinstance(options, RateLimit) else RateLimit()
            self._limiter, problems = Limiter.read(options, self._folder)
            self._problems += problems
        return self._limiter

    @property
    def lists(self) -> tuple[Use, ...]:
        """The DNS lists that the checks so far ask, those that tables name too."""
        return tuple(self._lists)

    def check(self, words: Sequence[str], place: Place) -> Check | None:
        """The check that `words` name: a word and its arguments. None, and a problem, if there is none."""
        try:
            return self._parse(list(words), place)
        except ValueError as error:
            self._problems.append(place.problem(str(error)))
        except _Told:
            pass
        return None

    def _parse(self, words: list[str], place: Place | None) -> Check:
        """Raises ValueError with what is wrong. Without a place (inside a table) no tables can be named."""
        if not words:
            raise ValueError("the restriction is empty")
        written, *arguments = words
        word = OLD_NAMES.get(written.lower(), written.lower())
        if word == "warn_if_reject":
            while arguments and arguments[0].lower() == word:
                del arguments[0]  # more of them mean no more
            if not arguments:
                raise ValueError("warn_if_reject needs a restriction behind it")
            return WarnIfReject(self._parse(arguments, place))
        if word in PLAIN_WORDS:
            _takes(0, written, arguments)
            return PLAIN_WORDS[word]
        if word in LIST_WORDS:
            _takes(1, written, arguments, "a DNS list, as zen.spamhaus.org=127.0.0.[2..11]")
            listed = build_list(word, arguments[0])
            if isinstance(listed.judge, RejectListed | PermitListed):
                self._lists[listed.judge.use] = None
            return listed
        if word in ACCESS_WORDS:
            _takes(1, written, arguments, "a table, as hash:/etc/postfix/access")
            return build_access(word, arguments[0], self._table(arguments[0], word == "check_sender_access", place))
        if word == "access":
            _takes(0, written, arguments)
            return self._build_access(place)
        if word == "ratelimit":
            _takes(0, written, arguments)
            return self.limiter()
        if word in OPINIONS:
            _takes(0, written, arguments)
            section = self._sections.get(word, None)
            opinion = section if isinstance(section, Opinion) else OPINIONS[word]()
            if opinion.mode is not Mode.OFF:
                self._lists |= dict.fromkeys(opinion.lists_asked())
            return opinion
        raise ValueError(_why_not(written))

    def _build_access(self, place: Place | None) -> Access:
        if self._access is None:
            options = self._sections.get("access")
            if not isinstance(options, AccessOptions):
                options = AccessOptions()
            lookups: list[tuple[str, LookUp]] = []
            for kind, find, need in _ACCESS_KINDS:
                for name in getattr(options, kind):
                    table = self._table(name, kind == "sender", place)
                    lookups.append((need, LookUp(f"{kind} in {name}", find, table)))
            self._access = Access(tuple(lookups), options.mode)
        return self._access

    def _table(self, name: str, of_senders: bool, place: Place | None) -> Table:
        if place is None:
            raise ValueError("a table cannot name another table")
        table = self._tables.read(name, place)
        if table is None:
            raise _Told
        if of_senders:
            self._warn_of_forgeries(table)
        return table

    def _warn_of_forgeries(self, table: Table) -> None:
        what = "an OK for a sender address lets in whoever forges it; demand proof: OK if=spf"
        for entry in table.allows:
            problem = entry.problem(what, warning=True)
            if problem not in self._problems:
                self._problems.append(problem)

    def _nested(self, text: str) -> tuple[Check, ...]:
        """The restrictions that a table entry names. Raises ValueError."""
        return tuple(self._parse(list(restriction.words), None) for restriction in split(text))


class _Told(Exception):
    """The problem has been noted where it was found."""


def _takes(count: int, word: str, arguments: Sequence[str], what: str = "") -> None:
    if len(arguments) == count:
        return
    raise ValueError(
        f"{word} needs {what} behind it" if count else f"{word} takes no argument: {' '.join(arguments)!r}"
    )


def _why_not(word: str) -> str:
    """Why a word is not to be had, with the nearest that is."""
    name = word.lower()
    if name in REFUSED:
        return f"{word} cannot be checked here: {REFUSED[name]}"
    if ":" in word:
        return f"{word!r} stands without a word before it; allowed: check_client_access {word}, and so on"
    known = [*PLAIN_WORDS, *LIST_WORDS, *ACCESS_WORDS, *OPINIONS, "access", "ratelimit", "warn_if_reject"]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"unknown restriction {word!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
    )
