# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of our own SPF record (RFC 7208) by the evaluator that verifies mail: its look-ups, and its mistakes.

A receiver stops at what matches; here every way through the record is followed, for IPv4 and for IPv6. So `permerror`
is said if, and only if, some way of matching and not matching ends so. Two limits: what a macro of the client's words
names is looked up for one made-up client that no record lists; and every term is taken to match or not by itself, even
if no client can be in the networks of one and not of the other.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

from gatekeeper.auth.spf_evaluation import (
    MAX_LOOKUPS,
    MAX_VOID,
    RESULTS,
    Ending,
    Evaluation,
    PermError,
    SpfResult,
    TempError,
)
from gatekeeper.auth.spf_record import MECHANISMS, MODIFIERS, SpfRecord, Term, find_records, parse
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import Answer, Resolver
from gatekeeper.records.remark import Remark

_MAX_FOLLOWED = 60  # look-ups: enough to show how far over the limit a record is, without crawling
_LONG = 450  # bytes, which with the names around them still fit into the shortest of answers
_STRANGERS = ("192.0.2.1", "2001:db8::1")
_NEAR = re.compile(rb"\W*(v\W*)?spf", re.IGNORECASE)


@dataclass(slots=True)
class SpfExamination:
    """What was found: the tree of terms and the remarks on it.

    A line is the depth, the term and the look-ups so far (0 if the term needs none). `lookups` and `void` are those of
    the longest way. `permerror`: some way ends so.
    """

    domain: str
    lookups: int = 0
    void: int = 0
    lines: list[tuple[int, str, int]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    permerror: bool = False

    def error(self, what: str) -> None:
        self.remarks.append(Remark(True, what))

    def note(self, what: str) -> None:
        self.remarks.append(Remark(False, what))

    def reject(self, what: str) -> None:
        """Add the reason for a permerror."""
        self.permerror = True
        self.error(f"{what} Receivers answer permerror" if what[-1:] == "?" else f"{what}: receivers answer permerror")


async def examine(resolver: Resolver, domain: str, text: str | None = None) -> SpfExamination:
    """Examine the record of `domain`, or `text` as if it were published there. A DNS error is a remark."""
    walks = [_Walk(resolver, domain, client) for client in _STRANGERS]
    for walk in walks:
        await walk.all_ways(None if text is None else text.encode("utf-8", "surrogateescape"))
    four, six = (walk.found for walk in walks)
    for term in walks[0].nothing:
        if term in walks[1].nothing:
            four.note(f"{term} finds nothing")
    for remark in six.remarks:
        if remark.error and remark not in four.remarks:
            four.error(f"for a client with IPv6, {remark.what}")
    four.permerror |= six.permerror
    return four


class _Counts(NamedTuple):
    lookups: int
    void: int


class _TooLong(Exception):
    """There is no end to this record."""


class _Ways(dict[bool, _Counts]):
    """How a term or record may come out, by whether it matches or passes: with the most that may have been counted."""

    def add(self, key: bool, counts: _Counts) -> None:
        """Add one way; the two limits have nothing to do with each other."""
        self[key] = _Counts(*map(max, counts, self.get(key, counts)))


class _Walk(Evaluation):
    """The evaluation that takes every way; where it would stop at a limit or mistake, it notes it and goes on."""

    def __init__(self, resolver: Resolver, domain: str, client: str) -> None:
        super().__init__(
            resolver,
            address=ip_address(client),
            local="no-such-user",
            domain=domain,
            helo="no-such-host.invalid",
            receiver="",
        )
        self.found = SpfExamination(domain)
        self.nothing: dict[str, None] = {}
        self._above: list[str] = []
        self._ways = _Ways()  # of the record that was evaluated last
        self._term = Term("", "")
        self._may_match = False
        self._followed = 0

    async def all_ways(self, text: bytes | None) -> None:
        """Follow the record of the domain, or `text`."""
        found = self.found
        try:
            record = next(iter(find_records([text])), None) if text is not None else await self.record(self.domain)
            if record is not None:
                await self.evaluate(self.domain, record)
            else:
                self._explain_missing(self.domain, text)
        except TempError as error:
            found.error(f"{error} right now: receivers answer temperror")
        except PermError as error:
            found.reject(f"{error}; make them one")
        except _TooLong:
            found.error(f"only the first {_MAX_FOLLOWED} look-ups were followed")
        if found.lookups > MAX_LOOKUPS:
            found.reject(f"it takes {found.lookups} look-ups of {MAX_LOOKUPS}")
        elif found.lookups >= MAX_LOOKUPS - 1:
            found.note(f"it takes {found.lookups} look-ups of {MAX_LOOKUPS}: the next service will not fit")
        if found.void > MAX_VOID:
            found.reject(f"{found.void} look-ups find nothing, but only {MAX_VOID} are allowed")

    async def evaluate(self, domain: str, text: bytes) -> Ending:
        """Follow all ways through the record of `domain`, to the end of the longest."""
        if domain in self._above:
            raise PermError(f"{domain} includes itself")
        record = parse(text)
        for problem in record.problems:
            self.found.reject(f"{domain}: {problem}")
        self._above.append(domain)
        self._judge(domain, record)
        if len(text) > _LONG:
            self.found.note(f"{domain}: the record is {len(text)} bytes long; DNS answers over 512 bytes need TCP")
        ways = _Ways()
        for term in record.directives:
            out = await self._follow(term, domain)
            if True in out:
                ways.add(RESULTS[term.qualifier] is SpfResult.PASS, out[True])
            if False not in out:
                break
            self.lookups, self.void = out[False]
        else:
            redirect = record.modifier("redirect")
            out = await self._follow(redirect, domain) if redirect else _Ways({False: self._counts})
            for passes, counts in out.items():
                ways.add(passes, counts)
        self._above.pop()
        self._ways = ways
        return Ending(SpfResult.NEUTRAL, domain)

    async def _follow(self, term: Term, domain: str) -> _Ways:
        """Return the ways out of a term: those on which it matches, or its record passes, and the others."""
        self._term, self._may_match = term, term.is_by_client or term.name == "ptr"
        if term.name in ("all", "ip4", "ip6"):
            self._add_line(0)
        try:
            if term.name in ("include", "redirect"):
                await self.included(term, domain)
                return self._ways
            matches = await self.matches(term, domain)
        except PermError as error:
            self.found.reject(str(error))
        except TempError as error:
            self.found.error(f"{domain}: {printable(term.text, 80)}: {error} right now: receivers answer temperror")
        else:
            ways = _Ways()
            if matches or self._may_match:
                ways[True] = self._counts
            if term.is_by_client or not matches:
                ways[False] = self._counts
            return ways
        return _Ways({False: self._counts})

    async def record(self, domain: str) -> bytes | None:
        """Return the record of `domain`; of what is not one by a hair, tell it."""
        record = await super().record(domain)
        if record is None and self._above:
            self._explain_missing(domain, None)
        return record

    def is_among(self, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
        """Return whether every client is in these networks."""
        ours = [network for network in networks if network.version == self.address.version]
        self._may_match |= bool(ours)
        return any(network.prefixlen == 0 for network in ours)

    def count_lookup(self) -> None:
        """Count a term, however many there were."""
        self._followed += 1
        if self._followed > _MAX_FOLLOWED:
            raise _TooLong
        self.lookups += 1
        self.found.lookups = max(self.found.lookups, self.lookups)
        self._add_line(self.lookups)

    def count_void(self) -> None:
        """Count a term that finds nothing, however many there were."""
        self.void += 1
        self.found.void = max(self.found.void, self.void)
        if not self._term.is_by_client:
            self.nothing[f"{self._above[-1]}: {printable(self._term.text, 80)}"] = None

    async def _validated_names(self) -> list[str]:
        return []

    @property
    def _counts(self) -> _Counts:
        return _Counts(self.lookups, self.void)

    def _add_line(self, number: int) -> None:
        self.found.lines.append((len(self._above) - 1, printable(self._term.text, 100), number))

    def _explain_missing(self, domain: str, text: bytes | None) -> None:
        """Say what `domain` has in the place of a record."""
        answer = self.answers.get((domain, "TXT"))
        texts = [text] if text is not None else answer.records if isinstance(answer, Answer) else ()
        if near := next((one for one in texts if isinstance(one, bytes) and _NEAR.match(one)), None):
            shown = printable(near.decode("utf-8", "replace"), 60)
            self.found.error(f"{domain} has {shown}, which is not an SPF record: it must begin with v=spf1 and a space")
        elif not self._above:
            self.found.error(f"{domain} has no SPF record")

    def _judge(self, domain: str, record: SpfRecord) -> None:
        """Add remarks on what a record shows by itself."""
        found, top = self.found, len(self._above) == 1
        names = [term.name for term in record.terms]
        if "all" in names:
            index = names.index("all")
            if ignored := [term.text for term in record.terms[index + 1 :] if term.qualifier]:
                found.error(f"{domain}: what comes after all is never reached: {printable(' '.join(ignored), 80)}")
            if "redirect" in names:
                found.error(f"{domain}: redirect= is ignored, because there is an all")
            qualifier = record.terms[index].qualifier
            if qualifier == "+":
                found.error(f"{domain}: {record.terms[index].text} lets everybody send as you")
            elif qualifier == "?" and top:
                found.note(f"{domain}: ?all says nothing about others; ~all, or -all, does")
        elif "redirect" not in names and top:
            found.error(f"{domain}: there is neither all nor redirect=: nothing is said about others; add ~all")
        if "ptr" in names:
            found.note(
                f"{domain}: ptr should not be used (RFC 7208 section 5.5): it is slow, and some receivers ignore it"
            )
        for term in record.terms:
            if not term.qualifier and term.name not in MODIFIERS:
                self._judge_unknown(domain, term)

    def _judge_unknown(self, domain: str, term: Term) -> None:
        """Add a remark on a modifier that receivers ignore."""
        shown = printable(term.text, 80)
        if term.name in MECHANISMS:
            bare = not term.domain and term.name in ("a", "all", "mx", "ptr")
            meant = term.name if bare else printable(f"{term.name}:{term.domain}", 80)
            self.found.error(f"{domain}: {shown} is ignored: write {meant}, not {term.name}=")
        elif close := get_close_matches(term.name, (*MODIFIERS, *MECHANISMS), 1):
            self.found.error(f"{domain}: {shown} is unknown and ignored; did you mean {close[0]}?")
        else:
            self.found.note(f"{domain}: {shown} is unknown and ignored")


def sentences(found: SpfExamination) -> Iterator[str]:
    """Yield the tree and the remarks as lines for people."""
    yield f"{found.domain}: {found.lookups} look-ups of {MAX_LOOKUPS}, {found.void} that find nothing of {MAX_VOID}"
    for depth, text, number in found.lines:
        yield f"  {f'{number:2}' if number else '  '} {'  ' * depth}{text}"
    yield from (f"  {remark}" for remark in dict.fromkeys(found.remarks))
