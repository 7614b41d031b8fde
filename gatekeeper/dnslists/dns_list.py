# SPDX-License-Identifier: GPL-3.0-or-later
"""One DNS list, and what its answers mean.

Stricter than Postfix, which takes any A record for a hit, so that a parked zone refuses all mail: only answers inside
127.0.0.0/8 count, and those by which an operator says that he will not answer never do. That is 127.255.255.0/24
(https://www.spamhaus.org/faqs/dnsbl-usage/), and what some operators said before that was agreed.
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
"""Zones at and below a name, the answer, what it means, what to do."""


class ListKind(StrEnum):
    """What a list is asked about: addresses (RBL, DNSWL) or domain names (RHSBL, RHSWL)."""

    ADDRESS = "address"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class DnsList:
    """A zone, the octets of the answers that count (None: any), and what a hit weighs."""

    zone: str = field(repr=False)  # it may hold a key
    octets: tuple[frozenset[int], ...] | None = None
    weight: int = 1

    @property
    def shown(self) -> str:
        """The zone as people may see it."""
        return redaction.without_key(self.zone)

    def matches(self, answer: object) -> bool:
        """True if the A record `answer` is a hit."""
        text = str(answer)
        if not is_listing(text) or refusal(self.zone, text):
            return False
        octets = map(int, text.split("."))
        return self.octets is None or all(octet in those for octet, those in zip(octets, self.octets, strict=True))

    def hits(self, answers: Iterable[object]) -> tuple[str, ...]:
        """Those of the A records `answers` that are hits."""
        return tuple(str(answer) for answer in answers if self.matches(answer))


def is_listing(answer: str) -> bool:
    """True if an A record is one by which lists answer: inside 127.0.0.0/8."""
    first, *rest = answer.split(".")
    return first == "127" and len(rest) == 3 and all(octet.isdecimal() for octet in rest)


def refusal(zone: str, answer: str) -> str:
    """What an operator says by an answer that is no listing, and what to do about it; empty for any other."""
    if answer.startswith("127.255.255."):
        meaning, advice = _REFUSALS.get(answer, ("its operator refuses to answer", "ask its operator why"))
        return f"{answer}, {meaning}: {advice}"
    for suffix, said, meaning, advice in _OWN_REFUSALS:
        if answer == said and (zone == suffix or zone.endswith("." + suffix)):
            return f"{answer}, {meaning}: {advice}"
    return ""
