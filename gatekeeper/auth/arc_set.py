# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing the ARC sets of a message (RFC 8617 section 4): header fields become a chain, or the reason why they do not.

Knows neither keys nor digests. A set is one each of ARC-Authentication-Results, ARC-Message-Signature and ARC-Seal
with the same instance number; a chain has the instances 1 to N, each once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from gatekeeper.auth.dkim_signature import Signature, parse_domain_tags, parse_signed_parts
from gatekeeper.auth.tags import parse_base64, parse_tags
from gatekeeper.core.message import Header

MAX_INSTANCE = 50
"""RFC 8617 section 4.2.1."""

_RESULTS, _SIGNATURE, _SEAL = _FIELD_NAMES = (b"arc-authentication-results", b"arc-message-signature", b"arc-seal")
_INSTANCE = re.compile(rb"[ \t\r\n]*i[ \t\r\n]*=[ \t\r\n]*([0-9]{1,2})[ \t\r\n]*;")
_NUMBER = re.compile(rb"[0-9]{1,15}\Z")
_STATUS = (b"none", b"pass", b"fail")


class BadChain(Exception):
    """The fields do not form a chain; the message says why, in words that can be reported as the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """One ARC-Seal. `status` is `cv=`; `b` is decoded."""

    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    b: bytes = b""
    status: str = ""


@dataclass(slots=True)
class ArcSet:
    """One instance: the indexes of its fields in the header, and what its two signatures say."""

    indexes: dict[bytes, int] = field(default_factory=dict)
    signature: Signature = field(default_factory=Signature)
    seal: Seal = field(default_factory=Seal)

    @property
    def results_index(self) -> int:
        return self.indexes[_RESULTS]

    @property
    def signature_index(self) -> int:
        return self.indexes[_SIGNATURE]

    @property
    def seal_index(self) -> int:
        return self.indexes[_SEAL]


def parse_chain(headers: Sequence[Header]) -> tuple[ArcSet, ...]:
    """Return the sets in the order of their instances; none if there are no ARC fields. Raises BadChain."""
    fields = [(index, name) for index, one in enumerate(headers) if (name := one.name.lower()) in _FIELD_NAMES]
    if len(fields) > 3 * MAX_INSTANCE:
        raise BadChain(f"there are more than {MAX_INSTANCE} ARC sets")
    sets: dict[int, ArcSet] = {}
    for index, name in fields:
        try:
            instance = _read(sets, headers[index].value, name)
        except ValueError as error:
            raise BadChain(f"{_shown(name)}: {error}") from None
        if name in sets[instance].indexes:
            raise BadChain(f"there are two {_shown(name)} fields of instance {instance}")
        sets[instance].indexes[name] = index
    for instance in range(1, len(sets) + 1):
        missing = [name for name in _FIELD_NAMES if instance not in sets or name not in sets[instance].indexes]
        if missing:
            raise BadChain(f"there is no {_shown(missing[0])} of instance {instance}")
    return tuple(sets[instance] for instance in sorted(sets))


def _read(sets: dict[int, ArcSet], value: bytes, name: bytes) -> int:
    """Put what one field says into its set, and return the instance. Raises ValueError."""
    if name == _RESULTS:
        match = _INSTANCE.match(value)
        instance = _instance(match[1] if match else b"")
        sets.setdefault(instance, ArcSet())
        return instance
    tags = parse_tags(value)
    instance = _instance(tags.get(b"i", b""))
    arc = sets.setdefault(instance, ArcSet())
    if name == _SEAL:
        arc.seal = _seal(tags)
    else:
        arc.signature = _signature(tags)
    return instance


def _instance(text: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,2}", text) or not 1 <= int(text) <= MAX_INSTANCE:
        raise ValueError("the instance (i=) is missing or malformed")
    return int(text)


def _seal(tags: dict[bytes, bytes]) -> Seal:
    """Parse the tags of an ARC-Seal (RFC 8617 section 4.1.3). Raises ValueError."""
    partial = parse_domain_tags(tags, (b"a", b"b", b"cv", b"d", b"s"))
    if b"h" in tags:
        raise ValueError("a list of signed fields (h=) does not belong there")
    if tags[b"cv"] not in _STATUS:
        raise ValueError("the chain validation status (cv=) is not known")
    if b"t" in tags and not _NUMBER.match(tags[b"t"]):
        raise ValueError("the tag t= is not a number")
    try:
        b = parse_base64(tags[b"b"])
    except ValueError:
        raise ValueError("the tag b= is not base64") from None
    status = tags[b"cv"].decode()
    return Seal(domain=partial.domain, selector=partial.selector, algorithm=partial.algorithm, b=b, status=status)


def _signature(tags: dict[bytes, bytes]) -> Signature:
    """Parse the tags of an ARC-Message-Signature (RFC 8617 section 4.1.2). Raises ValueError.

    They are those of a DKIM-Signature without `v=`, and `i=` is the instance. Without `c=` sealers mean
    relaxed/relaxed, according to the public test suite. `h=` may be empty.
    """
    partial = parse_domain_tags(tags, (b"a", b"b", b"bh", b"d", b"s"))
    if b"h" not in tags:
        raise ValueError("the tag h= is missing")
    signature = parse_signed_parts(partial, tags | {b"c": tags.get(b"c", b"relaxed/relaxed")})
    if _SEAL in signature.names:
        raise ValueError("it signs an ARC-Seal (h=)")
    return signature


def _shown(name: bytes) -> str:
    return name.decode().title().replace("Arc", "ARC")
