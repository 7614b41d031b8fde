# SPDX-License-Identifier: GPL-3.0-or-later
"""gatekeeper behind a real Postfix, wired by postfix-snippets/: SMTP in, delivered bytes out, nothing mocked between.

The recorded sessions of tests/smtp_fixtures run on a real Redis, those that keep state on SQLite too. Postfix, DNS and
Redis start once for the module; gatekeeper starts anew for each case, as root, and works as nobody.
"""

import os
import pwd
import re
import time
from collections.abc import Iterator
from pathlib import Path

import dkim
import pytest

from gatekeeper.core.message import crlf, parse
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.replay import fixture
from gatekeeper.replay.compare import differences
from gatekeeper.replay.smtp import MessageReplies, Servers, SmtpClient, play
from tests.lab import Lab
from tests.lab.evidence import header_changes, outcomes
from tests.support.lab import new_lab
from tests.support.needs import ROOT, require_program
from tests.support.service import until

pytestmark = pytest.mark.integration("gatekeeper", "postfix", "redis-server")

CASES = ROOT / "tests" / "smtp_fixtures"
CONFIG = CASES / "gatekeeper.toml"
SIGNED = CASES / "clean-signed-mail"
SUBMITTED = CASES / "authenticated-submission"
KEEP_STATE = ("first-time-sender", "flood")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def redis(lab: Lab) -> str:
    require_program("redis-server", "redis-server")
    return lab.redis()


def servers(lab: Lab) -> Servers:
    return Servers("127.0.0.1", lab.postfix.ports.smtp, lab.postfix.ports.submission)


def start(lab: Lab, case: fixture.Case, store: str = "", **changes: object) -> None:
    """gatekeeper anew, in the DNS world of `case`."""
    lab.dns.zone = Zone.parse(case.zone)
    assert case.config is not None
    lab.run(case.config, changes, store=store)


def only_message(lab: Lab, case: fixture.Case) -> MessageReplies:
    """What Postfix says to the one message of a case."""
    [connection] = play(case, servers(lab), TableResolver(lab.dns.zone))
    [message] = connection.messages
    return message


def delivered(lab: Lab, heard: MessageReplies) -> bytes:
    """What arrives of a message that was accepted."""
    assert heard.queue_id, heard.replies
    message = lab.delivered(heard.queue_id)
    assert message is not None, lab.postfix.why_it_failed()
    return message


def verifies(lab: Lab, message: bytes) -> bool:
    """True if dkimpy accepts the first signature of a message, with the key as our DNS has it."""

    def text(name: bytes, timeout: int = 5) -> bytes:
        found = lab.dns.zone.lookup(name.decode(), "TXT")
        return b"".join(found.rrsets[-1][0].strings)

    return bool(dkim.verify(message, dnsfunc=text))


