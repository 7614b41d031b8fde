# SPDX-License-Identifier: GPL-3.0-or-later
"""Public keys of DKIM as TXT records publish them (RFC 6376 section 3.6.1, RFC 8301, RFC 8463).

Knows neither DNS nor signatures: a record's bytes become a PublicKey, or the reason why it cannot be used.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from gatekeeper.auth.tags import parse_base64, parse_list, parse_tags

MINIMUM_RSA_BITS = 1024
"""RFC 8301 section 3.2: a signature with a shorter key is never valid."""

_PADDING, _PREHASHED = PKCS1v15(), Prehashed(SHA256())


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A usable key and its flags: `strict` is t=s (the domain of i= must equal d=), `testing` is t=y."""

    key: RSAPublicKey | Ed25519PublicKey
    strict: bool = False
    testing: bool = False

    @property
    def kind(self) -> str:
        """The `k=` tag: rsa or ed25519."""
        return "rsa" if isinstance(self.key, RSAPublicKey) else "ed25519"

    @property
    def bits(self) -> int:
        """The size of the key in bits."""
        return self.key.key_size if isinstance(self.key, RSAPublicKey) else 256

    @property
    def too_short(self) -> bool:
        """True if no signature with this key may be accepted."""
        return self.kind == "rsa" and self.bits < MINIMUM_RSA_BITS

    def verifies(self, signature: bytes, digest: bytes) -> bool:
        """Return whether `signature` was made with this key over the SHA-256 `digest`."""
        try:
            if isinstance(self.key, RSAPublicKey):
                self.key.verify(signature, digest, _PADDING, _PREHASHED)
            else:
                self.key.verify(signature, digest)  # RFC 8463 section 3: PureEdDSA over the digest
        except (InvalidSignature, ValueError):
            return False
        return True


_MAX_TRIED = 4
_MAY_BE_KEY = re.compile(rb"\s*(?:v\s*=\s*DKIM1\b|(?!v\s*=)(?:.*;)?\s*p\s*=)", re.DOTALL)


def key_records(records: Iterable[object]) -> list[bytes]:
    """Return the TXT records of one name that are to be tried as keys, at most _MAX_TRIED of them.

    What may be a key comes before what is surely none: a key must not be lost behind the texts of other services.
    """
    texts = [record for record in records if isinstance(record, bytes)]
    return sorted(texts, key=lambda text: not may_be_key(text))[:_MAX_TRIED]


def may_be_key(record: bytes) -> bool:
    """Return whether a TXT record is meant as a key, be it a wrong one; any other is surely none."""
    return _MAY_BE_KEY.match(record) is not None


_MAX_CACHED = 4096
"""Bytes of the longest record whose key is kept: one may have 64 kB, and strangers publish them."""


def parse_key(record: bytes) -> PublicKey | str:
    """Return the key in a TXT record, or the reason why it cannot be used.

    Cached, because parsing costs twice as much as verifying.
    """
    return _known_key(record) if len(record) <= _MAX_CACHED else _parse_key(record)


def _parse_key(record: bytes) -> PublicKey | str:
    try:
        tags = parse_tags(record)
    except ValueError as error:
        return f"the key record is malformed: {error}"
    if tags.get(b"v", b"DKIM1") != b"DKIM1":
        return "the record is not a DKIM key"
    if b"v" in tags and next(iter(tags)) != b"v":
        return "the record is not a DKIM key: v=DKIM1 must come first"
    if b"p" not in tags:
        return "the key record has no key in it"
    if not tags[b"p"]:
        return "the key has been revoked"
    if b"sha256" not in parse_list(tags.get(b"h", b"sha256")):
        return "the key is not for SHA-256 (h=)"
    if not {b"*", b"email"} & set(parse_list(tags.get(b"s", b"*"))):
        return "the key is not for mail (s=)"
    if b'"' in tags[b"p"] or b"\\" in tags[b"p"]:
        return "the key is malformed: there are quote marks or backslashes in it (p=)"
    flags = parse_list(tags.get(b"t", b""))
    try:
        key = _load(tags.get(b"k", b"rsa").lower(), parse_base64(tags[b"p"]))
    except (ValueError, UnsupportedAlgorithm):
        return "the key is malformed"
    if key is None:
        return "the key type (k=) is not supported here"
    return PublicKey(key, strict=b"s" in flags, testing=b"y" in flags)


_known_key = lru_cache(maxsize=512)(_parse_key)


def _load(kind: bytes, data: bytes) -> RSAPublicKey | Ed25519PublicKey | None:
    if kind == b"ed25519":
        return Ed25519PublicKey.from_public_bytes(data)
    if kind != b"rsa":
        return None
    key = load_der_public_key(data)  # SubjectPublicKeyInfo, or PKCS#1 as the RFC's text has it
    if not isinstance(key, RSAPublicKey):
        raise ValueError  # noqa: TRY004  # a key of another type is as bad as none
    return key
