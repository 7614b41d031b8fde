# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of our own SPF record (RFC 7208), evaluated like a receiver: its look-ups (at most ten) and its mistakes.

A receiver stops at a match; here every mechanism is followed, because a sender that matches last hits the limit. What
depends on the sender (macros) is counted but not followed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_network

from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import DNSError, Resolver
from gatekeeper.records.remark import Remark

MAX_LOOKUPS = 10
"""RFC 7208 section 4.6.4."""
MAX_VOID = 2
_MAX_FOLLOWED = 60  # our own look-ups: enough to show how far over the limit a record is, without crawling
_MAX_DEPTH = 20

_TERM = re.compile(r"(?P<qualifier>[+?~-]?)(?P<name>[A-Za-z0-9]+)(?P<rest>[:/].*)?\Z")
_MODIFIER = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9._-]*)=(?P<value>.*)\Z")
_MECHANISMS = ("all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists")
_WITH_LOOKUP = ("include", "a", "mx", "ptr", "exists", "redirect")
_CIDR = re.compile(r"(?P<domain>[^/]*)(?:/(?P<four>[0-9]{1,2}))?(?://(?P<six>[0-9]{1,3}))?\Z")


@dataclass(frozen=True, slots=True)
class SpfTerm:
    """One mechanism or modifier: `name` in lower case, `value` what follows the colon or the equals sign."""

    text: str
    name: str
    qualifier: str = "+"
    value: str = ""

    @property
    def needs_lookup(self) -> bool:
        """True if it counts towards the limit of look-ups."""
        return self.name in _WITH_LOOKUP


