# SPDX-License-Identifier: GPL-3.0-or-later
"""How a DNS list is written (`zen.spamhaus.org=127.0.0.[2..11]*3`), what it is asked about whom, and what a hit says.

The syntax is Postfix's (postconf(5), reject_rbl_client and postscreen_dnsbl_sites). What answers mean, and whether a
list is to be believed, the package dnslists knows.
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
"""Characters of a list's own text, and of the whole reply: with what Postfix puts before it, below its limit of 510."""

_ALLOWED = 'allowed: "ZONE", "ZONE=127.0.0.2", "ZONE=127.0.0.[2;4..11]", each with a weight "*2" or "*-1" behind it'


def parse_list(value: Any) -> DnsList:
    """The list that `zone[=filter][*weight]` names. Raises ValueError with what is allowed."""
    if isinstance(value, DnsList):
        return value
    match = _SITE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{redaction.quote_without_keys(str(value))} is no DNS list; {_ALLOWED}")
    name = to_name(match["zone"])
    if name is None or not is_hostname(to_text(name)):
        raise ValueError(f"{redaction.quote_without_keys(match['zone'])} is no domain name; {_ALLOWED}")
    octets = _parse_filter(match["filter"]) if match["filter"] else None
    return DnsList(to_text(name), octets, int(match["weight"] or 1))


def _parse_filter(text: str) -> tuple[frozenset[int], ...]:
    """The numbers that each of the four octets may be."""
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
        raise ValueError(f"{text!r} is no filter for answers; {_ALLOWED}")
    if 127 not in fields[0]:
        raise ValueError(f"{text!r} can never match: DNS lists answer within 127.0.0.0/8; {_ALLOWED}")
    return tuple(fields)


def _numbers(field: str, text: str) -> frozenset[int]:
    numbers: set[int] = set()
    for part in field.strip("[]").split(";"):
        low, dots, high = part.partition("..")
        if not low.isdigit() or (dots and not high.isdigit()):
            raise ValueError(f"{text!r}: {field!r} is no octet; {_ALLOWED}")
        first, last = int(low), int(high or low)
        if not first <= last <= 255:
            raise ValueError(f"{text!r}: {part!r} is no number from 0 to 255, or range of them; {_ALLOWED}")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


Site = Annotated[DnsList, BeforeValidator(parse_list)]
"""A list in the spelling of Postfix."""
Sites = Annotated[tuple[Site, ...], BeforeValidator(split_if_string)]
"""A TOML list of them, or one string."""


def reversed_address(address: Address) -> str:
    """What stands before the zone: `1.2.0.192`, or the 32 nibbles of an IPv6 address (RFC 5782 section 2.1, 2.4)."""
    return address.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


def listed_domain(name: str) -> str | None:
    """What a list of names is asked about `name` (a host name or a mailbox); None if it is not to be asked.

    Address literals, names that end in a number, and what is no host name are skipped, as in Postfix: some lists
    punish questions about addresses.
    """
    domain = a_label(name.rpartition("@")[2])
    if not is_hostname(domain) or domain.rpartition(".")[2].isdigit():
        return None
    return domain


class ListSubject(NamedTuple):
    """Whom or what a list is asked about: `text` as people know it, `asked` as it stands before the zone."""

    label: str
    kind: ListKind
    text: str
    asked: str


class ListHit(NamedTuple):
    """A list that has somebody: with which answers."""

    question: ListQuestion
    about: ListSubject

    @property
    def list(self) -> DnsList:
        """The list."""
        return self.question.list


class ListResult(NamedTuple):
    """What lists said: hits, in the order of asking, and lists that might have had it but gave no answer."""

    hits: tuple[ListHit, ...]
    unknown: tuple[DnsList, ...]


@lru_cache(maxsize=4096)  # one client has several recipients, and its address takes 10 µs to turn round
def address_of(address: Address) -> ListSubject:
    """The client's address."""
    return ListSubject("Client host", ListKind.ADDRESS, str(address), reversed_address(address))


def name_of(label: str, name: str | None) -> ListSubject | None:
    """A host name, or the domain of a mailbox; None if there is none that may be asked about."""
    asked = None if not name or name == UNKNOWN else listed_domain(name)
    return ListSubject(label, ListKind.NAME, name or "", asked) if asked else None


async def look_up(context: Context, asked: Sequence[tuple[DnsList, ListSubject]]) -> ListResult:
    """Ask each list about somebody, all at once, and note what came of it, in this order."""
    questions = [ListQuestion(site, about.kind, about.asked) for site, about in asked]
    replies = await context.lists.ask(questions)
    hits, unknown = [], []
    for question, (site, about), reply in zip(questions, asked, replies, strict=True):
        matching = site.hits(reply.records) if reply.records else ()
        if matching:
            hits.append(ListHit(question, about))
        if reply.unknown:
            unknown.append(site)
        context.note_later(partial(_told, site, about, reply, matching))
    return ListResult(tuple(hits), tuple(unknown))


def _told(site: DnsList, about: ListSubject, reply: ListReply, matching: Sequence[str]) -> tuple[str, str]:
    """What a list was asked, and what it said, in words."""
    what = f"list {site.shown}"
    if about.kind is ListKind.NAME:
        what += f" of {printable(about.asked, 255)}"
    if matching:
        return what, f"listed: {', '.join(matching[:4])}"
    if reply.records:
        return what, f"not counted: {printable(', '.join(reply.records[:4]), 80)}"
    return what, reply.why or "not listed"


async def ask_all(context: Context, lists: Iterable[DnsList], address: Address) -> tuple[ListHit, ...]:
    """The lists that have `address`, all asked at once, in the order given."""
    about = address_of(address)
    return (await look_up(context, [(site, about) for site in lists])).hits


async def reply_text(context: Context, hit: ListHit) -> str:
    """Postfix's words about a hit (`default_rbl_reply`), with the list's own."""
    why = clean(await context.lists.text(hit.question), hit.list.zone)
    text = f"Service unavailable; {hit.about.label} [{printable(hit.about.text, 255)}] blocked using {hit.list.shown}"
    return printable(f"{text}; {why}" if why else text, _REPLY_LIMIT)


def clean(texts: Iterable[bytes], zone: str) -> str:
    """A list's own words, fit for a reply: one line of printable ASCII, of bounded length, without the zone's key."""
    said = " / ".join(text.decode("utf-8", "replace") for text in texts)
    # what is not printable and not a letter of some script is a line end, a tab, an escape: a gap between words
    said = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    said = redaction.hide_keys(said)
    if key := redaction.zone_key(zone):
        said = re.sub(re.escape(key) + r"\.?", "", said, flags=re.IGNORECASE)
    return printable(said, _TEXT_LIMIT)
