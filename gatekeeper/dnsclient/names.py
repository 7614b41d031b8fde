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
_LENGTHS = [bytes((length,)) for length in range(64)]
_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
"""The bytes that host names consist of, and the dot between labels."""


def to_name(text: str) -> dns.name.Name | None:
    """Return the absolute name that `text` stands for, or None if it can never be in the DNS.

    That is the case for an empty label (so also the empty text, and the root), a label over 63 bytes, or a name over
    255.
    """
    labels = _to_labels(text)
    return None if labels is None else dns.name.Name([*labels, b""])


def to_wire(text: str) -> bytes | None:
    """Return what `to_name` does as it stands in a message: each label behind its length, up to the root's."""
    labels = _to_labels(text)
    return None if labels is None else b"".join([_LENGTHS[len(label)] + label for label in labels]).lower() + b"\0"


def wire_to_text(wire: bytes) -> str:
    """Return what `to_text` does of the name whose labels, in lower case, are `wire`, without the root.

    If it is not plain, in dnspython's way.
    """
    text, at, labels = bytearray(wire), 0, 0
    while at < len(text):
        length = text[at]
        text[at] = ord(".")
        at += length + 1
        labels += 1
    if text.count(b".") != labels or text.translate(None, _PLAIN):
        return to_text(dns.name.from_wire(wire + b"\0", 0)[0])
    return text[1:].decode("ascii")


def to_text(name: dns.name.Name) -> str:
    """Return `name` in presentation form, printable ASCII in lower case, without the final dot; "" for the root."""
    return "" if name == dns.name.root else name.to_text(omit_final_dot=True).lower()


def _to_labels(text: str) -> list[bytes] | None:
    text = text.removesuffix(".")
    try:
        if text.isascii():
            labels = text.lower().encode("ascii").split(b".")
        else:
            labels = [_to_label(label) for label in _DOTS.split(text)]
    except UnicodeError:
        return None
    sizes = [len(label) for label in labels]
    return labels if min(sizes) > 0 and max(sizes) < 64 and sum(sizes) + len(sizes) < 255 else None


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
