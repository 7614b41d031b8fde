# SPDX-License-Identifier: GPL-3.0-or-later
"""Host lists with the semantics of OpenDKIM's InternalHosts, ExternalIgnoreList and PeerList.

The name is looked up as it is, then by its parent domains with a leading dot; independently the address is looked up as
it is, then by its networks from the narrowest to the widest. Each look-up tries `!entry` before `entry`, and the first
entry found decides. A host is in the list if its name *or* its address is, so `!name` does not veto an address.

Deliberate deviations from OpenDKIM, each with a warning: a network with host bits set (`192.168.0.1/24`) counts as its
network (OpenDKIM never matches it), and a refile line such as `*.example.com` matches (OpenDKIM takes it as
negated, so such lines have never worked there).
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from gatekeeper.core.problem import Problem
from gatekeeper.core.request import UNKNOWN, Address, Client
from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet, DataSetEntry

Network = IPv4Network | IPv6Network
_NAME = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.IGNORECASE)
_EXACT = 999  # an address without /bits is tried before all networks, even its own /32


class HostList:
    """Host names and addresses, some of them negated. An empty list contains no host."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[bool, str]] = {}
        self._patterns: list[tuple[re.Pattern[str], bool, str]] = []
        # by IP version and bits: network address -> rank (even: negated) and the entry as written
        self._networks: dict[int, dict[int, dict[int, tuple[int, str]]]] = {4: {}, 6: {}}

    @classmethod
    def read(
        cls, spec: str | Sequence[str], where: str = "InternalHosts", *, base: Path = Path()
    ) -> "tuple[HostList, list[Problem]]":
        """Read the list. `where` is the option's name, `base` the directory where relative paths start."""
        data, problems = data_set.read(spec, where, base)
        hosts = cls()
        for entry in data.entries:
            problems += hosts._add(data, entry)
        hosts._sort()
        return hosts, problems

    def find(self, client: Client) -> str:
        """Return the entry that puts `client` in the list, as written there; empty if the client is not in it."""
        return self._find_name(client.name) or self._find_address(client.address)

    def _find_name(self, name: str) -> str:
        if not self._names and not self._patterns:
            return ""
        name = name.lower().removesuffix(".")
        if name == UNKNOWN:
            return ""
        for key in (name, *data_set.parents(name)):
            if (found := self._look_up(key)) is not None:
                return found
        return ""

    def _find_address(self, address: Address | None) -> str:
        if address is None:
            return ""
        number = int(address)
        for bits, networks in self._networks[address.version].items():
            found = networks.get(number if bits == _EXACT else number >> (address.max_prefixlen - bits))
            if found is not None:
                rank, text = found
                return text if rank % 2 else ""
        return (self._patterns and self._look_up(str(address))) or ""

    def _look_up(self, text: str) -> str | None:
        """Return the entry for exactly this text: empty if it is negated, None if there is none."""
        exact = self._names.get(text)
        if exact is not None and not exact[0]:
            return ""
        found = [(included, entry) for pattern, included, entry in self._patterns if pattern.search(text)]
        if not all(included for included, _ in found):
            return ""
        if exact is not None:
            return exact[1]
        return found[0][1] if found else None

    def _add(self, data: DataSet, entry: DataSetEntry) -> list[Problem]:
        text = entry.key.removeprefix("!")
        included = text == entry.key
        bracket = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](/.*)?", text)
        plain = bracket[1] + (bracket[2] or "") if bracket else text
        try:
            network = ip_network(plain, strict=False)
        except ValueError:
            return self._add_name(data, entry, text, included)
        bits = network.prefixlen if "/" in plain else _EXACT
        self._add_network(network, bits, 2 * bool(bracket) + included, entry.key)
        if bits != _EXACT and not _is_exact(plain, network):
            what = f"{entry.key} counts as {network} here, but OpenDKIM never matches it; write {network}"
            return [data.problem(entry, what, warning=True)]
        return []

    def _add_network(self, network: Network, bits: int, rank: int, text: str) -> None:
        # rank: !x, x, ![x], [x], the order in which OpenDKIM looks them up
        address = int(network.network_address)
        if network.version == 6 and (mapped := IPv6Network(network).network_address.ipv4_mapped) is not None:
            # a client's address is never IPv4-mapped
            address, bits = int(mapped), bits if bits == _EXACT else max(bits - 96, 0)
            table, size = self._networks[4], 32
        else:
            table, size = self._networks[network.version], network.max_prefixlen
        key = address if bits == _EXACT else address >> (size - bits)
        table.setdefault(bits, {}).setdefault(key, (rank, text))
        table[bits][key] = min(table[bits][key], (rank, text))

    def _add_name(self, data: DataSet, entry: DataSetEntry, text: str, included: bool) -> list[Problem]:
        if data.kind == "refile" and not data_set.is_literal(text):
            try:
                self._patterns.append((data_set.pattern(text), included, entry.key))
            except ValueError as error:
                return [data.problem(entry, str(error))]
            if entry.key.startswith("*"):
                what = f"{entry.key} matches here, but OpenDKIM takes it as negated; .domain in a file: list is clearer"
                return [data.problem(entry, what, warning=True)]
            return []
        name = text.lower().removesuffix(".")
        if not _NAME.fullmatch(name) or re.fullmatch(r"[\d.]+", name):
            what = (
                f"{entry.key} matches nothing; allowed are host names, .domain, addresses and networks, with ! for not"
            )
            return [data.problem(entry, what, warning=True)]
        if self._names.get(name, (True, ""))[0]:
            self._names[name] = (included, entry.key)
        return []

    def _sort(self) -> None:
        """Put narrow networks first."""
        for version, table in self._networks.items():
            self._networks[version] = dict(sorted(table.items(), reverse=True))


def _is_exact(text: str, network: Network) -> bool:
    """Return whether OpenDKIM, which compares text, can find this entry: no host bits, the prefix length in bits."""
    address, _, bits = text.partition("/")
    return ip_address(address) == network.network_address and bits == str(network.prefixlen)