@pytest.mark.parametrize(
    ("folder", "store"),
    [(folder, "redis") for folder in fixture.find(CASES)] + [(CASES / name, "sqlite") for name in KEEP_STATE],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_recorded_session_comes_out_as_expected(
    lab: Lab, folder: Path, store: str, request: pytest.FixtureRequest
) -> None:
    case = fixture.read(folder)
    database = fixture.find(CASES).index(folder) % 16
    start(lab, case, f"{request.getfixturevalue('redis')}?db={database}" if store == "redis" else "")
    service = lab.service
    heard = play(case, servers(lab), TableResolver(lab.dns.zone))
    lab.stop()  # so that everything is in the log
    assert [] == differences(case, outcomes(case, heard, service.log, lab.delivered))


def test_what_is_submitted_arrives_with_a_signature_that_verifies(lab: Lab) -> None:
    case = fixture.read(SUBMITTED)
    start(lab, case)
    message = delivered(lab, only_message(lab, case))
    assert b"DKIM-Signature" in [field.name for field in parse(message)[0]]
    assert verifies(lab, message)


def test_a_signed_message_arrives_byte_for_byte(lab: Lab) -> None:
    case = fixture.read(SIGNED)
    start(lab, case)
    sent, arrived = crlf(case.files["message.eml"]), delivered(lab, only_message(lab, case))
    added, removed = header_changes(sent, arrived)
    assert ([b"Authentication-Results"], []) == ([field.name for field in added], removed)
    assert parse(sent)[1] == parse(arrived)[1]
    assert verifies(lab, arrived)


def test_mail_from_sendmail_is_signed(lab: Lab) -> None:
    start(lab, fixture.read(SUBMITTED))
    lab.postfix.sendmail(
        b"From: bob@example.org\nTo: alice@good.example\nSubject: from a cron job\n\nDone.\n",
        sender="bob@example.org",
        recipient="alice@good.example",
    )
    delivery = lab.sink.find(b"from a cron job")
    assert delivery is not None
    assert verifies(lab, delivery.content)


def test_mail_that_a_content_filter_hands_back_is_not_signed_again(lab: Lab) -> None:
    start(lab, fixture.read(SUBMITTED))
    with SmtpClient("127.0.0.1", lab.postfix.ports.reinject) as smtp:
        for command in ("EHLO filter", "MAIL FROM:<bob@example.org>", "RCPT TO:<alice@good.example>", "DATA"):
            smtp.command(command)
        smtp.content(b"From: bob@example.org\r\nSubject: filtered\r\n\r\nclean\r\n")
    delivery = lab.sink.find(b"Subject: filtered")
    assert delivery is not None
    assert b"DKIM-Signature" not in delivery.content


def test_the_workers_are_nobody(lab: Lab) -> None:
    start(lab, fixture.read(SIGNED))
    # one worker of each kind serves by now; the others may still be on their way
    uids: set[int] = set()
    deadline = time.monotonic() + 10
    while uids != {pwd.getpwnam("nobody").pw_uid} and time.monotonic() < deadline:
        uids = {os.stat(f"/proc/{pid}").st_uid for pid in lab.service.workers}
    assert {pwd.getpwnam("nobody").pw_uid} == uids


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_mail_goes_on_without_gatekeeper(lab: Lab, end: str) -> None:
    case = fixture.read(SIGNED)
    start(lab, case)
    delivered(lab, only_message(lab, case))  # so that Postfix knows gatekeeper, and holds a connection to it
    getattr(lab.service, end)()
    added, removed = header_changes(crlf(case.files["message.eml"]), delivered(lab, only_message(lab, case)))
    assert ([], []) == (added, removed)


ACTIONS = {
    # what a sender's entry says: what is answered at RCPT, what Postfix writes down, who gets it
    "ok": ("OK", "250 ", "", ["bob"]),
    "relay": ("RELAY", "250 ", "", ["bob"]),
    "digits": ("12345", "250 ", "", ["bob"]),
    "dunno": ("DUNNO", "250 ", "", ["bob"]),
    "reject": ("REJECT no thanks", "554 5.7.1 ", "reject: RCPT", []),
    "defer": ("DEFER later", "450 4.7.1 ", "reject: RCPT", []),
    "permanent": ("552 5.3.4 too large", "552 5.3.4 ", "reject: RCPT", []),
    "temporary": ("452 4.3.1 no room", "452 4.3.1 ", "reject: RCPT", []),
    "if-permit": ("DEFER_IF_PERMIT perhaps", "450 4.7.1 ", "reject: RCPT", []),
    "if-reject": ("DEFER_IF_REJECT perhaps", "250 ", "", ["bob"]),
    "hold": ("HOLD for a look", "250 ", "hold: RCPT", []),
    "discard": ("DISCARD unread", "250 ", "discard: RCPT", []),
    "redirect": ("REDIRECT carol@example.org", "250 ", "redirect: RCPT", ["carol"]),
    "bcc": ("BCC carol@example.org", "250 ", "bcc: RCPT", ["bob", "carol"]),
    "filter": ("FILTER retry:nothing", "250 ", "filter: RCPT", []),
    "prepend": ("PREPEND X-Seen-By: gatekeeper", "250 ", "", ["bob"]),
    "info": ("INFO look here", "250 ", "info: RCPT", ["bob"]),
    "warn": ("WARN strange", "250 ", "warn: RCPT", ["bob"]),
}


def test_every_action_of_an_access_table_takes_effect(lab: Lab, tmp_path: Path) -> None:
    table = "".join(f"{name}@strange.example {says}\n" for name, (says, *_) in ACTIONS.items())
    (tmp_path / "actions").write_text(table)
    (tmp_path / "gatekeeper.toml").write_text(
        'hostname = "mx.example.org"\n[policy]\nrestrictions = "check_sender_access hash:actions"'
    )
    tmp_path.chmod(0o755)
    lab.dns.zone = Zone.parse("")
    lab.run(tmp_path / "gatekeeper.toml")
    answers = {}
    with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
        smtp.command("EHLO client.example")
        for name in ACTIONS:
            smtp.command(f"MAIL FROM:<{name}@strange.example>")
            answers[name] = smtp.command("RCPT TO:<bob@example.org>")
            if answers[name].startswith("250"):
                smtp.command("DATA")
                smtp.content(b"From: x@strange.example\r\nSubject: an action\r\n\r\nHello\r\n")
            smtp.command("RSET")

    def received() -> dict[str, list[str]]:
        """The recipients of what has arrived, by the sender."""
        got: dict[str, list[str]] = {name: [] for name in ACTIONS}
        for delivery in lab.sink.deliveries:
            if delivery.sender.endswith("@strange.example"):
                got[delivery.sender.partition("@")[0]] += [to.partition("@")[0] for to in delivery.recipients]
        return {name: sorted(recipients) for name, recipients in got.items()}

    def unlogged() -> list[str]:
        """The actions of which Postfix has not written down yet what it should: it answers first."""
        log = lab.postfix.log.read_text(errors="replace")
        said = {name: action[2] for name, action in ACTIONS.items() if action[2]}
        return [name for name, what in said.items() if not re.search(f"{what}.* from=<{name}@strange", log)]

    wanted = {name: action[3] for name, action in ACTIONS.items()}
    assert until(lambda: wanted == received(), f"{wanted}, but got {received()}")
    assert [] == [name for name, action in ACTIONS.items() if not answers[name].startswith(action[1])]
    assert until(lambda: not unlogged(), f"Postfix's log of {unlogged()}")
    assert 1 == len(list((lab.postfix.queue / "hold").iterdir()))
    seen = [delivery.sender for delivery in lab.sink.deliveries if b"X-Seen-By: gatekeeper" in delivery.content]
    assert ["prepend@strange.example"] == seen
