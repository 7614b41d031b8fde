# SPDX-License-Identifier: GPL-3.0-or-later
"""A message that bears our signature already is not signed twice, and one that was changed is signed anew."""

import pytest

from gatekeeper.core.message import Header, parse
from gatekeeper.signing.keys import PrivateKey
from gatekeeper.signing.resigning import Resigning
from gatekeeper.signing.signer import Signer, SigningIdentity, SignOptions
from tests.support.signed_messages import MESSAGES, NOW, identity, signed
from tests.support.signing_world import ed25519, rsa_pem

RSA, ED = identity(), SigningIdentity("example.com", "ed", ed25519())


def holding(message: bytes, identities: list[SigningIdentity], now: float = NOW + 60) -> list[SigningIdentity]:
    headers, body = parse(message)
    again = Resigning.detect(headers, identities, Signer(headers, identities, SignOptions(), NOW).names, now)
    if again is None:
        return []
    for byte in body:
        again.update(bytes([byte]))
    return again.valid_identities()


@pytest.mark.parametrize("who", [RSA, ED], ids=["rsa", "ed25519"])
def test_who_has_signed_need_not_sign_again(who: SigningIdentity) -> None:
    message = signed(MESSAGES["plain"], identities=[who])
    assert [who] == holding(message, [who])


def test_of_two_the_one_that_has_not_signed_does() -> None:
    assert [RSA] == holding(signed(MESSAGES["plain"], identities=[RSA]), [RSA, ED])
    assert [RSA, ED] == holding(signed(MESSAGES["plain"], identities=[RSA, ED]), [RSA, ED])


def test_how_it_was_signed_does_not_matter_as_long_as_it_holds() -> None:
    simple = SignOptions(header_canonicalization="simple", body_canonicalization="relaxed")
    assert [RSA] == holding(signed(MESSAGES["white space"], simple), [RSA])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\r\nHello\r\n", b"\r\nHello\r\n-- \r\nfooter\r\n"),
        (b"Subject: ", b"Subject: [SPAM] "),
        (b"To:", b"List-Unsubscribe: <https://example.com/u>\r\nTo:"),
        (b"d=example.com", b"d=example.net"),
        (b"s=mail", b"s=liam"),
    ],
)
def test_what_was_changed_or_has_new_fields_is_signed_again(old: bytes, new: bytes) -> None:
    message = signed(MESSAGES["plain"])
    assert old in message
    assert [] == holding(message.replace(old, new, 1), [RSA])


def test_a_stranger_who_uses_our_name_is_not_believed() -> None:
    forged = signed(MESSAGES["plain"], identities=[identity(PrivateKey(rsa_pem(1024), "a stranger's"))])
    assert [] == holding(forged, [RSA])


def test_a_signature_that_has_expired_or_covers_a_part_does_not_count() -> None:
    assert [] == holding(signed(MESSAGES["plain"], SignOptions(lifetime=30)), [RSA])
    assert [RSA] == holding(signed(MESSAGES["plain"], SignOptions(lifetime=90)), [RSA])
    assert [] == holding(signed(MESSAGES["plain"], SignOptions(body_length=1)), [RSA])


def test_a_message_without_our_signature_costs_nothing() -> None:
    headers = [Header(b"DKIM-Signature", b" v=1; d=example.net"), Header(b"From", b" a@example.com")]
    assert Resigning.detect(headers, [RSA], ["From"], NOW) is None
