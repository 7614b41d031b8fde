# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains of ARC sets made by dkimpy, and the cases of the public suite."""

from collections.abc import Iterator, Sequence
from typing import Any

import dkim
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.needs import require_corpus
from tests.support.zones import txt

NOW = 1_500_000_000.0
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=1024)
PEM = PRIVATE.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
)
PUBLIC = PRIVATE.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
RECORD = "v=DKIM1; p=" + "".join(PUBLIC.decode().splitlines()[1:-1])
MESSAGE = b"From: a@author.example\r\nTo: list@list.example\r\nSubject: hello\r\n\r\nHello\r\n"


class _Sealer(dkim.ARC):  # type: ignore[misc]  # dkimpy has no types
    """dkimpy, which signs just the fields that it is told, From or not."""

    def sealed(self, domain: bytes, fields: Sequence[bytes]) -> list[bytes]:
        self._signed = [*fields]
        made: list[bytes] = self.sign(b"s", domain, PEM, b"mx.list.example", [b"from"], str(int(NOW)))
        return made

    def gen_header(
        self, tags: list[tuple[bytes, bytes]], names: list[bytes], policy: Any, name: bytes, *rest: Any
    ) -> Any:
        if name == b"ARC-Message-Signature":
            names = self._signed
            tags = [(tag, b" : ".join(names) if tag == b"h" else value) for tag, value in tags]
        return super().gen_header(tags, names, policy, name, *rest)


def sealed(
    raw: bytes, domain: str = "list.example", *, fields: Sequence[bytes] = (b"from", b"to", b"subject")
) -> bytes:
    """`raw` with another set, by dkimpy, which takes what is sealed from an Authentication-Results field."""
    before = b"arc=pass; " if b"ARC-Seal" in raw else b""
    told = b"Authentication-Results: mx.list.example; " + before + b"dmarc=pass header.from=author.example\r\n" + raw
    made: list[bytes] = _Sealer(told).sealed(domain.encode(), fields)
    assert made
    return b"".join(made) + raw


def suite() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each case with its DNS, as the text of a zone."""
    corpus = require_corpus("arc-validation.yml")
    for scenario in yaml.safe_load_all(corpus.read_text("utf-8")):
        zone = "\n".join(f"{n}. TXT {txt(record)}" for n, record in scenario["txt-records"].items())
        for name, case in scenario["tests"].items():
            yield name, case, zone


def expected(case: dict[str, Any]) -> str:
    """What the case asks for; where it is silent (a chain that had failed before) RFC 8617 section 5.2 says fail."""
    return str(case["cv"] or "fail").lower()
