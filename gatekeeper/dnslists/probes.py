# SPDX-License-Identifier: GPL-3.0-or-later
"""Test points: what every list must list and what none may (RFC 5782 section 5), and what the answers say about a list.

No outsider chooses these queries, so no outsider can get a list switched off. Some operators have test points of their
own instead of `test`. A list without any is not necessarily dead: see health.py.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from typing import NamedTuple

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import Answer, DNSError
from gatekeeper.dnslists.dns_list import ListKind, ListUse, is_listing, refusal


class ListState(StrEnum):
    """The state of a list; the values are worded for people."""

    GOOD = "good"
    EVERYTHING = "lists everything"
    NOTHING = "lists nothing"
    FOREIGN = "answers what no list answers"
    REFUSES = "refuses to answer"
    TROUBLE = "does not answer"


@dataclass(frozen=True, slots=True)
class ListFinding:
    """The result of a probe: `why` continues the sentence that the state begins, for people."""

    state: ListState
    why: str = ""

    def __str__(self) -> str:
        return f"{self.state}{self.why}"


GOOD = ListFinding(ListState.GOOD)


class TestPoints(NamedTuple):
    """Names below the zone: one of `listed` has to be listed, none of `unlisted` may be."""

    listed: tuple[str, ...]
    unlisted: tuple[str, ...]


def _nibbles(address: str) -> str:
    return IPv6Address(address).reverse_pointer.removesuffix(".ip6.arpa")


_ADDRESSES = TestPoints(("2.0.0.127", _nibbles("::ffff:7f00:2")), ("1.0.0.127", _nibbles("::ffff:7f00:1")))
_NAMES = TestPoints(("test",), ("invalid",))
_OWN_NAMES = (
    ("dbl.spamhaus.org", "dbltest.com"),
    ("dbl.dq.spamhaus.net", "dbltest.com"),
    ("surbl.org", "surbl-org-permanent-test-point.com"),
    ("uribl.com", "test.uribl.com"),
)


def test_points_of(zone: str, kinds: Collection[ListKind]) -> TestPoints:
    """Return the test points of a zone that is queried for these kinds."""
    listed: list[str] = []
    unlisted: list[str] = []
    if ListKind.ADDRESS in kinds:
        listed += _ADDRESSES.listed
        unlisted += _ADDRESSES.unlisted
    if ListKind.NAME in kinds:
        own = [name for suffix, name in _OWN_NAMES if zone == suffix or zone.endswith("." + suffix)]
        listed += [*_NAMES.listed, *own]
        unlisted += _NAMES.unlisted
    return TestPoints(tuple(listed), tuple(unlisted))


def judge_answers(zone: str, points: TestPoints, answers: Mapping[str, Answer | DNSError]) -> ListFinding:
    """Judge a zone by the answers for its test points, but for what concerns some of its uses: `lists_everything`.

    What must be listed is judged by any answer at all, since a filter may want only values that no test point has.
    """
    records = _records(answers)
    all_records = [record for found in records.values() for record in found]
    if refused := next((why for record in all_records if (why := refusal(zone, record))), ""):
        return ListFinding(ListState.REFUSES, f" ({refused})")
    if unexpected := [record for record in all_records if not is_listing(record)]:
        why = (
            f" ({printable(unexpected[0], 40)}): the zone is parked, or the resolver invents answers for missing names"
        )
        return ListFinding(ListState.FOREIGN, why)
    listed = any(records.get(point) for point in points.listed)
    if listed and any(point in records for point in points.unlisted):
        return GOOD
    for answer in answers.values():
        if isinstance(answer, DNSError):
            return ListFinding(ListState.TROUBLE, f" ({describe_error(answer)})")
    why = f", not even {_as_text(points.listed[0])}, which every list has (RFC 5782): it is dead, moved or private, "
    return ListFinding(ListState.NOTHING, f"{why}or the resolver drops answers in 127.0.0.0/8")


def lists_everything(use: ListUse, answers: Mapping[str, Answer | DNSError]) -> ListFinding | None:
    """Return what is wrong with one use of a list, if it counts an answer that no address or name may have.

    Other uses go on: a list for allowing and denying may well say of 127.0.0.1 that it is one of the good.
    """
    dns_list, kind = use
    records = _records(answers)
    for point in test_points_of(dns_list.zone, {kind}).unlisted:
        if hits := dns_list.hits(records.get(point, ())):
            return ListFinding(ListState.EVERYTHING, f", even {_as_text(point)}, which no list may have ({hits[0]})")
    return None


def _records(answers: Mapping[str, Answer | DNSError]) -> dict[str, list[str]]:
    return {
        point: [str(record) for record in answer.records]
        for point, answer in answers.items()
        if isinstance(answer, Answer)
    }


def describe_error(error: DNSError) -> str:
    """Return why a query was not answered, without the name queried, which may contain a key."""
    return printable(str(error).rpartition(": ")[2] or type(error).__name__, 120)


def _as_text(point: str) -> str:
    """Return a test point as people write it: `127.0.0.2`, `test`."""
    return ".".join(reversed(point.split("."))) if point[0].isdigit() and point.count(".") == 3 else printable(point)
