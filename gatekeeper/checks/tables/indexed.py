# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of exact keys: the source text of `hash:`, `btree:`, `dbm:`, `lmdb:` and `texthash:` tables (access(5)).

The source of postmap(1) is read directly, so the files are used as they are and no database library is needed. A lookup
takes the same time however many entries there are. Two notations that tutorials use and Postfix never matches do match
here, with a warning for each (keys.py): `@domain`, and a network in CIDR notation.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, inet_pton

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.action import TableAction, without_trust
from gatekeeper.checks.tables.keys import Shape
from gatekeeper.checks.tables.packed import Packed
from gatekeeper.checks.tables.table import Actions, logical_lines
from gatekeeper.core.request import Address
from gatekeeper.core.units import parse_network
from gatekeeper.core.wide_networks import is_wide

_QUOTED = re.compile(rb'(?:"(?:\\.|[^"\\])*"?|[^\s"])+', re.DOTALL)
"""A key, which may contain white space within quotes (postmap(1), since Postfix 3.2)."""


def fold(key: bytes) -> bytes:
    """Return `key` as Postfix compares it: ASCII in lower case, UTF-8 case-folded (Postfix's casefold(3))."""
    if key.isascii():
        return key.lower()
    return key.decode("utf-8", "surrogateescape").casefold().encode("utf-8", "surrogateescape")


class Networks:
    """Entries by network; a lookup takes one step for each prefix length in use."""

    def __init__(self, capacity: int, actions: Actions) -> None:
        self._entries = Packed(capacity)
        self._lengths: dict[int, dict[int, None]] = {4: {}, 6: {}}
        self._doubted = 0
        self._actions = actions

    def add(self, network: IPv4Network | IPv6Network, text: str) -> bool:
        """Add an entry that has been checked; False, and nothing done, if there is one for the same network."""
        return self._add(network.version, network.prefixlen, int(network.network_address), network.max_prefixlen, text)

    def add_plain(self, network: str, text: str) -> bool:
        """Add an entry for an IPv4 network given as text, five times as fast as `add`.

        Return False, and do nothing, if `network` is anything else or has host bits set. The first entry stays.
        """
        address, slash, digits = network.partition("/")
        length = int(digits) if digits.isdecimal() and digits.isascii() else -1 if slash else 32
        try:
            number = int.from_bytes(inet_pton(AF_INET, address), "big")
        except (OSError, ValueError):
            return False
        if not 0 <= length <= 32 or number & ((1 << (32 - length)) - 1):
            return False
        self._add(4, length, number, 32, text)
        return True

    def _add(self, version: int, length: int, number: int, bits: int, text: str) -> bool:
        self._lengths[version][length] = None
        return self._entries.add(_network_key(version, length, number, bits), text.encode("utf-8", "surrogateescape"))

    @property
    def count(self) -> int:
        """The number of networks."""
        return self._entries.count

    def doubt_what_follows(self) -> None:
        """Let no entry that is added from here on permit anybody."""
        self._doubted = self._doubted or self._entries.end

    def first(self, address: Address) -> TableAction | None:
        """Return the first entry whose network contains `address`, as in a cidr: table."""
        return self._action(min(self._hits(address), default=None))

    def longest(self, address: Address) -> TableAction | None:
        """Return the entry for the longest prefix that contains `address`."""
        return self._action(max(self._hits(address), key=lambda hit: hit[1], default=None))

    def _hits(self, address: Address) -> Iterator[tuple[int, int, bytes]]:
        number, bits = int(address), address.max_prefixlen
        for length in self._lengths[address.version]:
            order, text = self._entries.find_ordered(_network_key(address.version, length, number, bits))
            if text is not None:
                yield order, length, text

    def _action(self, hit: tuple[int, int, bytes] | None) -> TableAction | None:
        if hit is None:
            return None
        action = self._actions.parsed(hit[2].decode("utf-8", "surrogateescape"))
        return without_trust(action) if 0 < self._doubted <= hit[0] else action


