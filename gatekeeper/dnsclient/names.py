# SPDX-License-Identifier: GPL-3.0-or-later
"""Convert domain names from a stranger's text to the names that DNS queries carry, and back.

Text is taken literally: a backslash is a byte, not an escape; bytes that were not UTF-8 are surrogates
(surrogateescape) and become the original bytes; U-labels become A-labels (UTS 46 and IDNA 2008, then IDNA 2003 for
names that only it allows, such as emoji). A name is returned in the presentation form of RFC 4343, so that it is always
printable ASCII, in lower case, without a final dot; the root is the empty string.
"""

import re

import dns.exception
import dns.name

_DOTS = re.compile("[.\u3002\uff0e\uff61]")
"""The characters that UTS 46 treats as a dot."""
_A_LABEL = re.compile(r"(?<![a-z0-9_-])xn--[a-z0-9-]+", re.IGNORECASE | re.ASCII)


def to_name(text: str) -> dns.name.Name | None:
    """Return the absolute name that `text` stands for, or None if it can never be in the DNS.

    That is the case for an empty label (so also the empty text, and the root), a label over 63 bytes, or a name over
    255.
    """
    text = text.removesuffix(".")
    try:
        if text.isascii():
            labels = text.lower().encode("ascii").split(b".")
        else:
            labels = [_to_label(label) for label in _DOTS.split(text)]
        if b"" in labels:
            return None
        return dns.name.Name([*labels, b""])
    except (dns.exception.DNSException, UnicodeError):
        return None


def to_text(name: dns.name.Name) -> str:
    """Return `name` in presentation form, printable ASCII in lower case, without the final dot; "" for the root."""
    return "" if name == dns.name.root else name.to_text(omit_final_dot=True).lower()


def with_u_labels(text: str) -> str:
    """Return `text` with U-labels in place of the A-labels in it, as people write names; what is none stays."""
    return _A_LABEL.sub(_decoded, text)


def _decoded(match: re.Match[str]) -> str:
    for codec in (dns.name.IDNA_2008_Practical, dns.name.IDNA_2003):
        try:
            return codec.decode(match[0].lower().encode("ascii"))
        except (dns.exception.DNSException, UnicodeError):
            continue
    return match[0]


def _to_label(label: str) -> bytes:
    if label.isascii():
        return label.lower().encode("ascii")
    for codec in (dns.name.IDNA_2008_Practical, dns.name.IDNA_2003):
        try:
            return codec.encode(label).lower()
        except (dns.exception.DNSException, UnicodeError):
            continue
    return label.encode("utf-8", "surrogateescape")
