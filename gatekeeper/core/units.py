# SPDX-License-Identifier: GPL-3.0-or-later
"""Quantities and networks as people write them in a configuration: `"10m"`, `"1d"`, `"192.0.2.0/24"`.

Durations take Postfix's time suffixes (postconf(5): s m h d w) and `ms`; a number without a suffix is in seconds.
"""

import math
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", re.ASCII)


def parse_duration(value: Any) -> float:
    """Return the seconds that `"10m"`, `"1.5h"`, `90` or `0.5` stand for.

    Raises ValueError with what is allowed.
    """
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())) and match[2] in _SECONDS:
        return float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError(
        f'{value!r} is not a valid duration; allowed: a number of seconds, or "500ms", "90s", "10m", "12h", "1d", "1w"'
    )


def _positive(value: float) -> float:
    if not value:
        raise ValueError("must be longer than 0")
    return value


def duration_text(value: float) -> str:
    """Return `value` seconds in the largest unit that keeps it whole: `10m`, `36h`, `0.25s`."""
    for unit in ("w", "d", "h", "m"):
        if value and value % _SECONDS[unit] == 0:
            return f"{value / _SECONDS[unit]:.0f}{unit}"
    return f"{value:.12g}s"


class HostBits(ValueError):
    """A network address has bits set beyond its prefix: `192.0.2.5/24`."""


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Return the network, or the single address, in `text`, with or without Postfix's brackets.

    Raises ValueError with what is allowed, HostBits with what was probably meant.
    """
    bare = text.replace("[", "").replace("]", "")
    try:
        return ip_network(bare)
    except ValueError:
        pass
    try:
        meant = ip_network(bare, strict=False)
    except ValueError:
        allowed = '"192.0.2.0/24", "2001:db8::/32" or a single address'
        raise ValueError(f"{text!r} is not a valid network; allowed: {allowed}") from None
    raise HostBits(f"{text!r} has bits set beyond the prefix; did you mean {str(meant)!r}?")


def unmap_network(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return an IPv4-mapped IPv6 network, `[::ffff:127.0.0.0]/104` in Postfix's notation, as an IPv4 network.

    It stands for the IPv4 clients of an IPv6 socket. Any other network is returned as it is.
    """
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return ip_network((mapped, network.prefixlen - 96)) if mapped and network.prefixlen >= 96 else network


Duration = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds, 0 or more."""
PositiveDuration = Annotated[float, AfterValidator(_positive), BeforeValidator(parse_duration)]
"""Seconds, more than 0."""
