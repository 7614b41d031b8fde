# SPDX-License-Identifier: GPL-3.0-or-later
"""One DNS list: how it is written (`zen.spamhaus.org=127.0.0.[2..11]*3`), what it is asked, and what its answer means.

The syntax is Postfix's (postconf(5), reject_rbl_client and postscreen_dnsbl_sites). The meaning is stricter: only
answers inside 127.0.0.0/8 count, and 127.255.255.0/24 is the operator's error message and never a hit; Postfix takes
any answer, so that a parked zone refuses all mail. DNS trouble is no hit.
"""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from gatekeeper.checks.dns import a_label
from gatekeeper.checks.syntax import is_hostname
from gatekeeper.dnsname import to_name, to_text
from gatekeeper.pipeline import Context
from gatekeeper.request import Address
from gatekeeper.resolver import DNSError
from gatekeeper.verdict import printable

_SITE = re.compile(r"(?P<zone>[^=*\s]+)(?:=(?P<filter>[0-9.;\[\]]+))?(?:\*(?P<weight>[+-]?[0-9]{1,6}))?", re.ASCII)
_FIELD = re.compile(r"[0-9]{1,3}|\[[0-9;.]+\]", re.ASCII)
_TEXT_LIMIT = 200
"""Characters of a list's own text in a reply: with Postfix's words around it, it stays below the 510 of a reply."""

_ALLOWED = 'allowed: "ZONE", "ZONE=127.0.0.2", "ZONE=127.0.0.[2;4..11]", each with a weight "*2" or "*-1" behind it'


@dataclass(frozen=True, slots=True)
class DnsList:
    """A zone, the octets of the answers that count (None: any), and what a hit weighs."""

    zone: str
    octets: tuple[frozenset[int], ...] | None = None
    weight: int = 1

    def matches(self, answer: object) -> bool:
        """True if the A record `answer` is a hit."""
        try:
            octets = [int(octet) for octet in str(answer).split(".")]
        except ValueError:
            return False
        if len(octets) != 4 or octets[0] != 127 or octets[1:3] == [255, 255]:
            return False
        return self.octets is None or all(octet in field for octet, field in zip(octets, self.octets, strict=True))


@dataclass(frozen=True, slots=True)
class Hit:
    """A list that has the client or the name: with which answers."""

    list: DnsList
    question: str
    answers: tuple[str, ...]


def parse_list(value: Any) -> DnsList:
    """The list that `zone[=filter][*weight]` names. Raises ValueError with what is allowed."""
    if isinstance(value, DnsList):
        return value
    match = _SITE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no DNS list; {_ALLOWED}")
    name = to_name(match["zone"])
    if name is None or not is_hostname(to_text(name)):
        raise ValueError(f"{match['zone']!r} is no domain name; {_ALLOWED}")
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


async def ask_all(context: Context, lists: Iterable[DnsList], subject: str) -> list[Hit]:
    """The lists that have `subject`, all asked at once, in the order given."""
    answers = await asyncio.gather(*(_ask(context, site, f"{subject}.{site.zone}") for site in lists))
    for note, _ in answers:
        context.note(*note)
    return [hit for _, hit in answers if hit is not None]


async def _ask(context: Context, site: DnsList, question: str) -> tuple[tuple[str, str], Hit | None]:
    """What is to be noted, and the hit. The note is the caller's, so that notes keep the order of the lists."""
    what = f"list {site.zone}"
    try:
        answer = await context.resolver.query(question, "A")
    except DNSError as error:
        return (what, f"no answer: {str(error) or type(error).__name__}"), None
    found = tuple(str(record) for record in answer.records)
    hits = tuple(record for record in found if site.matches(record))
    if hits:
        return (what, f"listed: {', '.join(hits[:4])}"), Hit(site, question, hits)
    return (what, f"not counted: {printable(', '.join(found[:4]), 80)}" if found else "not listed"), None


async def reason_of(context: Context, hit: Hit) -> str:
    """The list's own words about a hit, safe for a reply; empty if it says nothing."""
    try:
        answer = await context.resolver.query(hit.question, "TXT")
    except DNSError:
        return ""
    texts = [record.decode("utf-8", "replace") for record in answer.records if isinstance(record, bytes)]
    return printable(" / ".join(texts), _TEXT_LIMIT)


def reply_text(label: str, what: str, zone: str, why: str) -> str:
    """Postfix's words (`default_rbl_reply`)."""
    text = f"Service unavailable; {label} [{printable(what, 255)}] blocked using {zone}"
    return f"{text}; {why}" if why else text
