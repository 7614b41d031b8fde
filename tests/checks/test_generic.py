# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's words that look at nothing but who asks, and warn_if_reject."""

from typing import Any

import pytest

from gatekeeper.core.request import Stage
from gatekeeper.core.verdict import PASS, Outcome
from tests.support.checking import World, rcpt, reply


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("permit", ""),
        ("reject", "554 5.7.1"),
        ("defer", "450 4.3.2"),
        ("defer_if_permit", "450 4.7.0"),
        ("defer_if_reject", "450 4.7.0"),
        ("reject_plaintext_session", "450 4.7.1"),
    ],
)
async def test_the_codes_are_those_of_postfix(word: str, code: str) -> None:
    assert code == await reply(word, rcpt())


async def test_mynetworks_and_logins_are_permitted() -> None:
    words = "permit_mynetworks, permit_sasl_authenticated, reject"
    assert "" == await reply(words, rcpt(address="10.1.2.3"))
    assert "" == await reply(words, rcpt(sasl_user="alice"))
    assert "554 5.7.1" == await reply(words, rcpt())


async def test_an_ipv4_client_that_came_over_ipv6_is_still_in_mynetworks() -> None:
    assert "" == await reply("permit_mynetworks, reject", rcpt(address="::ffff:10.1.2.3"))


async def test_encryption_satisfies_reject_plaintext_session() -> None:
    assert "" == await reply("reject_plaintext_session", rcpt()._replace(encryption_protocol="TLSv1.3"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"queue_id": "4ABC"}, "550 5.5.3"),  # at RCPT a message has a queue id from its first accepted recipient on
        ({"stage": Stage.DATA, "recipient_count": 1, "queue_id": "4ABC"}, ""),
        ({"stage": Stage.DATA, "recipient_count": 2}, "550 5.5.3"),
        ({"stage": Stage.DATA, "recipient_count": 2, "sender": "a@b.example"}, ""),
    ],
)
async def test_a_bounce_to_several_recipients_is_refused(changes: dict[str, Any], expected: str) -> None:
    [check] = World("reject_multi_recipient_bounce").checks
    verdict = await check.check(rcpt(sender="")._replace(**changes), None)  # type: ignore[arg-type]  # looks at nothing
    assert expected == f"{verdict.code} {verdict.enhanced}".strip()


async def test_warn_if_reject_writes_a_refusal_down_and_lets_it_pass() -> None:
    decision = await World("warn_if_reject reject_non_fqdn_helo_hostname").decide(rcpt(helo="localhost"))
    [step] = decision.steps
    assert (PASS, "warn_if_reject.helo.non_fqdn") == (decision.verdict, step.verdict.reason)
    assert "would refuse" == step.notes[-1].what


async def test_warn_if_reject_holds_for_one_restriction() -> None:
    assert "554 5.7.1" == await reply("warn_if_reject reject, reject", rcpt())


async def test_warn_if_reject_turns_a_soft_failure_into_a_note_too() -> None:
    assert "" == await reply("warn_if_reject defer_if_permit", rcpt())


async def test_a_permit_behind_warn_if_reject_still_permits() -> None:
    assert "" == await reply("warn_if_reject permit, reject", rcpt())


async def test_a_defer_if_reject_behind_warn_if_reject_still_tempers() -> None:
    decision = await World("warn_if_reject defer_if_reject, reject").decide(rcpt())
    assert (Outcome.REJECT, "450") == (decision.verdict.outcome, decision.verdict.code)
