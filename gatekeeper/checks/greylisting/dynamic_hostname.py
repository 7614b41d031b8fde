# SPDX-License-Identifier: GPL-3.0-or-later
"""Recognition of dynamic host names, such as providers give to dial-up clients.

It is a guess, good enough to make a client wait. Two octets of the address in a name are not enough: Amazon SES and
SparkPost name their senders like that.
"""

import re
from functools import lru_cache

from gatekeeper.core.request import Address

_WORDS = re.compile(
    r"(?:^|[-._0-9])(?:[avx]?dsl|broadband|cable|catv|dhcp|dial(?:in|up)?|dip|dyn(?:amic)?(?:ip)?|ftth|gprs|pools?|pppoe?"
    r"|res(?:idential)?|umts|wimax)(?:$|[-._0-9])",
    re.IGNORECASE,
)
_MAX_LENGTH = 255
"""Characters of the longest name that can be in the DNS."""
_NUMBER = re.compile(r"\d+", re.ASCII)


def looks_dynamic(name: str, address: Address) -> bool:
    """Return whether `name` contains the client's address, or a word such as `dhcp` left of its last two labels."""
    return _looks_dynamic(name, address) if len(name) <= _MAX_LENGTH else False


@lru_cache(maxsize=4096)  # called twice a request for each client that may have to wait, and it sends several
def _looks_dynamic(name: str, address: Address) -> bool:
    name = name.lower()
    host = ".".join(name.split(".")[:-2])
    return _WORDS.search(host) is not None or _contains_address(name, address)


def _contains_address(name: str, address: Address) -> bool:
    """Return whether `name` has three octets in a row, forwards or backwards, or the whole address in hexadecimal.

    For IPv6, the last 64 bits are enough.
    """
    if address.version == 6:
        return address.exploded.replace(":", "")[16:] in name.replace("-", "").replace(".", "")
    octets = list(address.packed)
    numbers = [int(number[-3:]) for number in _NUMBER.findall(name) if len(number) <= 12]
    if address.packed.hex() in name or "".join(f"{octet:03}" for octet in octets) in name:
        return True
    return any(
        numbers[at : at + 3] in (order[0:3], order[1:4])
        for at in range(len(numbers) - 2)
        for order in (octets, octets[::-1])
    )
