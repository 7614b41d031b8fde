# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that nobody owns, alone or together."""

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.wide_networks import extent, find_wide, is_wide


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("0.0.0.0/0", "every host of IPv4"),
        ("128.0.0.0/1", "1/2 of all hosts of IPv4"),
        ("8.0.0.0/7", "1/128 of all hosts of IPv4"),
        ("::/0", "every host of IPv6"),
        ("2000::/3", "every host of IPv6"),
        ("2000::/4", "1/2 of all hosts of IPv6"),
    ],
)
def test_more_than_an_organization_has_is_wide(network: str, said: str) -> None:
    assert (True, said) == (is_wide(ip_network(network)), extent(ip_network(network)))


@pytest.mark.parametrize("network", ["10.0.0.0/8", "17.0.0.0/8", "127.0.0.0/8", "fc00::/7", "fe80::/10", "2001::/16"])
def test_what_an_organization_or_everybody_has_for_themselves_is_not(network: str) -> None:
    assert not is_wide(ip_network(network))


@pytest.mark.parametrize("length", [1, 2, 8, 12])
def test_parts_that_make_the_whole_are_found_with_the_first(length: int) -> None:
    parts = [(part, number) for number, part in enumerate(IPv4Network("0.0.0.0/0").subnets(new_prefix=length))]
    assert [(ip_network("0.0.0.0/0"), 0)] == find_wide(parts)
    assert [(ip_network("0.0.0.0/0"), len(parts) - 1)] == find_wide(parts[::-1])


def test_the_two_versions_are_apart() -> None:
    found = find_wide([(ip_network("::/0"), "six"), (ip_network("0.0.0.0/1"), "four"), (ip_network("10.0.0.1"), "one")])
    assert [(ip_network("0.0.0.0/1"), "four"), (ip_network("::/0"), "six")] == found


NETWORK = st.integers(0, 32).flatmap(
    lambda length: st.integers(0, 2**length - 1).map(lambda bits: IPv4Network((bits << (32 - length), length)))
) | st.integers(0, 128).flatmap(
    lambda length: st.integers(0, 2**length - 1).map(lambda bits: IPv6Network((bits << (128 - length), length)))
)


@given(st.lists(NETWORK, max_size=8))
def test_every_wide_network_is_within_one_that_is_found(networks: list[IPv4Network | IPv6Network]) -> None:
    found = find_wide((network, network) for network in networks)
    for network in filter(is_wide, networks):
        assert any(whole.version == network.version and network.subnet_of(whole) for whole, _ in found)  # type: ignore[arg-type]
    assert all(is_wide(whole) and one in networks for whole, one in found)
