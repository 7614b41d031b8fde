# SPDX-License-Identifier: GPL-3.0-or-later
"""[checks.dkim] and the header as such; what it does by signatures is compared with opendkim elsewhere."""

import pytest

from gatekeeper.checks.authentication.dkim import DkimCheck, SignatureAction
from gatekeeper.core.message import parse
from gatekeeper.core.verdict import PASS

FIELDS = b"From: joe@example.com\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n"


def verdict(check: DkimCheck, raw: bytes) -> tuple[str, str]:
    found = check.of_header(parse(raw + b"\r\n")[0])
    return found.reason, found.reply if found.refuses else found.text


def test_a_header_is_of_no_interest_unless_it_is_asked_for() -> None:
    assert PASS == DkimCheck().of_header(parse(b"X: 1\r\n" * 10_000 + b"\r\n")[0])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (FIELDS, ""),
        (FIELDS + b"Received: a\r\nReceived: b\r\nSender: a@b.c\r\n", ""),
        (b"From: joe@example.com\r\n", "this message has no Date field, not one"),
        (FIELDS + b"from: ann@example.com\r\n", "this message has 2 From fields, not one"),
        (FIELDS + b"Subject: a\r\nSUBJECT: b\r\nSubject: c\r\n", "this message has 3 Subject fields, not one"),
    ],
)
def test_required_headers_refuse_what_rfc_5322_does_not_know(raw: bytes, said: str) -> None:
    expected = ("dkim.malformed", f"550 5.6.0 RFC 5322: {said}") if said else ("", "")
    assert expected == verdict(DkimCheck(required_headers=True), raw)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (SignatureAction.TEMPFAIL, "451 4.7.0 DKIM: the header of this message is too long"),
        (SignatureAction.QUARANTINE, "HOLD DKIM: the header of this message is too long"),
        (SignatureAction.ACCEPT, ""),
    ],
)
def test_a_long_header_has_its_action(action: SignatureAction, expected: str) -> None:
    check = DkimCheck(max_header=len(FIELDS) - 2, long_header=action)  # a colon and CRLF are three, and count as two
    assert ("", "") == verdict(check, FIELDS)
    assert ("dkim.long_header", expected) == verdict(check, FIELDS.replace(b"joe", b"jane"))
