# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients grouped by network, because large senders retry from other addresses of the same network."""

from functools import lru_cache
from ipaddress import ip_network
from typing import Annotated

from pydantic import Field, StrictInt

from gatekeeper.core.request import Address

Prefix4 = Annotated[StrictInt, Field(ge=8, le=32)]
Prefix6 = Annotated[StrictInt, Field(ge=16, le=128)]


@lru_cache(maxsize=4096)  # limits and greylisting call it several times a request, and a network takes 20 µs to make
def network_of(address: Address, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return the network of `address` as text; a single address is without its `/32` or `/128`."""
    length = ipv4_prefix if address.version == 4 else ipv6_prefix
    if length == address.max_prefixlen:
        return str(address)
    return str(ip_network((address, length), strict=False))