@dataclass(slots=True)
class SpfEvaluation:
    """What was found: the tree of terms and the remarks on it.

    A line is the depth, the term and the look-ups so far (0 if the term needs none). `void` counts void look-ups.
    """

    domain: str
    lookups: int = 0
    void: int = 0
    lines: list[tuple[int, str, int]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def error(self, what: str) -> None:
        self.remarks.append(Remark(True, what))

    def note(self, what: str) -> None:
        self.remarks.append(Remark(False, what))


async def examine(resolver: Resolver, domain: str, text: str | None = None) -> SpfEvaluation:
    """Evaluate the record of `domain`, or `text` as if it were published there. A DNS error is a remark."""
    walk = SpfEvaluation(domain)
    await _Walker(resolver, walk).follow(domain, 0, (), text)
    if walk.lookups > MAX_LOOKUPS:
        walk.error(f"it takes {walk.lookups} look-ups of {MAX_LOOKUPS}: receivers answer permerror, as if you had none")
    elif walk.lookups >= MAX_LOOKUPS - 1:
        walk.note(f"it takes {walk.lookups} look-ups of {MAX_LOOKUPS}: the next service will not fit")
    if walk.void > MAX_VOID:
        walk.error(f"{walk.void} look-ups find nothing, but only {MAX_VOID} are allowed: receivers answer permerror")
    return walk


def parse(text: str) -> Iterator[SpfTerm | Remark]:
    """Yield each term of a record, or a remark on what is wrong with it."""
    for word in text.split(" ")[1:]:
        if not word:
            continue
        if match := _MODIFIER.match(word):
            yield SpfTerm(word, match["name"].lower(), "", match["value"])
            continue
        match = _TERM.match(word)
        if match is None or match["name"].lower() not in _MECHANISMS:
            close = get_close_matches(re.split("[:/=]", word.lstrip("+?~-"))[0].lower(), _MECHANISMS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield Remark(True, f"{printable(word, 80)} is not a mechanism: receivers answer permerror{hint}")
            continue
        name, rest = match["name"].lower(), match["rest"] or ""
        term = SpfTerm(word, name, match["qualifier"] or "+", rest.removeprefix(":"))
        problem = _problem(term, rest)
        yield Remark(True, f"{printable(word, 80)}: {problem}: receivers answer permerror") if problem else term


def _problem(term: SpfTerm, rest: str) -> str:
    """Return what is wrong with the argument of a mechanism; empty if nothing."""
    if term.name == "all":
        return "all takes no argument" if rest else ""
    if term.name in ("include", "exists"):
        return "" if rest.startswith(":") and len(rest) > 1 else "the domain is missing"
    if term.name in ("ip4", "ip6"):
        try:
            network = ip_network(term.value, strict=False)
        except ValueError:
            return "that is not an address or network"
        return "" if network.version == int(term.name[2]) else f"that is an address for ip{network.version}"
    match = _CIDR.match(term.value)
    if rest == ":" or match is None or int(match["four"] or 0) > 32 or int(match["six"] or 0) > 128:
        return "the argument is malformed"
    return ""


class _Walker:
    def __init__(self, resolver: Resolver, walk: SpfEvaluation) -> None:
        self._resolver = resolver
        self._walk = walk
        self._followed = 0

    async def follow(self, domain: str, depth: int, above: tuple[str, ...], text: str | None = None) -> None:
        """Follow one record and all that it includes."""
        walk = self._walk
        if domain in above or depth > _MAX_DEPTH:
            walk.error(f"{domain} includes itself: receivers answer permerror")
            return
        record = text if text is not None else await self._record(domain, above)
        if record is None:
            return
        terms = []
        for term in parse(record):
            if isinstance(term, Remark):
                walk.remarks.append(Remark(True, f"{domain}: {term.what}"))
            else:
                terms.append(term)
        self._judge(domain, record, terms, top=not above)
        for term in terms:
            await self._term(term, domain, depth, (*above, domain), any(other.name == "all" for other in terms))

    async def _record(self, domain: str, above: tuple[str, ...]) -> str | None:
        walk = self._walk
        try:
            answer = await self._resolver.query(domain, "TXT")
        except DNSError:
            walk.error(f"the TXT records of {domain} cannot be looked up right now: receivers answer temperror")
            return None
        texts = [one.decode("utf-8", "replace") for one in answer.records if isinstance(one, bytes)]
        found = [one for one in texts if re.match(r"v=spf1( |\Z)", one, re.IGNORECASE)]
        if len(found) == 1:
            return found[0]
        if found:
            walk.error(f"{domain} has {len(found)} SPF records: receivers answer permerror; make them one")
        elif near := next((one for one in texts if re.match(r"\W*v\s*=?\s*spf", one, re.IGNORECASE)), None):
            walk.error(f"{domain} has {printable(near, 60)}, which is not an SPF record: it must begin with v=spf1")
        elif above:
            walk.error(f"{domain} is included and has no SPF record: receivers answer permerror")
        else:
            walk.error(f"{domain} has no SPF record")
        return None

    def _judge(self, domain: str, record: str, terms: list[SpfTerm], *, top: bool) -> None:
        """Add remarks on what a record shows by itself."""
        walk = self._walk
        names = [term.name for term in terms]
        if "all" in names:
            index = names.index("all")
            if ignored := [term.text for term in terms[index + 1 :] if term.name in _MECHANISMS]:
                walk.error(f"{domain}: what comes after all is never reached: {printable(' '.join(ignored), 80)}")
            if "redirect" in names:
                walk.error(f"{domain}: redirect= is ignored, because there is an all")
            qualifier = terms[index].qualifier
            if qualifier == "+":
                walk.error(f"{domain}: {terms[index].text} lets everybody send as you")
            elif qualifier == "?" and top:
                walk.note(f"{domain}: ?all says nothing about others; ~all, or -all, does")
        elif "redirect" not in names and top:
            walk.error(f"{domain}: there is neither all nor redirect=: nothing is said about others; add ~all")
        if names.count("redirect") > 1 or names.count("exp") > 1:
            walk.error(f"{domain}: a modifier appears twice: receivers answer permerror")
        if "ptr" in names:
            walk.note(
                f"{domain}: ptr should not be used (RFC 7208 section 5.5): it is slow, and some receivers ignore it"
            )
        if len(record.encode()) > 450:
            walk.note(f"{domain}: the record is {len(record.encode())} bytes long; DNS answers over 512 bytes need TCP")

    async def _term(self, term: SpfTerm, domain: str, depth: int, above: tuple[str, ...], has_all: bool) -> None:
        walk = self._walk
        if term.name == "redirect" and has_all:
            return
        walk.lookups += term.needs_lookup
        walk.lines.append((depth, printable(term.text, 100), walk.lookups if term.needs_lookup else 0))
        if not term.needs_lookup or "%" in term.value or self._followed >= _MAX_FOLLOWED:
            return
        self._followed += 1
        target = normal_domain(re.split("/", term.value)[0]) if re.split("/", term.value)[0] else domain
        if not target:
            walk.error(f"{domain}: {printable(term.text, 80)} does not name a valid domain")
        elif term.name in ("include", "redirect"):
            await self.follow(target, depth + 1, above)
        elif term.name in ("a", "mx", "exists"):
            await self._addresses(term, target, domain)

    async def _addresses(self, term: SpfTerm, target: str, domain: str) -> None:
        walk = self._walk
        try:
            if term.name == "mx":
                records = (await self._resolver.query(target, "MX")).records
                if len(records) > 10:
                    walk.error(f"{domain}: {term.text} has {len(records)} names, but only 10 are allowed")
            else:
                records = (await self._resolver.query(target, "A")).records
                if not records and term.name == "a":
                    records = (await self._resolver.query(target, "AAAA")).records
        except DNSError:
            walk.error(f"{domain}: {printable(term.text, 80)} cannot be looked up right now")
            return
        if not records:
            walk.void += 1
            walk.note(f"{domain}: {printable(term.text, 80)} finds nothing")


def sentences(walk: SpfEvaluation) -> Iterator[str]:
    """Yield the tree and the remarks as lines for people."""
    yield f"{walk.domain}: {walk.lookups} look-ups of {MAX_LOOKUPS}, {walk.void} that find nothing of {MAX_VOID}"
    for depth, text, number in walk.lines:
        yield f"  {f'{number:2}' if number else '  '} {'  ' * depth}{text}"
    yield from (f"  {remark}" for remark in dict.fromkeys(walk.remarks))
