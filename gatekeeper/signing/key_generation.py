# SPDX-License-Identifier: GPL-3.0-or-later
"""New private keys, and the files that they go into.

PKCS#8 in PEM, as opendkim-genkey (through OpenSSL 3) writes it, so that OpenDKIM reads them too. A file appears whole
or not at all, is never readable by others, not even for a moment, and takes the place of another one only if asked to.
"""

import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gatekeeper.signing.keys import MINIMUM_BITS, RECOMMENDED_BITS

Kind = Literal["rsa", "ed25519"]
KINDS: tuple[Kind, ...] = ("rsa", "ed25519")
MAXIMUM_BITS = 4096
"""RFC 8301 section 3.2: the longest key that every verifier knows."""


def generate_key(kind: Kind = "rsa", bits: int = RECOMMENDED_BITS) -> bytes:
    """A new private key. `bits` is for RSA. Raises ValueError for a size that receivers do not accept."""
    if kind == "ed25519":
        return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if not MINIMUM_BITS <= bits <= MAXIMUM_BITS:
        raise ValueError(f"an RSA key must have {MINIMUM_BITS} to {MAXIMUM_BITS} bits (RFC 8301)")
    return generate_private_key(65537, bits).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_key(
    path: Path, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None, replace: bool = False
) -> None:
    """Write `path`, for `owner` (user and group id). Raises FileExistsError unless it may `replace`, and OSError."""
    new = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115 (it becomes the file)
    try:
        with new:
            new.write(data)
            new.flush()
            if owner is not None:
                os.fchown(new.fileno(), *owner)
            os.fchmod(new.fileno(), mode)
            os.fsync(new.fileno())
        if replace:
            os.replace(new.name, path)
        else:
            os.link(new.name, path)
    finally:
        Path(new.name).unlink(missing_ok=True)
    _sync(path.parent)


def owner_in(folder: Path, owners: Collection[int]) -> tuple[int, int] | None:
    """Whose a new key in `folder` is to be: the folder's owner if that is one of `owners` and not who asks (as
    /etc/dkimkeys is opendkim's, who could not read root's keys); None for who asks.
    """
    status = folder.stat()
    if os.geteuid() == 0 and status.st_uid != 0 and status.st_uid in owners:
        return status.st_uid, status.st_gid
    return None


def _sync(folder: Path) -> None:
    """So that a name that was given survives a power failure, before anything is built on it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
