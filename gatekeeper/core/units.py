# SPDX-License-Identifier: GPL-3.0-or-later
"""Quantities and networks as people write them in a configuration: `"10m"`, `"1d"`, `"192.0.2.0/24"`.

Postfix's time suffixes (postconf(5): s m h d w) and `ms`; a number without one is seconds.
"""

import math
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", re.ASCII)


def seconds(value: Any) -> float:
    """The seconds that `"10m"`, `"1.5h"`, `90` or `0.5` stand for. Raises ValueError with what is allowed."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())) and match[2] in _SECONDS:
        return float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError(
        f'{value!r} is no duration; allowed: a number of seconds, or "500ms", "90s", "10m", "12h", "1d", "1w"'
    )


def _positive(value: float) -> float:
    if not value:
        raise ValueError("must be longer than nothing")
    return value


def duration_text(value: float) -> str:
    """`value` seconds in the largest unit that keeps it whole: `10m`, `36h`, `0.25s`."""
    for unit in ("w", "d", "h", "m"):
        if value and value % _SECONDS[unit] == 0:
            return f"{value / _SECONDS[unit]:.0f}{unit}"
    return f"{value:.12g}s"


class HostBits(ValueError):
    """An address with a prefix that is too short for it: `192.0.2.5/24`."""


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """The network, or the single address, in `text`; in brackets as Postfix writes them. Raises ValueError with what is
    allowed, HostBits with what was probably meant.
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
        raise ValueError(f"{text!r} is no network; allowed: {allowed}") from None
    raise HostBits(f"{text!r} has bits set behind the prefix; did you mean {str(meant)!r}?")


def plain_network(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """IPv4 for what Postfix writes as [::ffff:127.0.0.0]/104: the IPv4 clients that a v6 socket sees."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return ip_network((mapped, network.prefixlen - 96)) if mapped and network.prefixlen >= 96 else network


Duration = Annotated[float, BeforeValidator(seconds)]
"""Seconds, 0 or more."""
PositiveDuration = Annotated[float, AfterValidator(_positive), BeforeValidator(seconds)]
"""Seconds, more than 0."""
