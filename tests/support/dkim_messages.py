# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages signed with DKIM by dkimpy, and by hand as no signer would; the keys for both."""

import hashlib
from base64 import b64encode

import dkim as dkimpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from gatekeeper.core.message import Header, parse

NOW = 4_000_000_000.0  # later than any clock that dkimpy signs by
KEY = generate_private_key(65537, 2048)
ED_KEY = Ed25519PrivateKey.generate()
SHORT_KEY = load_pem_private_key(
    b"""-----BEGIN RSA PRIVATE KEY-----
MIIBygIBAAJhAKWTM4aEaWbt8NXpHIsX0fVg8deWL7VMeke1YmKUIi4+fePLReIK
tvzxQUMmjeCZQuKUlROud+wvjZmb/ARwjrM6x32fJYNGR8Wkkg+67z4T/69a6cAc
z3i9ja12Ffg4+wIDAQABAmAOk9kzfLDy+Pv9OVrj/CLmIbTpMDXfFm6lpZiV6Ujh
HWtkBN+QOTVHK859JQXUwml22rOduPtvGGaypXNj39yMgT3XEmqptoPUPLT0iJ6X
p4htEHEUeP3AwuTuw9Nyx6ECMQDSMLycX6vmFe2PTj3oFQlWUVJ6Qb8BelSKqe2K
0tcoVkgmS6tyG/QxMrFsrTiaBEkCMQDJqTcgllrLdCTUb18bD0do5oN2iAFBO/Qs
UGV2X3swiI+qvYMfU1607Ht1XufmiyMCMBWbXvgwOYqIfIg7wc9mwjP2XiUlNw5e
1ev/NeUMcYO7AuW056XuS7b3ABgs4mGqyQIwL/sD88vyVGAQ9z58aWrMOchG1Sfs
7IGASh7i1TRIkjabwCsRDJ4AdZmikj1/fZnzAjEAsivm095zM2bos0QRMVYxsmWv
ay3lPgRroVfI5wcrSrOBb/FMmS6Qhzzq4zuSsnAw
-----END RSA PRIVATE KEY-----
""",
    None,
)
NAME = "sel._domainkey.example.com"
MESSAGE = (
    b"Received: from a by b\r\n"
    b"From: Joe <joe@example.com>\r\n"
    b"To: Sue <sue@example.net>\r\n"
    b"Subject: Is  dinner\r\n\tready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700\r\n"
    b"\r\n"
    b"Hi. \r\n\r\nWe lost  the game.\r\n\r\n\r\n"
)


def public(key: RSAPrivateKey | Ed25519PrivateKey = KEY, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> str:
    """The `p=` of a key record."""
    if isinstance(key, Ed25519PrivateKey):
        return b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    return b64encode(key.public_key().public_bytes(Encoding.DER, form)).decode()


RECORD = f"v=DKIM1; k=rsa; p={public()}"


def by_dkimpy(message: bytes, canonicalize: tuple[bytes, bytes] = (b"relaxed", b"relaxed"), **options: object) -> bytes:
    """`message` with a signature of dkimpy's."""
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return bytes(dkimpy.sign(message, b"sel", b"example.com", pem, canonicalize=canonicalize, **options)) + message


def relaxed(field: Header) -> bytes:
    """The relaxed form by dkimpy."""
    [(name, value)] = dkimpy.RelaxedCanonicalization.canonicalize_headers([(field.name, field.value + b"\r\n")])
    return bytes(name + b":" + value)


def signed(
    message: bytes = MESSAGE, key: RSAPrivateKey | Ed25519PrivateKey = KEY, names: str = "from:to:subject", **tags: str
) -> bytes:
    """`message` with a relaxed/relaxed signature in which any tag may be set, also to what no signer would write."""
    headers, body = parse(message)
    covered = dkimpy.RelaxedCanonicalization.canonicalize_body(body)
    if "l" in tags:
        covered = covered[: int(tags["l"])]
    kind = "ed25519-sha256" if isinstance(key, Ed25519PrivateKey) else "rsa-sha256"
    all_tags = {"v": "1", "a": kind, "c": "relaxed/relaxed", "d": "example.com", "s": "sel", "h": names}
    all_tags |= {"bh": b64encode(hashlib.sha256(covered).digest()).decode()} | tags | {"b": ""}
    field = Header(b"DKIM-Signature", (" " + "; ".join(f"{n}={v}" for n, v in all_tags.items() if v != "-")).encode())
    chosen = []
    left = list(headers)
    for name in names.lower().split(":"):
        for at in range(len(left) - 1, -1, -1):
            if left[at].name.lower() == name.strip().encode():
                chosen.append(relaxed(left.pop(at)))
                break
    data = b"".join(chosen) + relaxed(field).removesuffix(b"\r\n")
    if isinstance(key, Ed25519PrivateKey):
        made = key.sign(hashlib.sha256(data).digest())
    else:
        made = key.sign(data, PKCS1v15(), SHA256())
    return field.line + b64encode(made) + b"\r\n" + message
