# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lists as checks use them: their notation (`zen.spamhaus.org=127.0.0.[2..11]*3`), queries, and reply texts.

The syntax is Postfix's (postconf(5), reject_rbl_client and postscreen_dnsbl_sites). What answers mean, and whether a
list can be trusted, is for the package gatekeeper.dnslists.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from gatekeeper.checks.base.dns_lookups import a_label
from gatekeeper.core import redaction
from gatekeeper.core.request import UNKNOWN, Address
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.names import to_name, to_text
from gatekeeper.dnslists.dns_list import DnsList, ListKind
from gatekeeper.dnslists.queries import ListQuestion, ListReply
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.hostname_syntax import is_hostname
from gatekeeper.postfix.restriction_list import split_if_string

_SITE = re.compile(r"(?P<zone>[^=*\s]+)(?:=(?P<filter>[0-9.;\[\]]+))?(?:\*(?P<weight>[+-]?[0-9]{1,6}))?", re.ASCII)
_FIELD = re.compile(r"[0-9]{1,3}|\[[0-9;.]+\]", re.ASCII)
_TEXT_LIMIT = 200
_REPLY_LIMIT = 400
"""Most characters of a list's own text, and of the whole reply.

With what Postfix puts before it, the reply stays below Postfix's limit of 510.
"""

_ALLOWED = 'allowed: "ZONE", "ZONE=127.0.0.2", "ZONE=127.0.0.[2;4..11]", each with an optional weight, "*2" or "*-1"'


def parse_list(value: Any) -> DnsList:
    """Parse `zone[=filter][*weight]`. Raises ValueError with what is allowed."""
    if isinstance(value, DnsList):
        return value
    match = _SITE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{redaction.quote_without_keys(str(value))} is not a DNS list; {_ALLOWED}")
    name = to_name(match["zone"])
    if name is None or not is_hostname(to_text(name)):
        raise ValueError(f"{redaction.quote_without_keys(match['zone'])} is not a domain name; {_ALLOWED}")
    octets = _parse_filter(match["filter"]) if match["filter"] else None
    return DnsList(to_text(name), octets, int(match["weight"] or 1))


def _parse_filter(text: str) -> tuple[frozenset[int], ...]:
    """Return the numbers that each of the four octets may be."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") and "." in text.partition("]")[0] else text
    fields: list[frozenset[int]] = []
    rest = inner
    while match := _FIELD.match(rest):
        fields.append(_numbers(match[0], text))
        rest = rest[match.end() :]
        if rest.startswith(".") and len(fields) < 4:
            rest = rest[1:]
        else:
            break
    if rest or len(fields) != 4:
        raise ValueError(f"{text!r} is not a filter for answers; {_ALLOWED}")
    if 127 not in fields[0]:
        raise ValueError(f"{text!r} can never match: DNS lists answer within 127.0.0.0/8; {_ALLOWED}")
    return tuple(fields)


def _numbers(field: str, text: str) -> frozenset[int]:
    numbers: set[int] = set()
    for part in field.strip("[]").split(";"):
        low, dots, high = part.partition("..")
        if not low.isdigit() or (dots and not high.isdigit()):
            raise ValueError(f"{text!r}: {field!r} is not an octet; {_ALLOWED}")
        first, last = int(low), int(high or low)
        if not first <= last <= 255:
            raise ValueError(f"{text!r}: {part!r} is not a number from 0 to 255 or a range of them; {_ALLOWED}")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


Site = Annotated[DnsList, BeforeValidator(parse_list)]
"""A list in Postfix's notation."""
Sites = Annotated[tuple[Site, ...], BeforeValidator(split_if_string)]
"""A TOML list of them, or one string."""


def reversed_address(address: Address) -> str:
    """Return what precedes the zone: `1.2.0.192`, or 32 nibbles for IPv6 (RFC 5782 section 2.1, 2.4)."""
    return address.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


def listed_domain(name: str) -> str | None:
    """Return the domain to look up in a list of names for `name`, a host name or a mailbox; None if there is none.

    Address literals, names that end in a number, and anything that is not a host name are skipped, as in Postfix: some
    lists punish queries for addresses.
    """
    domain = a_label(name.rpartition("@")[2])
    if not is_hostname(domain) or domain.rpartition(".")[2].isdigit():
        return None
    return domain