def _network_key(version: int, length: int, number: int, bits: int) -> bytes:
    return b"%d/%d:%x" % (version, length, number >> (bits - length))


@dataclass(slots=True)
class IndexedTable:
    """A table of exact, case-folded keys; `capacity` is the greatest number of entries."""

    capacity: int
    actions: Actions
    entries: Packed = field(init=False)
    networks: Networks | None = None

    def __post_init__(self) -> None:
        self.entries = Packed(self.capacity)

    @property
    def allows(self) -> list[SourceLine]:
        """The lines of entries that say OK without a condition."""
        return self.actions.allows

    @property
    def asks_spf(self) -> bool:
        """Whether an entry may ask for SPF of the sender."""
        return self.actions.asks_spf

    def search(self, keys: Iterable[str]) -> TableAction | None:
        """Return the entry for the first key that has one."""
        find = self.entries.find
        for key in keys:
            text = find(key.lower().encode() if key.isascii() else fold(key.encode("utf-8", "surrogateescape")))
            if text is not None:
                return self.actions.parsed(text.decode("utf-8", "surrogateescape"))
        return None

    def note_key(self, line: int, key: bytes, right: bytes) -> None:
        """Note a key that was added, for what is to be said of it; one that is a network matches what is in it."""
        text = key.decode("utf-8", "surrogateescape")
        if self.actions.keys.add(line, text) is not Shape.NETWORK or self.actions.values:
            return
        network = parse_network(text)
        if is_wide(network):
            return  # what goes beyond Postfix on purpose does so for networks that somebody can own
        if self.networks is None:
            self.networks = Networks(self.capacity, self.actions)
        self.networks.add(network, right.decode("utf-8", "surrogateescape"))

    def search_address(self, address: Address) -> TableAction | None:
        """Return the entry for the address, else for a network in CIDR notation, else for a shortened address."""
        if self.networks is None:
            return self.search(address_keys(str(address)))
        whole, *shortened = address_keys(str(address))
        found = self.search([whole]) or self.networks.longest(address)
        return found if found is not None else self.search(shortened)


def address_keys(address: str) -> Iterator[str]:
    """Yield the address, then shortened field by field: `192.0.2.1`, `192.0.2`, `192.0`, `192`; by `:` for IPv6."""
    separator = ":" if ":" in address else "."
    while address:
        yield address
        address = address.rpartition(separator)[0]


def cut_key(content: bytes) -> tuple[bytes, bytes]:
    """Split a logical line into key and right-hand side, which may be empty."""
    if b'"' in content and (match := _QUOTED.match(content)):
        return match[0], content[match.end() :].strip()
    key, *rest = content.split(None, 1)
    return key, rest[0] if rest else b""


def parse_indexed(data: bytes, actions: Actions) -> IndexedTable:
    """Parse a table of `key action` lines. As in postmap(1), the first of two equal keys stays."""
    table = IndexedTable(data.count(b"\n") + 1, actions)
    add = table.entries.add
    last_valid = b""  # most entries have the same right-hand side as the one before
    for line, content in logical_lines(data):
        written, right = cut_key(content)
        if not right:
            shown = written.decode("utf-8", "replace")
            actions.skip(line, f"{shown!r} has no action; allowed: KEY ACTION, with white space between")
            continue
        key = written.lower() if written.isascii() else fold(written)
        if right != last_valid:
            told = (len(actions.allows), actions.broken)
            if not actions.check(line, right.decode("utf-8", "surrogateescape")):
                continue
            # every entry that allows or is not understood has to be checked, so that its line is recorded
            last_valid = right if (len(actions.allows), actions.broken) == told else b""
        if not add(key, right):
            shown = key.decode("utf-8", "replace")
            actions.mistake(line, f"{shown!r} occurs twice; the first one counts", warning=True)
        else:
            table.note_key(line, key, right)
    return table
