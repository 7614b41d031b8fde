# SPDX-License-Identifier: GPL-3.0-or-later
"""What replay says in Postfix's place is what a real Postfix says: one table, asked of both."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.policy.protocol import RequestParser
from gatekeeper.replay.postfix_model import Restrictions, refusal
from gatekeeper.replay.smtp import SmtpClient
from tests.support.lab import new_lab

ACTIONS = [
    "DUNNO",
    "OK",
    "HOLD look",
    "INFO look",
    "1234567890",
    "DEFER_IF_REJECT 4.7.1 later",
    "DEFER_IF_PERMIT 4.4.3 DNS",
    "DEFER_IF_PERMIT 4.1.8 DNS",
    "REJECT",
    "reject no",
    "REJECT 5.7.26 no",
    "DEFER later",
    "554 no enhanced code",
    "550 4.7.1 digits differ",
    "450 5.7.1 digits differ",
    "450 4.7.1 Greylisted",
    "451 4.7.24 SPF is slow",
    "550 5.7.27 null MX",
    "450 4.1.2 Domain not found",
    "450 4.1.8 Domain not found",
    "556 5.1.10 null MX",
    "504 5.5.2 need fully-qualified hostname",
]


def name(number: int) -> str:
    return f"r{number}@example.net"


REPLIES = [refusal(action, Restrictions.RECIPIENT, name(number)) for number, action in enumerate(ACTIONS)]


@pytest.mark.integration("postfix")
async def test_a_real_postfix_replies_the_same() -> None:
    with new_lab(hostname="mx.example.net", relay_domain="example.net") as lab:
        async with await asyncio.start_unix_server(_answer, lab.postfix.sockets / "policy.sock") as server:
            (lab.postfix.sockets / "policy.sock").chmod(0o666)
            await server.start_serving()
            said = await asyncio.to_thread(_ask_postfix, lab.postfix.ports.smtp)
    assert [reply or "250 2.1.5 Ok" for reply in REPLIES] == said


def _ask_postfix(port: int) -> list[str]:
    """What Postfix replies to each action's recipient, in connections of their own: it slows down after errors."""
    replies = []
    for number in range(len(ACTIONS)):
        with SmtpClient("127.0.0.1", port) as smtp:
            smtp.command("EHLO mail.example.org")
            smtp.command("MAIL FROM:<alice@example.org>")
            replies.append(smtp.command(f"RCPT TO:<{name(number)}>"))
    return replies


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A policy service that gives each recipient its action."""
    parser = RequestParser()
    while data := await reader.read(65536):
        parser.feed(data)
        while (attributes := parser.next()) is not None:
            number = int(attributes["recipient"].partition("@")[0][1:])
            writer.write(f"action={ACTIONS[number]}\n\n".encode())
    writer.close()


@pytest.mark.parametrize(
    ("action", "reply"),
    [
        ("OK", ""),
        ("DEFER_IF_REJECT 4.7.1 later", ""),
        ("450 4.1.8 Domain not found", "450 4.1.2 <r@x>: Recipient address rejected: Domain not found"),
        ("556 5.1.10 null MX", "556 5.1.0 <r@x>: Recipient address rejected: null MX"),
        ("550 4.7.1 digits differ", "550 5.7.1 <r@x>: Recipient address rejected: digits differ"),
        ("REJECT", "554 5.7.1 <r@x>: Recipient address rejected: Access denied"),
    ],
)
def test_a_recipient_is_refused_in_postfixs_words(action: str, reply: str) -> None:
    assert reply == refusal(action, Restrictions.RECIPIENT, "r@x")


def test_other_lists_make_an_address_code_neutral() -> None:
    assert "450 4.0.0 <DATA>: Data command rejected: no" == refusal("450 4.1.8 no", Restrictions.DATA, "DATA")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_any_action_gives_no_reply_or_one_that_refuses(action: str) -> None:
    reply = refusal(action, Restrictions.RECIPIENT, "r@x")
    assert not reply or (reply[0] in "45" and reply[4] == reply[0])
