# SPDX-License-Identifier: GPL-3.0-or-later
"""Host lists with the semantics of OpenDKIM's InternalHosts, ExternalIgnoreList and PeerList.

The name is looked up as it is, then by its parent domains with a leading dot; independently the address is looked up as
it is, then by its networks from the narrowest to the widest. Each look-up tries `!entry` before `entry`, and the first
entry found decides. A host is in the list if its name *or* its address is, so `!name` does not veto an address. In a
refile the entries are patterns, and one that matches the `!` too (`*1`) negates, whatever was meant.

Deliberate deviations from OpenDKIM, each with a warning: what is a network to people counts as one though OpenDKIM
never matches it (host bits set as in `192.168.0.1/24`, a netmask, brackets in a refile, an IPv6 address that is not in
its shortest form), and so does `*.example.com` in a refile, which OpenDKIM takes as negated. And without a warning,
because it trusts fewer: `10.0.0.*` is not 10.0.0.0/8, which OpenDKIM compares with it too.

The rule: a deviation never widens who is trusted beyond what one organization can own. Such a network, `*.com`, and
every pattern that could match anybody are left as OpenDKIM has them, or refused; and what opens the list to a good
part of the world, in OpenDKIM too, is said to.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from gatekeeper.auth.domains import configured_domain
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import UNKNOWN, Address, Client
from gatekeeper.core.units import unmap_network
from gatekeeper.core.wide_networks import extent, find_wide, is_wide
from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet, DataSetEntry

Network = IPv4Network | IPv6Network
_ADDRESS = re.compile(r"[\d.,/*-]+")
"""Something that was meant for addresses: no host name is without a letter."""
_EXACT = 999  # an address without /bits is tried before all networks, even its own /32
_OPENED = {
    "internal_hosts": "internal, and their mail from our domains is signed",
    "peers": "peers, and their mail is neither signed nor judged",
    "trusted_forwarders": "forwarders, and their mail passes though DMARC fails",
}
"""What becomes of the hosts in a list, by its option; of others nobody is trusted by it."""

# Hosts that have nothing in common, by the domain or network of whoever owns them: what matches them all matches
# anybody, and what matches those of two owners is no list of one's own hosts.
_HOSTS = ("mail", "mx1", "smtp-out", "www", "a.b", "host-7", "192-0-2-7.dyn")
_DOMAINS = ("acme.com", "contoso.com", "initech.net", "globex.org", "umbrella.co.uk", "hooli.de", "zeta.info", "x1.io")
_NAMES = {f"{host}.{domain}": domain for domain in _DOMAINS for host in _HOSTS}
_FIRST = (1, 5, 9, 23, 34, 45, 52, 64, 77, 80, 91, 104, 116, 128, 140, 151, 162, 178, 185, 194, 200, 213)
_IPV4 = {f"{first}.{last}.{last}.{last}": f"{first}.0.0.0/8" for first in _FIRST for last in (2, 77, 180)}
_IPV6 = {text: text for text in ("2001:db8::25", "2a00:1450::5", "2606:4700::1111", "fd00::1")}
_SAMPLES = (_NAMES, _IPV4, _IPV6)


class HostList:
    """Host names and addresses, some of them negated. An empty list contains no host."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[bool, str]] = {}
        # with the `!` that may stand before it; and the entry as written
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        # by IP version and bits: network address -> rank (even: negated) and the entry as written
        self._networks: dict[int, dict[int, dict[int, tuple[int, str]]]] = {4: {}, 6: {}}
        self._probe = lru_cache(maxsize=1024)(self._probe_address)

    @classmethod
    def read(
        cls, spec: str | Sequence[str], where: str = "internal_hosts", *, base: Path = Path()
    ) -> "tuple[HostList, list[Problem]]":
        """Read the list. `where` is the option's name, `base` the directory where relative paths start."""
        data, problems = data_set.read(spec, where, base)
        hosts = cls()
        reader = _Reader(hosts, data, _OPENED.get(where.rpartition(".")[2], ""))
        for entry in data.entries:
            reader.add(entry)
        reader.finish()
        return hosts, problems + reader.problems

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
            exact = self._names.get(key)
            if exact is not None and not exact[0]:
                return ""
            found = self._match(key, self._patterns) if self._patterns else None
            if found == "":
                return ""
            if exact is not None:
                return exact[1]
            if found:
                return found
        return ""

    def _find_address(self, address: Address | None) -> str:
        if address is None:
            return ""
        return self._probe(address) if self._patterns else self._find_network(address)

    def _find_network(self, address: Address) -> str:
        number = int(address)
        for bits, networks in self._networks[address.version].items():
            found = networks.get(number if bits == _EXACT else number >> (address.max_prefixlen - bits))
            if found is not None:
                rank, text = found
                return text if rank % 2 else ""
        return ""

    def _probe_address(self, address: Address) -> str:
        """Find an address as OpenDKIM does, each text in turn, because a pattern may match any of them.

        A pattern puts a host into the list by its network only if it is one of networks itself, with a `/`: to OpenDKIM
        10.0.0.* is 10.0.0.0/8 too.
        """
        of_networks = [one for one in self._patterns if "/" in one[1]]
        lengths = range(address.max_prefixlen, -1, -1) if of_networks or self._find_network(address) else ()
        for bits in (_EXACT, *lengths):
            network = ip_network(address) if bits == _EXACT else ip_network((address, bits), strict=False)
            suffix = "" if bits == _EXACT else f"/{bits}"
            key = int(address) if bits == _EXACT else int(address) >> (address.max_prefixlen - bits)
            rank, text = self._networks[address.version].get(bits, {}).get(key, (-1, ""))
            base = network.network_address
            for step, probe in ((0, f"{base}{suffix}"), (2, f"[{base}]{suffix}")):
                found = self._match(probe, self._patterns if bits == _EXACT else of_networks)
                if rank == step or found == "":
                    return ""
                if rank == step + 1 or found:
                    return text if rank == step + 1 else str(found)
        return ""

    def _match(self, text: str, positive: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
        """Return which of `positive` matches `text`: empty if any pattern at all negates it, None if none does."""
        if any(data_set.matches(pattern, f"!{text}") for pattern, _ in self._patterns):
            return ""
        return next((entry for pattern, entry in positive if data_set.matches(pattern, text)), None)


class _Reader:
    """Fills a list, entry by entry. `opened` says what becomes of its hosts; empty if nobody is trusted by it."""

    def __init__(self, hosts: HostList, data: DataSet, opened: str) -> None:
        self.problems: list[Problem] = []
        self._hosts = hosts
        self._data = data
        self._opened = opened
        self._included: list[tuple[Network, DataSetEntry]] = []
        self._negated: set[Network] = set()

    def add(self, entry: DataSetEntry) -> None:
        """Add what one line has."""
        if entry.value:
            self._warn(entry, f"only {entry.key} counts, and {entry.value} is ignored; write each on a line of its own")
        text = entry.key.removeprefix("!")
        bracket = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](/.*)?", text)
        plain = bracket[1] + (bracket[2] or "") if bracket else text
        try:
            network = ip_network(plain, strict=False)
        except ValueError:
            self._add_name(entry, text)
        else:
            self._add_network(entry, network, plain, bracketed=bracket is not None)

    def finish(self) -> None:
        """Put narrow networks first, and say what is wide."""
        for version, table in self._hosts._networks.items():
            self._hosts._networks[version] = dict(sorted(table.items(), reverse=True))
        if not self._opened:
            return
        for network, entry in find_wide(one for one in self._included if one[0] not in self._negated):
            with_others = "" if _as_network(entry.key) == network else f" with other lines makes {network}, which"
            self._open(entry, f"{entry.key}{with_others} is {extent(network)}", "name your networks")

    def _add_network(self, entry: DataSetEntry, network: Network, plain: str, *, bracketed: bool) -> None:
        included = not entry.key.startswith("!")
        in_pattern = bracketed and self._data.kind == "refile"
        why = ""
        if in_pattern:
            why = "OpenDKIM takes brackets in a refile for a set of characters"
        elif not _is_exact(plain, network):
            why = "OpenDKIM never matches it"
        meant = unmap_network(network)
        if included and why and is_wide(meant):
            self._refuse(entry, f"{entry.key} is {extent(meant)}, and {why}")
            return
        shown = str(meant if "/" in plain else meant.network_address)
        if why and included:
            self._open(entry, f"{entry.key} counts as {shown} here, but {why}", f"write {shown}")
        elif why:
            self._warn(entry, f"{entry.key} counts as !{shown} here, but {why}; write !{shown}")
        (self._included.append((meant, entry)) if included else self._negated.add(meant))
        # rank: !x, x, ![x], [x], the order in which OpenDKIM looks them up
        rank = 2 * bracketed + included
        address = int(meant.network_address)
        bits = meant.prefixlen if "/" in plain else _EXACT
        key = address if bits == _EXACT else address >> (meant.max_prefixlen - bits)
        table = self._hosts._networks[meant.version].setdefault(bits, {})
        table[key] = min(table.get(key, (rank, entry.key)), (rank, entry.key))

    def _add_name(self, entry: DataSetEntry, text: str) -> None:
        if self._data.kind == "refile" and not data_set.is_literal(text):
            self._add_pattern(entry)
            return
        name = configured_domain(text)
        if not name or _ADDRESS.fullmatch(text):
            allowed = "allowed are host names, .domain, addresses and networks, with ! for not"
            self._warn(entry, f"{entry.key} matches nothing; {_hint(text)}{allowed}")
            return
        self._put_name(entry, name)
        if entry.key.startswith("!"):
            return
        if self._opened and name.startswith(".") and "." not in name[1:]:
            self._open(entry, f"{entry.key} is every host below {name[1:]}, a top-level domain", "name the hosts")
        elif name != text.lower():
            what = f"{entry.key} counts as {name} here, but OpenDKIM never matches it as it is written"
            self._open(entry, what, f"write {name}")

    def _put_name(self, entry: DataSetEntry, name: str) -> None:
        if self._hosts._names.get(name, (True, ""))[0]:
            self._hosts._names[name] = (not entry.key.startswith("!"), entry.key)

    def _add_pattern(self, entry: DataSetEntry) -> None:
        meant = re.fullmatch(r"\*(\.[^*]+)", entry.key)
        below = configured_domain(meant[1]) if meant and data_set.is_literal(meant[1]) else ""
        if "." in below[1:]:
            self._put_name(entry, below)
            what = f"{entry.key} is every host below {below[1:]} here, but OpenDKIM takes it as negated"
            self._open(entry, what, f"{below} in a file: list says it clearly")
            return
        try:
            pattern = data_set.pattern(entry.key)
        except ValueError as error:
            self.problems.append(self._data.problem(entry, str(error)))
            return
        if not entry.key.startswith("!"):
            if self._is_for_anybody(entry, pattern):
                return
            if entry.key.startswith("*") or pattern.search("!"):
                what = f"{entry.key} takes hosts out of the list, as in OpenDKIM: it matches the ! of a negation too"
                self._warn(entry, f"{what}; write .domain, or networks, in a file: list")
        self._hosts._patterns.append((pattern, entry.key))

    def _is_for_anybody(self, entry: DataSetEntry, pattern: re.Pattern[str]) -> bool:
        """Refuse a pattern that matches all the world, or takes all the world out; say what others open."""
        alone = HostList()
        alone._patterns.append((pattern, entry.key))
        found = [
            [name for name in _NAMES if alone._find_name(name)],
            *([text for text in hosts if alone._find_address(ip_address(text))] for hosts in (_IPV4, _IPV6)),
        ]
        names, *addresses = (len(some) == len(hosts) for some, hosts in zip(found, _SAMPLES, strict=True))
        if names and any(addresses):
            self._refuse(entry, f"{entry.key} matches any name and any address")
            return True
        if all(pattern.search(f"!{text}") for text in (*_NAMES, *_IPV4)):
            why = "OpenDKIM takes it as negated, so that no host is in the list"
            self._refuse(entry, f"{entry.key} matches any name and any address, and {why}")
            return True
        for some, hosts in zip(found, _SAMPLES, strict=True):
            if len(owners := sorted({hosts[text] for text in some})) > 1:
                what = f"hosts that have nothing in common, such as those of {' and '.join(owners[:2])}"
                self._open(entry, f"{entry.key} matches {what}", "name the hosts or networks")
                break
        return False

    def _warn(self, entry: DataSetEntry, what: str) -> None:
        self.problems.append(self._data.problem(entry, what, warning=True))

    def _open(self, entry: DataSetEntry, what: str, advice: str) -> None:
        """Say what a line opens, if it opens anything."""
        if not self._opened:
            self._warn(entry, f"{what}; {advice}")
            return
        self.problems.append(self._data.problem(entry, f"{what}: these hosts are {self._opened}; {advice}").opening())

    def _refuse(self, entry: DataSetEntry, what: str) -> None:
        """Leave out a line by which all the world would be trusted: a mistake, if anybody is trusted by the list."""
        if self._opened:
            what = f"{what}: everybody would be {self._opened}"
        self.problems.append(self._data.problem(entry, f"{what}; remove it", warning=not self._opened))


def _hint(text: str) -> str:
    if "," in text or ";" in text:
        return "write each on a line of its own; "
    if _ADDRESS.fullmatch(text):
        return "write networks, such as 192.0.2.0/24, for a range; "
    return f"write {text[1:]} for what is below it; " if text.startswith("*.") else ""


def _is_exact(text: str, network: Network) -> bool:
    """Return whether OpenDKIM, which compares text, can find this entry: no host bits, the prefix length in bits."""
    if network.version == 6 and network.network_address.ipv4_mapped is not None:
        return "/" not in text  # nobody's address is written so, but whose it is is clear
    address, slash, bits = text.lower().partition("/")
    return address == str(network.network_address) and (not slash or bits == str(network.prefixlen))


def _as_network(text: str) -> Network | None:
    try:
        return unmap_network(ip_network(text.replace("[", "").replace("]", ""), strict=False))
    except ValueError:
        return None
