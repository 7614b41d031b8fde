# SPDX-License-Identifier: GPL-3.0-or-later
"""A parser of postgrey's entries (postgrey 1.37, smtpd_access_policy): triplets, and auto-whitelisted clients.

A triplet is `network/sender/recipient` with `first,last` in seconds since the epoch; it has passed once these are
`delay` apart. A client is an address with `count,last`. With --privacy both are hashes and cannot be imported.
"""

import re
from dataclasses import dataclass

from gatekeeper.core.request import Address, parse_address

_HASH = re.compile(rb"[0-9a-f]{40}")
_TIMES = re.compile(rb"(\d{1,12}),(\d{1,12})(?:,.*)?", re.DOTALL)
PRIVACY = "written with --privacy, so nobody can tell what they are"
DAMAGED = "not in postgrey's format"


class UnusableEntry(ValueError):
    """An entry cannot be imported; the text says why."""


@dataclass(frozen=True, slots=True)
class Triplet:
    """One entry of postgrey.db; times in seconds. `sender` is as postgrey stores it: no extension, `#` for numbers."""

    address: Address
    sender: str
    recipient: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class KnownClient:
    """One entry of postgrey_clients.db: how many mails of the client have passed, and when the last one did."""

    address: Address
    count: int
    last: int


def parse_triplet(key: bytes, value: bytes) -> Triplet:
    """Parse an entry of postgrey.db. Raises UnusableEntry."""
    first, last = _numbers(key, value)
    network, slash, rest = key.decode("utf-8", "surrogateescape").partition("/")
    bits, second_slash, after_bits = rest.partition("/")
    if bits in ("32", "128") and second_slash and "@" in after_bits:  # --lookup-by-host writes 192.0.2.1/32
        rest = after_bits
    address = parse_address(network)
    sender, divider, recipient = _divide(rest)
    if not slash or address is None or not divider or not recipient:
        raise UnusableEntry(DAMAGED)
    return Triplet(address, sender, recipient, first, last)


def parse_client(key: bytes, value: bytes) -> KnownClient:
    """Parse an entry of postgrey_clients.db. Raises UnusableEntry."""
    count, last = _numbers(key, value)
    address = parse_address(key.decode("ascii", "replace"))
    if address is None:
        raise UnusableEntry(DAMAGED)
    return KnownClient(address, count, last)


def _numbers(key: bytes, value: bytes) -> tuple[int, int]:
    if _HASH.fullmatch(key):
        raise UnusableEntry(PRIVACY)
    match = _TIMES.fullmatch(value)
    if match is None:
        raise UnusableEntry(DAMAGED)
    return int(match[1]), int(match[2])


def _divide(text: str) -> tuple[str, str, str]:
    """Divide sender from recipient: either local part may contain a slash, but no domain does."""
    at = text.find("@")
    end = text.find("/", at) if at >= 0 and not text.startswith("/") else -1
    if end < 0:
        return text.partition("/")
    return text[:end], "/", text[end + 1 :]
