# SPDX-License-Identifier: GPL-3.0-or-later
"""The syntax of host names, addresses and address literals as Postfix checks it.

That is valid_hostname(3) and valid_mailhost_addr(3), not the RFCs and not Python's ipaddress: a session must get the
answer that Postfix would give. So `_` is a letter, `01.2.3.4` is an address, and `0.1.2.3` is not. A test compares with
Postfix's own library.
"""

import re
from functools import lru_cache

_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOSTNAME = re.compile(rf"(?=[0-9.]*[^0-9.]){_LABEL}(?:\.{_LABEL})*", re.ASCII)
_IPV4 = re.compile(r"[0-9]+(?:\.[0-9]+){3}", re.ASCII)
_HEX = re.compile("[0-9A-Fa-f]{1,4}", re.ASCII)


def is_hostname(name: str) -> bool:
    """Return True if `name` is a host name of at most 255 characters that is not all numeric."""
    return len(name) <= 255 and _is_hostname(name)


@lru_cache(maxsize=8192)  # ten checks of the default list ask about the same three or four names
def _is_hostname(name: str) -> bool:
    return _HOSTNAME.fullmatch(name) is not None


def is_address(text: str) -> bool:
    """Return True if `text` is a bare IPv4 or IPv6 address."""
    return _is_ipv6(text) if ":" in text else _is_ipv4(text)


def is_literal(text: str) -> bool:
    """Return True if `text` is what the brackets of an address literal enclose (RFC 5321 section 4.1.3)."""
    if text[:5].lower() == "ipv6:":
        return _is_ipv6(text[5:])
    return _is_ipv4(text)


def without_final_dot(name: str) -> str:
    """Return `name` without its trailing dot; a name that ends in two dots keeps both."""
    return name[:-1] if len(name) > 1 and name[-1] == "." and name[-2] != "." else name


def _is_ipv4(text: str) -> bool:
    if len(text) > 255 or not _IPV4.fullmatch(text):
        return False
    octets = [int(octet) for octet in text.split(".")]
    return all(octet <= 255 for octet in octets) and (octets[0] > 0 or not any(octets))


def _is_ipv6(text: str) -> bool:
    """Return True for an IPv6 address as Postfix recognises it.

    That is fields of one to four digits between colons, at most seven colons, at most one empty field, IPv4 at the end.
    Like Postfix, and unlike the standard, this requires no exact number of fields.
    """
    *fields, last = text.split(":")
    if not 2 <= len(fields) <= 7 or text.count("::") > 1 or ":::" in text:
        return False
    if "." in last:
        if len(fields) > 6 or not _is_ipv4(last):
            return False
    else:
        fields.append(last)
    if text.startswith(":") and not text.startswith("::"):
        return False
    if text.endswith(":") and not text.endswith("::"):
        return False
    return all(_HEX.fullmatch(field) for field in fields if field)
