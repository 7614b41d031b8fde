# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that hold a good part of the world: nobody owns them, so a list of who is trusted hardly means them.

Wide is what is larger than a /8 of IPv4, or than a /16 of the IPv6 that is routed (2000::/3): no organization has as
much. Networks that are wide only together, such as 0.0.0.0/1 and 128.0.0.0/1, are found too. Private networks
(fc00::/7, fe80::/10) are none of the world.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import TypeVar

Network = IPv4Network | IPv6Network
T = TypeVar("T")

_ROUTED = IPv6Network("2000::/3")
_LONGEST = {4: 7, 6: 15}
"""Bits of the prefix, by IP version."""


def is_wide(network: Network) -> bool:
    """Return whether `network` holds more than one organization can have."""
    if isinstance(network, IPv6Network) and not network.overlaps(_ROUTED):
        return False
    return network.prefixlen <= _LONGEST[network.version]


def find_wide(networks: Iterable[tuple[Network, T]]) -> list[tuple[Network, T]]:
    """Return each wide network that some of `networks` make together, with what came with the widest of these."""
    found: list[tuple[Network, T]] = []
    every = list(networks)
    for version in (4, 6):
        these = [one for one, _ in every if one.version == version]
        if sum(2.0**-one.prefixlen for one in these) < 2.0 ** -_LONGEST[version]:
            continue  # not even if they do not overlap
        merged = collapse_addresses(these)  # type: ignore[type-var]  # all are of one version
        for whole in filter(is_wide, merged):
            parts = (both for both in every if both[0].version == version and both[0].subnet_of(whole))  # type: ignore[arg-type]
            found.append((whole, min(parts, key=lambda both: both[0].prefixlen)[1]))
    return found


def extent(network: Network) -> str:
    """Say how much of the world a wide network is."""
    share = 2 ** (network.prefixlen if network.version == 4 else max(0, network.prefixlen - _ROUTED.prefixlen))
    return f"every host of IPv{network.version}" if share == 1 else f"1/{share} of all hosts of IPv{network.version}"
