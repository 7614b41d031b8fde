# SPDX-License-Identifier: GPL-3.0-or-later
"""One DNS list, and the meaning of its answers.

Stricter than Postfix, which takes any A record for a hit, so that a parked zone refuses all mail: only answers inside
127.0.0.0/8 count, and never those by which an operator refuses to answer. These are 127.255.255.0/24
(https://www.spamhaus.org/faqs/dnsbl-usage/), and what some operators used before that was agreed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from gatekeeper.core import redaction

_OPEN = "it was asked through a public resolver", "ask through a resolver of your own (dns.nameservers)"
_MANY = "it was asked too often", "take it out, or ask its operator for an account"
_NAMES = "it lists names and was asked about an address", "use it for HELO, sender or reverse name"

_REFUSALS = {
    "127.255.255.252": ("the name of the zone is mistyped", "check how it is spelled"),
    "127.255.255.254": _OPEN,
    "127.255.255.255": _MANY,
}
_OWN_REFUSALS = (
    ("dnswl.org", "127.0.0.255", *_MANY),
    ("uribl.com", "127.0.0.1", *_MANY),
    ("surbl.org", "127.0.0.1", *_MANY),
    ("dbl.spamhaus.org", "127.0.1.255", *_NAMES),
    ("dbl.dq.spamhaus.net", "127.0.1.255", *_NAMES),
)
"""For zones at and below a name: the answer, its meaning, and what to do."""


class ListKind(StrEnum):
    """What a list is queried for: addresses (RBL, DNSWL) or domain names (RHSBL, RHSWL)."""

    ADDRESS = "address"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class DnsList:
    """A zone, the octets of the answers that count (None: any), and the weight of a hit."""

    zone: str = field(repr=False)  # it may hold a key
    octets: tuple[frozenset[int], ...] | None = None
    weight: int = 1

    @property
    def shown(self) -> str:
        """The zone as people may see it."""
        return redaction.without_key(self.zone)

    def matches(self, answer: object) -> bool:
        """Return True if the A record `answer` is a hit."""
        text = str(answer)
        if not is_listing(text) or refusal(self.zone, text):
            return False
        octets = map(int, text.split("."))
        return self.octets is None or all(octet in allowed for octet, allowed in zip(octets, self.octets, strict=True))

    def hits(self, answers: Iterable[object]) -> tuple[str, ...]:
        """Return those of the A records `answers` that are hits."""
        return tuple(str(answer) for answer in answers if self.matches(answer))


ListUse = tuple[DnsList, ListKind]
"""A list with its filter, and what it is queried for."""


def is_listing(answer: str) -> bool:
    """Return True if an A record is inside 127.0.0.0/8, as the answers of lists are."""
    first, *rest = answer.split(".")
    return first == "127" and len(rest) == 3 and all(octet.isdecimal() for octet in rest)


def refusal(zone: str, answer: str) -> str:
    """Return what an answer that is not a listing means, and what to do about it; empty for any other answer."""
    if answer.startswith("127.255.255."):
        meaning, advice = _REFUSALS.get(answer, ("its operator refuses to answer", "ask its operator why"))
        return f"{answer}, {meaning}: {advice}"
    for suffix, code, meaning, advice in _OWN_REFUSALS:
        if answer == code and (zone == suffix or zone.endswith("." + suffix)):
            return f"{answer}, {meaning}: {advice}"
    return ""
