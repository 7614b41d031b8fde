# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the memory of a process, for tests that prove that something is not.

A private key is looked for in each form in which a program may have it: its base64, line by line, and the numbers as
bytes in both orders (the limbs of OpenSSL's BIGNUM are the little-endian one) and as Python's digits of 30 bits.
"""

import base64
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

_PIECE = 24
"""Bytes of a secret that are looked for at once: nobody has so many by chance, and they cross no line end."""


def forms(pem: bytes) -> dict[str, list[bytes]]:
    """The pieces of a private key, by the form that they are of."""
    key = load_pem_private_key(pem, None)
    assert isinstance(key, RSAPrivateKey | Ed25519PrivateKey)
    lines = [line for line in pem.splitlines() if not line.startswith(b"-")]
    found = {"text": [line[-_PIECE:] for line in lines if len(line) >= _PIECE]}
    if isinstance(key, Ed25519PrivateKey):
        seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return {**found, "seed": [seed], "base64 of the seed": [base64.b64encode(seed)]}
    numbers = key.private_numbers()
    secret = (numbers.p, numbers.q, numbers.d, numbers.dmp1, numbers.dmq1, numbers.iqmp)
    size = [(number.bit_length() + 7) // 8 for number in secret]
    big = [number.to_bytes(length, "big") for number, length in zip(secret, size, strict=True)]
    digits = [b"".join(_digits(number)) for number in secret]
    return {
        **found,
        "big endian": [each[8 : 8 + _PIECE] for each in big],
        "little endian": [each[::-1][8 : 8 + _PIECE] for each in big],
        "Python's digits": [each[8 : 8 + _PIECE] for each in digits],
    }


def _digits(number: int) -> Iterator[bytes]:
    while number:
        yield (number & 0x3FFFFFFF).to_bytes(4, "little")
        number >>= 30


def forms_in_memory(pid: int, wanted: dict[str, list[bytes]]) -> set[str]:
    """The forms of which a piece is in the memory of this process."""
    found = set()
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights, *_ = line.split()
            if not rights.startswith("r") or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(number, 16) for number in area.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except (OSError, OverflowError, ValueError):
                continue
            found |= {form for form, pieces in wanted.items() if any(piece in content for piece in pieces)}
    return found
