# SPDX-License-Identifier: GPL-3.0-or-later
"""Generating private keys, and writing them to files.

PKCS#8 in PEM, as opendkim-genkey (through OpenSSL 3) writes it, so that OpenDKIM can read them too. A file appears
complete or not at all, is never readable by others, not even for a moment, and replaces another one only if asked to.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gatekeeper.core import safe_files
from gatekeeper.core.safe_files import Owner
from gatekeeper.signing.keys import MINIMUM_BITS, RECOMMENDED_BITS

KeyType = Literal["rsa", "ed25519"]
KEY_TYPES: tuple[KeyType, ...] = ("rsa", "ed25519")
MAXIMUM_BITS = 4096
"""RFC 8301 section 3.2: the longest key that every verifier supports."""


def generate_key(kind: KeyType = "rsa", bits: int = RECOMMENDED_BITS) -> bytes:
    """Generate a private key. `bits` is for RSA. Raises ValueError for a size that receivers do not accept."""
    if kind == "ed25519":
        return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if not MINIMUM_BITS <= bits <= MAXIMUM_BITS:
        raise ValueError(f"an RSA key must have {MINIMUM_BITS} to {MAXIMUM_BITS} bits (RFC 8301)")
    return generate_private_key(65537, bits).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_key(path: Path, data: bytes, *, mode: int = 0o600, owner: Owner | None = None, replace: bool = False) -> None:
    """Write `data` to `path`, owned by `owner`.

    Raises FileExistsError if the file exists, unless it may be replaced (`replace`), and OSError.
    """
    if replace:
        safe_files.write(path, data, mode=mode, owner=owner)
    else:
        safe_files.create(path, data, mode=mode, owner=owner)


def owner_in(folder: Path, owners: Collection[int]) -> Owner | None:
    """Return who should own a new key in `folder`; None for the current user.

    If root asks, it is the folder's owner if that is another one of `owners`: /etc/dkimkeys belongs to opendkim, which
    could not read root's keys.
    """
    status = folder.stat()
    if os.geteuid() == 0 and status.st_uid != 0 and status.st_uid in owners:
        return status.st_uid, status.st_gid
    return None