def name_of_client(name: str) -> str:
    """Return a client's name, empty for Postfix's word for none; a HELO name or a sender may be called `unknown`."""
    return "" if name.lower() == UNKNOWN else name


class ListSubject(NamedTuple):
    """Whom or what a list is queried for: `text` as people know it, `query` as it precedes the zone."""

    label: str
    kind: ListKind
    text: str
    query: str


class ListHit(NamedTuple):
    """A list that lists `subject`."""

    question: ListQuestion
    subject: ListSubject

    @property
    def list(self) -> DnsList:
        """The DNS list that was queried."""
        return self.question.list


class ListResult(NamedTuple):
    """What lists answered: hits, in the order of the queries, and lists that gave no answer but might have a hit."""

    hits: tuple[ListHit, ...]
    unknown: tuple[DnsList, ...]


@lru_cache(maxsize=4096)  # one client has several recipients, and its address takes 10 µs to reverse
def address_subject(address: Address) -> ListSubject:
    """Return the client's address as the subject of queries."""
    return ListSubject("Client host", ListKind.ADDRESS, str(address), reversed_address(address))


def name_subject(label: str, name: str | None) -> ListSubject | None:
    """Return a host name, or the domain of a mailbox, as the subject of queries; None if it must not be looked up."""
    domain = listed_domain(name) if name else None
    return ListSubject(label, ListKind.NAME, name or "", domain) if domain else None


async def query_lists(context: Context, queries: Sequence[tuple[DnsList, ListSubject]]) -> ListResult:
    """Query each list for its subject, all at once, and note the answers, in this order."""
    questions = [ListQuestion(site, subject.kind, subject.query) for site, subject in queries]
    replies = await context.lists.ask(questions)
    hits, unknown = [], []
    for question, (site, subject), reply in zip(questions, queries, replies, strict=True):
        matching = site.hits(reply.records) if reply.records else ()
        if matching:
            hits.append(ListHit(question, subject))
        if reply.unknown:
            unknown.append(site)
        context.note_later(partial(_describe, site, subject, reply, matching))
    return ListResult(tuple(hits), tuple(unknown))


def _describe(site: DnsList, subject: ListSubject, reply: ListReply, matching: Sequence[str]) -> tuple[str, str]:
    """Return what a list was queried for, and what it answered, in words."""
    what = f"list {site.shown}"
    if subject.kind is ListKind.NAME:
        what += f" of {printable(subject.query, 255)}"
    if matching:
        return what, f"listed: {', '.join(matching[:4])}"
    if reply.records:
        return what, f"not counted: {printable(', '.join(reply.records[:4]), 80)}"
    return what, reply.why or "not listed"


async def query_address(context: Context, lists: Iterable[DnsList], address: Address) -> tuple[ListHit, ...]:
    """Return the hits for `address`, in the order of `lists`, which are all queried at once."""
    subject = address_subject(address)
    return (await query_lists(context, [(site, subject) for site in lists])).hits


async def reply_text(context: Context, hit: ListHit) -> str:
    """Return Postfix's reply to a hit (`default_rbl_reply`), with the list's own text."""
    why = sanitize(await context.lists.text(hit.question), hit.list.zone)
    who = hit.subject
    text = f"Service unavailable; {who.label} [{printable(who.text, 255)}] blocked using {hit.list.shown}"
    return printable(f"{text}; {why}" if why else text, _REPLY_LIMIT)


def sanitize(records: Iterable[bytes], zone: str) -> str:
    """Return a list's TXT records as a reply can hold them: one line of printable ASCII, without the zone's key.

    Its length is bounded.
    """
    text = " / ".join(record.decode("utf-8", "replace") for record in records)
    # a character that is not printable is a line end, a tab or an escape: a gap between words
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = redaction.hide_keys(text)
    if key := redaction.zone_key(zone):
        text = re.sub(re.escape(key) + r"\.?", "", text, flags=re.IGNORECASE)
    return printable(text, _TEXT_LIMIT)
