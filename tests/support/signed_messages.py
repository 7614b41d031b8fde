# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages of every shape, and as they leave when our signer has signed them."""

from collections.abc import Sequence

from gatekeeper.core.message import Header, parse
from gatekeeper.signing.keys import PrivateKey
from gatekeeper.signing.signer import Signer, SigningIdentity, SignOptions
from tests.support.signing_world import rsa, sent

NOW = 1_700_000_000
FORMS = [
    SignOptions(header_canonicalization=header, body_canonicalization=body)
    for header in ("relaxed", "simple")
    for body in ("relaxed", "simple")
]
HEADER = (
    b"From: Joe <joe@example.com>\r\nTo:ann@example.net\r\nSubject: Hello   there \r\n\tfriends\r\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\n"
)
MESSAGES = {
    "plain": HEADER + b"\r\nHello\r\n",
    "white space": HEADER + b"\r\n Hello \t there \r\n\t\r\n\r\nbye  \r\n\r\n\r\n",
    "empty body": HEADER + b"\r\n",
    "only empty lines": HEADER + b"\r\n\r\n\r\n",
    "no final line end": HEADER + b"\r\nHello\r\nthere",
    "8-bit": HEADER.replace(b"Hello", "Grüße".encode()) + b"\r\nGr\xfc\xdfe \xe2\x82\xac\r\n",
    "long line": HEADER + b"\r\n" + 3000 * b"x" + b"\r\n",
    "no header but From": b"From: joe@example.com\r\n\r\nHello\r\n",
    "a field twice": b"To: a@example.com\r\n" + HEADER + b"\r\nHello\r\n",
    "empty value": HEADER + b"Cc:\r\nReply-To: \r\n\r\nHello\r\n",
}


def identity(key: PrivateKey | None = None, signer: str = "") -> SigningIdentity:
    return SigningIdentity("example.com", "mail", key or rsa(), signer)


def sign(
    message: bytes, options: SignOptions = FORMS[0], identities: Sequence[SigningIdentity] = (), *, chunk: int = 65536
) -> list[Header]:
    headers, body = parse(message)
    signer = Signer(headers, identities or [identity()], options, NOW)
    for start in range(0, len(body), chunk):
        signer.update(body[start : start + chunk])
    return signer.signatures()


def signed(message: bytes, options: SignOptions = FORMS[0], identities: Sequence[SigningIdentity] = ()) -> bytes:
    """The message as it leaves."""
    return b"".join(field.line + b"\r\n" for field in sign(message, options, identities)) + sent(message)
