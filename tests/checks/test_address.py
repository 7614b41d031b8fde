# SPDX-License-Identifier: GPL-3.0-or-later
"""Sender and recipient restrictions: the codes, the order of questions and the exceptions of a real Postfix."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checking import SITE, World, rcpt, reply

ZONE = """
mx.example MX 10 a.example.
a.example A 192.0.2.1
aaaa.example AAAA 2001:db8::1
null.example MX 0 .
mixed.example MX 0 .
mixed.example MX 10 a.example.
empty.example TXT "nothing here"
mxfail.example MX !SERVFAIL
mxfail.example A 192.0.2.1
mxfailonly.example MX !TIMEOUT
mxfailonly.example A !NODATA
servfail.example ANY !SERVFAIL
xn--bcher-kva.example A 192.0.2.1
"""


@pytest.mark.parametrize(
    ("mailbox", "code"),
    [
        ("", ""),
        ("user", "504 5.5.2"),
        ("user@", "504 5.5.2"),
        ("user@localhost", "504 5.5.2"),
        ("user@mx.example", ""),
        ("user@mx.example.", ""),
        ("user@mx.example..", "504 5.5.2"),
        ("user@192.0.2.1", "504 5.5.2"),
        ("user@[192.0.2.1]", ""),
        ("user@bad name.example", "504 5.5.2"),
        ("user@bücher.example", ""),
        ("user@bü cher.example", "504 5.5.2"),
    ],
)
async def test_non_fqdn_is_what_postfix_takes_for_it(mailbox: str, code: str) -> None:
    assert code == await reply("reject_non_fqdn_sender", rcpt(sender=mailbox))
    assert code == await reply("reject_non_fqdn_recipient", rcpt(recipient=mailbox))


@pytest.mark.parametrize(
    ("mailbox", "sender", "recipient"),
    [
        ("", "", ""),
        ("user", "", ""),
        ("user@[192.0.2.1]", "", ""),
        ("user@example.com", "", ""),
        ("user@mx.example", "", ""),
        ("user@MX.EXAMPLE.", "", ""),
        ("user@aaaa.example", "", ""),
        ("user@b\u00fccher.example", "", ""),
        ("user@null.example", "550 5.7.27", "556 5.1.10"),
        ("user@mixed.example", "550 5.7.27", "556 5.1.10"),
        ("user@empty.example", "450 4.1.8", "450 4.1.2"),
        ("user@nowhere.example", "450 4.1.8", "450 4.1.2"),
        ("user@192.0.2.1", "450 4.1.8", "450 4.1.2"),
        ("user@mxfail.example", "", ""),
        ("user@mxfailonly.example", "450 4.1.8", "450 4.1.2"),
        ("user@servfail.example", "450 4.1.8", "450 4.1.2"),
    ],
)
async def test_an_unknown_domain_is_what_postfix_takes_for_it(mailbox: str, sender: str, recipient: str) -> None:
    assert sender == await reply("reject_unknown_sender_domain", rcpt(sender=mailbox), ZONE)
    assert recipient == await reply("reject_unknown_recipient_domain", rcpt(recipient=mailbox), ZONE)


async def test_only_a_missing_domain_is_refused_with_the_code_of_the_parameter() -> None:
    site = replace(SITE, unknown_address_reject_code="550")
    word = "reject_unknown_sender_domain"
    assert "550 5.1.8" == await reply(word, rcpt(sender="u@nowhere.example"), ZONE, site)
    assert "450 4.1.8" == await reply(word, rcpt(sender="u@servfail.example"), ZONE, site)
    assert "550 5.7.27" == await reply(word, rcpt(sender="u@null.example"), ZONE)


async def test_a_failing_mx_question_decides_nothing_when_there_is_no_address_either() -> None:
    decision = await World("reject_unknown_sender_domain", ZONE).decide(rcpt(sender="u@mxfailonly.example"))
    assert ("sender.unknown_domain_temporary",) == decision.reasons


async def test_a_relay_domain_is_looked_up_like_any_other() -> None:
    assert "450 4.1.2" == await reply("reject_unknown_recipient_domain", rcpt(recipient="u@relay.example"), ZONE)


async def test_the_mx_is_asked_for_first() -> None:
    decision = await World("reject_unknown_sender_domain", ZONE).decide(rcpt(sender="u@nowhere.example"))
    assert [f"{type} nowhere.example" for type in ("MX", "A", "AAAA")] == [
        note.what for note in decision.steps[0].notes
    ]


@given(st.text())
async def test_no_mailbox_gets_out_of_its_place_in_the_reply(mailbox: str) -> None:
    words = "reject_non_fqdn_sender, reject_non_fqdn_recipient, reject_unknown_sender_domain"
    verdict = await World(words).verdict(rcpt(sender=mailbox, recipient=mailbox))
    assert verdict.reply.isascii()
    assert verdict.reply.isprintable()
    assert len(verdict.reply) < 510
