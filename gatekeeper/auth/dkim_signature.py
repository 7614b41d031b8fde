# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing one DKIM-Signature field, strictly (RFC 6376 sections 3.5 and 6.1.1, RFC 8301, RFC 8616).

Knows neither keys nor the message: a field becomes a Signature, which says what is wrong with it, if anything.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gatekeeper.auth.domains import is_within, normal_domain
from gatekeeper.auth.tags import parse_base64, parse_list, parse_tags
from gatekeeper.core.message import Header
from gatekeeper.core.verdict import printable

_NUMBER = re.compile(rb"[0-9]{1,15}\Z")
_LENGTH = re.compile(rb"[0-9]{1,76}\Z")
_FIELD_NAME = re.compile(rb"[!-9<-~]+\Z")
_QUOTED = re.compile(rb"=([0-9A-F]{2})")
_CANONICALIZATION = {b"simple": False, b"relaxed": True}
_ALGORITHMS = (b"rsa-sha256", b"ed25519-sha256")
_REQUIRED = (b"v", b"a", b"b", b"bh", b"d", b"h", b"s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The tags of one signature.

    With a `problem` it is not valid, and only the first five attributes may be set. `b` and `body_hash` are decoded,
    `names` is `h=` in lower case, `length` is `l=` in bytes; times are seconds since the epoch.
    """

    domain: str = ""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    b: bytes = b""
    problem: str = ""
    identity_domain: str = ""
    body_hash: bytes = b""
    relaxed_header: bool = False
    relaxed_body: bool = False
    names: tuple[bytes, ...] = ()
    length: int | None = None
    signed_at: int | None = None
    expires_at: int | None = None


def parse_signature(field: Header) -> Signature:
    """Parse the signature in `field`. Never raises."""
    try:
        tags = parse_tags(field.value)
    except ValueError as error:
        return Signature(problem=str(error))
    partial = _partial(tags)
    try:
        return _complete(partial, tags)
    except ValueError as error:
        return replace(partial, problem=str(error))


def empty_b(value: bytes) -> bytes:
    """Return a field's value with an empty `b=`, as it was when it was signed (RFC 6376 section 3.7)."""
    parts = value.split(b";")
    for index, part in enumerate(parts):
        name, equals, _ = part.partition(b"=")
        if name.strip() == b"b" and equals:
            parts[index] = name + equals
    return b";".join(parts)


def _complete(partial: Signature, tags: dict[bytes, bytes]) -> Signature:
    """Return `partial` with all other tags. Raises ValueError with the problem."""
    parse_domain_tags(tags, _REQUIRED)
    if tags[b"v"] != b"1":
        raise ValueError("the version (v=) is not 1")
    if b"dns/txt" not in parse_list(tags.get(b"q", b"dns/txt")):
        raise ValueError("the key is not in the DNS (q=)")
    identity, identity_domain = _identity(tags.get(b"i"), partial.domain)
    signature = parse_signed_parts(partial, tags, identity, identity_domain)
    if b"" in signature.names:  # only ARC sealers write such lists
        raise ValueError("the list of signed fields (h=) is malformed")
    if b"from" not in signature.names:
        raise ValueError("From is not signed (h=)")
    return signature


def parse_domain_tags(tags: dict[bytes, bytes], required: Iterable[bytes]) -> Signature:
    """Return who signed with which algorithm, for DKIM and ARC.

    Raises ValueError if one of these tags is not valid or one of the `required` tags is missing.
    """
    missing = [name.decode() for name in required if not tags.get(name)]
    if missing:
        raise ValueError(f"the tag {missing[0]}= is missing or empty")
    found = _partial(tags)
    if tags[b"a"] == b"rsa-sha1":
        raise ValueError("rsa-sha1 is no longer valid (RFC 8301)")
    if tags[b"a"] not in _ALGORITHMS:
        raise ValueError("the algorithm (a=) is not supported here")
    if "." not in found.domain:
        raise ValueError("the domain (d=) is malformed")
    if not found.selector:
        raise ValueError("the selector (s=) is malformed")
    return found


def parse_signed_parts(
    partial: Signature, tags: dict[bytes, bytes], identity: str = "", identity_domain: str = ""
) -> Signature:
    """Return `partial` with what was signed, for which identity and when; for DKIM and ARC. Raises ValueError."""
    relaxed_header, relaxed_body = _canonicalization(tags.get(b"c", b"simple/simple"))
    signed_at, expires_at = _number(tags, b"t"), _number(tags, b"x")
    if signed_at is not None and expires_at is not None and expires_at <= signed_at:
        raise ValueError("it expires (x=) before it was made (t=)")
    return Signature(
        domain=partial.domain,
        selector=partial.selector,
        algorithm=partial.algorithm,
        identity=identity,
        identity_domain=identity_domain,
        b=_base64(tags, b"b"),
        body_hash=_base64(tags, b"bh"),
        relaxed_header=relaxed_header,
        relaxed_body=relaxed_body,
        names=_names(tags[b"h"]),
        length=_number(tags, b"l", _LENGTH),
        signed_at=signed_at,
        expires_at=expires_at,
    )


def _partial(tags: dict[bytes, bytes]) -> Signature:
    return Signature(
        domain=normal_domain(_text(tags.get(b"d", b""))),
        selector=normal_domain(_text(tags.get(b"s", b""))),
        algorithm=printable(_text(tags.get(b"a", b"")), 20),
    )


def _identity(value: bytes | None, domain: str) -> tuple[str, str]:
    """Return the `i=` tag made printable, and its domain, which must be `d=` or lie below it. Raises ValueError."""
    if value is None:
        return "@" + domain, domain
    # dkim-quoted-printable (RFC 6376 section 2.11), where white space means nothing
    plain = _QUOTED.sub(lambda match: bytes([int(match[1], 16)]), value.translate(None, b" \t\r\n"))
    local, at, host = plain.rpartition(b"@")
    name = normal_domain(_text(host))
    if not at or not name or not is_within(name, domain):
        raise ValueError("the identity (i=) does not lie within the domain (d=)")
    return f"{printable(_text(local), 64)}@{name}", name


def _canonicalization(value: bytes) -> tuple[bool, bool]:
    header, _, body = value.partition(b"/")
    try:
        return _CANONICALIZATION[header], _CANONICALIZATION[body or b"simple"]
    except KeyError:
        raise ValueError("the canonicalization (c=) is not known") from None


def _names(value: bytes) -> tuple[bytes, ...]:
    names = parse_list(value)
    if not all(not name or _FIELD_NAME.match(name) for name in names):
        raise ValueError("the list of signed fields (h=) is malformed")
    return names


def _number(tags: dict[bytes, bytes], name: bytes, pattern: re.Pattern[bytes] = _NUMBER) -> int | None:
    if name not in tags:
        return None
    if not pattern.match(tags[name]):
        raise ValueError(f"the tag {name.decode()}= is not a number")
    return int(tags[name])


def _base64(tags: dict[bytes, bytes], name: bytes) -> bytes:
    try:
        return parse_base64(tags[name])
    except ValueError:
        raise ValueError(f"the tag {name.decode()}= is not base64") from None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
