# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of signing share: throw-away keys, key files, and a verifier that owes nothing to gatekeeper."""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

from gatekeeper.signing.keys import PrivateKey


@cache
def rsa_pem(bits: int = 2048) -> bytes:
    """An RSA key as opendkim-genkey writes it: PEM, PKCS#1."""
    key = generate_private_key(65537, bits)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


@cache
def ed25519_pem() -> bytes:
    """An Ed25519 key as openssl genpkey writes it: PEM, PKCS#8."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def ec_pem() -> bytes:
    """A key that DKIM does not know."""
    return generate_ec_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def rsa() -> PrivateKey:
    return PrivateKey(rsa_pem(), "the RSA key of the tests")


@cache
def ed25519() -> PrivateKey:
    return PrivateKey(ed25519_pem(), "the Ed25519 key of the tests")


def write_key(path: Path, pem: bytes | None = None) -> Path:
    """A key file with the permissions that it should have."""
    path.write_bytes(rsa_pem() if pem is None else pem)
    path.chmod(0o600)
    return path


def sent(message: bytes, limit: int = 998) -> bytes:
    """`message` as Postfix's smtp(8) sends it (smtp_line_length_limit), line by line and a second time."""

    def pieces(line: bytes) -> Iterator[bytes]:
        yield line[:limit]
        for start in range(limit, len(line), limit - 1):
            yield b" " + line[start : start + limit - 1]

    return b"\r\n".join(piece for line in message.split(b"\r\n") for piece in pieces(line))


def verifies(message: bytes, record: str) -> bool:
    """True if the first DKIM-Signature of `message` holds with the key in `record`: RFC 6376 sections 3.4 and 3.7, a
    second time and with other means."""
    head, _, body = message.partition(b"\r\n\r\n")
    fields = [(line.split(b":")[0].strip().lower(), line) for line in re.split(rb"\r\n(?![ \t])", head)]
    signature = next(line for name, line in fields if name == b"dkim-signature")
    pairs = (tag.split(b"=", 1) for tag in signature.split(b":", 1)[1].split(b";") if tag.strip())
    tags = {name.strip(): re.sub(rb"\s", b"", value) for name, value in pairs}
    header_form, body_form = tags[b"c"].split(b"/")

    if body_form == b"relaxed":
        body = b"\r\n".join(re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in body.split(b"\r\n"))
    body = body.rstrip(b"\r\n") + b"\r\n" if body.rstrip(b"\r\n") or body_form == b"simple" else b""
    if b64encode(sha256(body).digest()) != tags[b"bh"]:
        return False

    def canonical(line: bytes) -> bytes:
        if header_form == b"simple":
            return line
        name, value = line.split(b":", 1)
        return name.strip().lower() + b":" + re.sub(rb"[ \t\r\n]+", b" ", value).strip(b" ")

    signed = b""
    for name in tags[b"h"].lower().split(b":"):
        for position in reversed(range(len(fields))):
            if fields[position][0] == name:
                signed += canonical(fields.pop(position)[1]) + b"\r\n"
                break
    signed += canonical(re.sub(rb"([;\s]b=)[^;]*", rb"\1", signature))
    return _holds(b64decode(tags[b"b"]), sha256(signed).digest(), tags[b"a"], record)


def _holds(signature: bytes, digest: bytes, algorithm: bytes, record: str) -> bool:
    public = b64decode(record.partition("p=")[2])
    try:
        if algorithm == b"ed25519-sha256":
            Ed25519PublicKey.from_public_bytes(public).verify(signature, digest)
        else:
            key = load_der_public_key(public)
            assert isinstance(key, RSAPublicKey)
            key.verify(signature, digest, PKCS1v15(), Prehashed(SHA256()))
    except Exception:  # noqa: BLE001 (whatever the library says, the signature is not valid)
        return False
    return True
