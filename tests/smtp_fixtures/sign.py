# SPDX-License-Identifier: GPL-3.0-or-later
"""Signs a fixture's message anew after it was edited: `python tests/smtp_fixtures/sign.py CASE/message.eml KEYNAME`.

KEYNAME is a line of the KeyTable beside this file; all its keys are throw-away keys of made-up domains. dkimpy signs,
not gatekeeper, so that what gatekeeper verifies was not made by itself. Without `x=` a signature does not grow old.
"""

import base64
import sys
from pathlib import Path
from unittest import mock

import dkim

WRITTEN = 1704067200.0
"""When all fixtures were written: 2024-01-01 00:00:00 UTC."""
HEADERS = [b"From", b"To", b"Subject", b"Date", b"Message-ID"]


def sign(raw: bytes, domain: str, selector: str, key: str) -> bytes:
    """`raw`, whose lines end in LF, with a signature in front."""
    pem = b"-----BEGIN RSA PRIVATE KEY-----\n%s\n-----END RSA PRIVATE KEY-----\n" % base64.encodebytes(
        base64.b64decode(key)
    )
    message = raw.replace(b"\n", b"\r\n")
    with mock.patch("time.time", return_value=WRITTEN):
        field: bytes = dkim.sign(
            message,
            selector.encode(),
            domain.encode(),
            pem,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=HEADERS,
        )
    return (field + message).replace(b"\r\n", b"\n")


def main(path: str, name: str) -> None:
    """Replace the signature of the message at `path`."""
    table = (Path(__file__).parent / "KeyTable").read_text().splitlines()
    domain, selector, key = next(line.split()[1].split(":") for line in table if line.startswith(name + " "))
    raw = Path(path).read_bytes()
    if raw.startswith(b"DKIM-Signature:"):
        raw = raw[raw.index(b"\n", raw.index(b" b=")) + 1 :]
        while raw[:1] in (b" ", b"\t"):
            raw = raw[raw.index(b"\n") + 1 :]
    Path(path).write_bytes(sign(raw, domain, selector, key))


if __name__ == "__main__":
    main(*sys.argv[1:])
