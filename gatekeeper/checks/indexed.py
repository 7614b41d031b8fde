# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of exact keys: the source text of `hash:`, `btree:`, `dbm:`, `lmdb:` and `texthash:`, access(5).

What postmap(1) would compile is read directly, so the files are used as they are and no database library is needed. A
look-up costs the same however many entries there are. Two spellings that tutorials use and Postfix never matches do
match here, with a warning for each: `@domain`, and a network in CIDR notation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from gatekeeper.checks.action import Action
from gatekeeper.checks.entries import Actions, logical_lines
from gatekeeper.checks.opinion import Place
from gatekeeper.request import Address


class Networks:
    """Entries by network. A look-up costs one step for each prefix length in use."""

    def __init__(self) -> None:
        self._by_length: dict[tuple[int, int], dict[int, tuple[int, Action]]] = {}
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, network: IPv4Network | IPv6Network, action: Action) -> None:
        """An entry; the first for a network stays."""
        entries = self._by_length.setdefault((network.version, network.prefixlen), {})
        number = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        entries.setdefault(number, (self._count, action))
        self._count += 1

    def first(self, address: Address) -> Action | None:
        """The entry added first of those whose network holds `address`: the order of a cidr: table."""
        return min(self._hits(address), key=lambda hit: hit[1], default=(0, 0, None))[2]

    def longest(self, address: Address) -> Action | None:
        """The entry of the longest network that holds `address`."""
        return max(self._hits(address), key=lambda hit: hit[0], default=(0, 0, None))[2]

    def _hits(self, address: Address) -> Iterator[tuple[int, int, Action]]:
        number = int(address)
        for (version, length), entries in self._by_length.items():
            if version == address.version and (hit := entries.get(number >> (address.max_prefixlen - length))):
                yield length, *hit


@dataclass(slots=True)
class IndexedTable:
    """Exact keys, folded to lower case."""

    entries: dict[str, Action] = field(default_factory=dict)
    networks: Networks = field(default_factory=Networks)
    allows: list[Place] = field(default_factory=list)

    def search(self, keys: Iterable[str]) -> Action | None:
        """The entry for the first key that has one."""
        return next((self.entries[key] for key in keys if key in self.entries), None)

    def search_address(self, address: Address) -> Action | None:
        """The entry for the address itself, else for a network in CIDR notation, else for a shortened address."""
        whole, *shortened = address_keys(str(address))
        return self.entries.get(whole) or self.networks.longest(address) or self.search(shortened)


def address_keys(address: str) -> Iterator[str]:
    """The address, then shortened field by field: `192.0.2.1`, `192.0.2`, `192.0`, `192`; by `:` for IPv6."""
    separator = ":" if ":" in address else "."
    while address:
        yield address
        address = address.rpartition(separator)[0]


def parse_indexed(text: str, actions: Actions) -> IndexedTable:
    """The table written in `text`: `key action` lines. As in postmap the first of two equal keys stays."""
    table = IndexedTable(allows=actions.allows)
    entries = table.entries
    for line, content in logical_lines(text):
        parts = content.split(None, 1)
        if len(parts) < 2:
            actions.mistake(line, f"{parts[0]!r} has no action; allowed: KEY ACTION, with white space between")
            continue
        key = parts[0].lower()
        action = actions.action(line, parts[1])
        if action is None:
            continue
        if key in entries:
            actions.mistake(line, f"{key!r} is here twice; the first one counts", warning=True)
            continue
        entries[key] = action
        if not (key[0].isalnum() and key[-1].isalnum() and "/" not in key):
            _odd_key(line, key, action, table, actions)
    return table


def _odd_key(line: int, key: str, action: Action, table: IndexedTable, actions: Actions) -> None:
    """Say what is to be known about a key that Postfix would not match, and make it match where that is meant."""
    if "/" in key and "@" not in key:
        try:
            table.networks.add(ip_network(key.replace("[", "").replace("]", "")), action)
        except ValueError as error:
            actions.mistake(line, f"{key!r} is no network ({error}); allowed: NETWORK/LENGTH in a cidr: table")
        else:
            what = f"Postfix never matches the network {key} here, gatekeeper does; put it into a cidr: table"
            actions.mistake(line, what, warning=True)
    elif key.startswith("@"):
        what = f"Postfix never matches {key!r} here, gatekeeper does; write {key[1:]!r}, which holds for all below too"
        actions.mistake(line, what, warning=True)
    elif key.startswith("."):
        what = f"neither Postfix nor gatekeeper matches {key!r} here; write {key[1:]!r}, which holds for all below it"
        actions.mistake(line, what, warning=True)
    elif key.endswith(":") and ":" not in key[:-1]:
        actions.mistake(line, f"{key!r} ends with a colon; this is no alias file", warning=True)
