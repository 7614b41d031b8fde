# SPDX-License-Identifier: GPL-3.0-or-later
"""A list of networks, addresses, names and tables, in order: mynetworks and its like (match_list(3), namadr_list(3)).

The first pattern that matches the client's name or address decides, and after `!` it excludes: `!192.0.2.9,
192.0.2.0/24`. Patterns are networks and addresses, those of IPv6 in brackets; names; `TYPE:TABLE`, looked up by the
name, then by the address, whose values say nothing; and `/FILE`, which stands for the patterns in it.

Nobody is trusted by mistake: what cannot be used ends the list there, as an error does in Postfix, because what it
would have excluded may be let in by what comes after it. Networks are found by their length, so that a thousand of them
cost no more than the lengths in use.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal

from gatekeeper.core.request import Address, Client
from gatekeeper.core.units import HostBits, parse_network

Network = IPv4Network | IPv6Network
Lookup = Callable[[Client], bool]
"""Returns whether a table has the client."""

_TABLE = re.compile(r"[a-z0-9_]+:(?!:)", re.IGNORECASE)
_NAME = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
_NETWORK = re.compile(r"(?:\[[^\[\]/%]*\]|[^\[\]/%]*)(?:/\d{1,3})?")
_LIKE_A_NETWORK = re.compile(r"\[|[\d.]+/|[0-9a-f:]*::|[^:]*/", re.IGNORECASE)
COMMENT = "{!r} in the middle of a line: Postfix ignores what comes after it"
THE_END = "gatekeeper trusts nobody by this and by what comes after it"
ALLOWED = (
    'allowed: "192.0.2.0/24", "2001:db8::/32", an address, a host name, TYPE:TABLE, /FILE, or one of these after "!"'
)


@dataclass(frozen=True, slots=True)
class ClientPattern:
    """One word of a list. `value` is the name, the table or the file; an `end` is what cannot be used."""

    text: str = field(compare=False)
    kind: Literal["network", "name", "table", "file", "end"]
    value: Network | str
    included: bool = True

    def __str__(self) -> str:
        return self.text


def parse_pattern(text: str, *, included: bool = True) -> ClientPattern:
    """Parse one word of a list; each `!` turns `included` round. Raises ValueError with what is allowed."""
    bare = text.lstrip("!")
    included = included is ((len(text) - len(bare)) % 2 == 0)
    if bare.startswith("/"):
        return ClientPattern(text, "file", bare, included)
    if _NETWORK.fullmatch(bare):
        try:
            return ClientPattern(text, "network", parse_network(bare), included)
        except ValueError as error:
            if isinstance(error, HostBits) or _LIKE_A_NETWORK.match(bare):
                raise
    if _TABLE.match(bare):
        return ClientPattern(text, "table", bare, included)
    if _NAME.fullmatch(bare) and not re.fullmatch(r"[\d.]+", bare):
        return ClientPattern(text, "name", bare.lower(), included)
    raise ValueError(f"{text!r} is not a network, a host name or a table; {ALLOWED}")


def parse_postfix_pattern(text: str, *, included: bool = True) -> ClientPattern:
    """Parse one word of a list in main.cf, where an IPv6 address needs brackets. Raises ValueError."""
    pattern = parse_pattern(text, included=included)
    if pattern.kind == "network" and ":" in text and "[" not in text:
        raise ValueError(f"{text!r} is a table for Postfix; an IPv6 address needs brackets there")
    return replace(pattern, value=str(pattern.value).removeprefix("proxy:")) if pattern.kind == "table" else pattern


def end_of_list(text: str) -> ClientPattern:
    """Return the pattern for a word that cannot be used: nobody is in the list by what stands after it."""
    return ClientPattern(text, "end", text)


@dataclass(slots=True)
class _Segment:
    """Patterns that say the same, so that their order does not matter."""

    included: bool
    networks: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)
    """By IP version and number of host bits: the network without these, and the pattern as it is written."""
    names: dict[str, str] = field(default_factory=dict)
    tables: list[tuple[Lookup, str]] = field(default_factory=list)

    def find(self, address: Address | None, name: str, names: Iterable[str]) -> str:
        """Return the pattern that matches, as it is written; empty if none does."""
        if address is not None:
            number, version = int(address), address.version
            for (of_version, host_bits), networks in self.networks.items():
                if of_version == version and (found := networks.get(number >> host_bits)):
                    return found
        if self.names:
            for key in names:
                if found := self.names.get(key):
                    return found
        if self.tables:
            client = Client(address=address, name=name)
            return next((text for has, text in self.tables if has(client)), "")
        return ""


class ClientList:
    """A list, ready to be asked. Without patterns nobody is in it.

    With `parents` a name stands for what is below it too, and one with a dot before it for nothing (Postfix's
    parent_domain_matches_subdomains); without, the one with the dot stands for what is below. `look_up` returns how to
    look a client up in a table.
    """

    def __init__(
        self,
        patterns: Iterable[ClientPattern] = (),
        *,
        parents: bool = True,
        look_up: Callable[[str], Lookup] | None = None,
    ) -> None:
        self._parents = parents
        self._segments: list[_Segment] = []
        for pattern in patterns:
            if pattern.kind == "end" or (pattern.kind == "table" and look_up is None):
                break
            if not self._segments or self._segments[-1].included is not pattern.included:
                self._segments.append(_Segment(pattern.included))
            segment = self._segments[-1]
            if isinstance(pattern.value, str):
                if pattern.kind == "table" and look_up is not None:
                    segment.tables.append((look_up(pattern.value), pattern.text))
                else:
                    segment.names.setdefault(pattern.value, pattern.text)
                continue
            network = pattern.value
            host_bits = network.max_prefixlen - network.prefixlen
            networks = segment.networks.setdefault((network.version, host_bits), {})
            networks.setdefault(int(network.network_address) >> host_bits, pattern.text)
        self._by_name = any(segment.names or segment.tables for segment in self._segments)
        # Six checks of the default list ask about the same client.
        self._decide = lru_cache(maxsize=4096)(self._search)

    @classmethod
    def of(cls, *networks: str | Network) -> "ClientList":
        """Return the list of these networks."""
        return cls(ClientPattern(str(network), "network", ip_network(network)) for network in networks)

    def find(self, client: Client) -> str:
        """Return the pattern that puts `client` in the list, as it is written; empty if it is not in it."""
        included, text = self.decide(client)
        return text if included else ""

    def decide(self, client: Client) -> tuple[bool, str]:
        """Return whether `client` is in the list and the pattern that says so; an empty one if none does."""
        return self._decide(client.address, client.name.lower() if self._by_name else "")

    def _search(self, address: Address | None, name: str) -> tuple[bool, str]:
        names = [*name_and_parents(name, self._parents)] if self._by_name else ()
        for segment in self._segments:
            if found := segment.find(address, name, names):
                return segment.included, found
        return False, ""


def name_and_parents(name: str, parents: bool) -> Iterator[str]:
    """Yield `name` and what it is below: `b.example`, `example` with `parents`, else `.b.example`, `.example`."""
    yield name
    rest = name.partition(".")[2]
    while rest:
        yield rest if parents else f".{rest}"
        rest = rest.partition(".")[2]
