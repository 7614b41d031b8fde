# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates for tests, signed by themselves, and their fingerprints as Postfix writes them."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """`path` holds key and certificate; the fingerprints are of the certificate and of its public key (SHA-256)."""

    path: Path
    fingerprint: str
    key_fingerprint: str


def make(path: Path, name: str) -> Certificate:
    """A new key and a certificate for `name`, valid for a day, in the file `path`."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(pem))
    public = key.public_key().public_bytes(der, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Certificate(path, _shown(certificate.public_bytes(der)), _shown(public))


def _shown(data: bytes) -> str:
    return hashlib.sha256(data).digest().hex(":").upper()
