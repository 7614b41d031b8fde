# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs that others wrote: a real relay's two days, and those of a real Postfix with gatekeeper beside it."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper import cli
from gatekeeper.core.message import crlf
from gatekeeper.maillog.events import Kind
from gatekeeper.maillog.mail_log import MailLog
from gatekeeper.maillog.stories import Story
from gatekeeper.replay import fixture
from gatekeeper.replay.smtp import SmtpClient
from tests.lab import Lab
from tests.support.lab import new_lab
from tests.support.needs import ROOT, require_corpus, require_program
from tests.support.service import until

CASE = fixture.read(ROOT / "tests" / "smtp_fixtures" / "clean-signed-mail")


def relay() -> list[Path]:
    """Two days of a relay with opendkim, opendmarc, policyd-spf, amavis and postscreen."""
    return [require_corpus("maillog/mail.log"), require_corpus("maillog/mail.log.1")]


def test_two_days_of_a_relay_are_read_to_the_last_line() -> None:
    with MailLog(relay()) as log:
        kinds = Counter(event.kind for event in log.events())
    assert (7534, 0, 0) == (log.tally.lines, log.tally.unreadable, log.tally.backwards)
    # What a person counts with grep.
    counted = {Kind.MESSAGE_ID: 311, Kind.REMOVED: 311, Kind.REFUSED: 8, Kind.SIGNED: 49, Kind.SPF: 108}
    assert counted == {kind: kinds[kind] for kind in counted}
    assert {"dovecot", "amavis", "postfix/anvil", "postfix/scache"} == set(log.foreign)


def test_each_mail_of_the_relay_is_one_story_though_a_filter_gave_it_another_queue_id() -> None:
    with MailLog(relay()) as log:
        stories = list(log.stories())
    mails = [story for story in stories if story.queue_ids]
    # 311 messages, and one queue file whose client went away before it sent any. All but that and a bounce passed the
    # filter; what was submitted is signed.
    assert 312 == sum(len(story.queue_ids) for story in mails)
    assert {2: len(mails) - 2, 1: 2} == Counter(len(story.queue_ids) for story in mails)
    submitted = [story for story in mails if story.first("sasl_user")]
    assert 49 == len(submitted) == sum(any(e.kind is Kind.SIGNED for e in story.events) for story in submitted)
    spf = [story for story in mails if any(event.kind is Kind.SPF for event in story.events)]
    assert spf
    for story in spf:
        assert story.first("client", Kind.SPF) == story.first("client", Kind.ACCEPTED)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab(CASE.zone) as lab:
        assert CASE.config is not None
        lab.run(CASE.config, {})
        yield lab


@pytest.mark.integration("gatekeeper", "postfix")
def test_a_log_played_through_the_configuration_that_made_it_shows_no_difference(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (client, helo, sender) in enumerate(
        (
            ("192.0.2.14", "mail.good.example", "alice@good.example"),
            ("192.0.2.11", "localhost", "alice@good.example"),
            ("192.0.2.12", "mail.good.example", "alice@nowhere.example"),
            ("192.0.2.13", "mail.good.example", ""),
        )
    ):
        with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
            smtp.xclient({"ADDR": client, "NAME": "mail.good.example"})
            smtp.command(f"EHLO {helo}")
            smtp.command(f"MAIL FROM:<{sender}>")
            if smtp.command(f"RCPT TO:<bob{number}@example.org>")[0] == "2":
                smtp.command("DATA")
                smtp.content(b"Subject: x\r\n\r\nx\r\n")

    def written() -> bool:
        said = lab.postfix.log.read_text() + lab.service.log
        return all(f"bob{number}@example.org" in said for number in range(4)) and "bob3@example.org>, relay" in said

    until(written, "Postfix wrote it all down")
    (tmp_path / "dns.zone").write_text(CASE.zone)
    assert lab.config is not None
    words = ["backtest", str(lab.postfix.log), str(lab.service.log_file), "--config", str(lab.config), "--json"]
    cli.main([*words, "--dns", str(tmp_path / "dns.zone")])
    found = json.loads(capsys.readouterr().out)
    assert ([], {}) == (found["changes"], found["unknown"])
    assert found["asked"] >= 4
    assert found["asked"] == found["same"] + found["kept"]


@pytest.mark.integration("gatekeeper", "postfix")
def test_a_real_postfix_and_our_own_lines_come_to_one_story_for_each_mail_and_refusal(lab: Lab) -> None:
    with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
        smtp.xclient({"ADDR": "192.0.2.10", "NAME": "mail.good.example"})
        for command in ("EHLO mail.good.example", "MAIL FROM:<alice@good.example>", "RCPT TO:<bob@example.org>"):
            assert "2" == smtp.command(command)[0]
        assert "5" == smtp.command("RCPT TO:<eve@other.example>")[0]
        assert "3" == smtp.command("DATA")[0]
        answer = smtp.content(crlf(CASE.files["message.eml"]))
        assert answer.startswith("250")
        queue_id = answer.split()[-1]
    with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
        smtp.xclient({"ADDR": "192.0.2.99", "NAME": "bad.example"})
        smtp.command("EHLO localhost")
        smtp.command("MAIL FROM:<mallory@good.example>")
        assert "5" == smtp.command("RCPT TO:<bob@example.org>")[0]

    def stories() -> list[Story]:
        with MailLog([lab.postfix.log, lab.service.log_file]) as log:
            return list(log.stories())

    def whole(story: Story) -> bool:
        return {Kind.REMOVED, Kind.DISCONNECTED} <= {event.kind for event in story.events}

    until(lambda: any(queue_id in story.queue_ids and whole(story) for story in stories()), "Postfix wrote it all down")
    mail = next(story for story in stories() if queue_id in story.queue_ids)
    decisions = [event.fields for event in mail.events if event.kind is Kind.DECIDED]
    assert {"policy", "milter"} == {decision["side"] for decision in decisions}
    assert {"bob@example.org"} == {
        one["recipient"] for one in decisions if one["side"] == "policy" and "recipient" in one
    }
    assert ["eve@other.example"] == [event.fields["recipient"] for event in mail.events if event.kind is Kind.REFUSED]
    assert "alice@good.example" == mail.first("sender", Kind.QUEUED)
    refused = next(story for story in stories() if story.first("client", Kind.REFUSED) == "192.0.2.99")
    (decision,) = (event.fields for event in refused.events if event.kind is Kind.DECIDED)
    assert "helo.non_fqdn" in decision["reasons"]
    assert [decision["sender"], decision["recipient"]] == [
        refused.first(name, Kind.REFUSED) for name in ("sender", "recipient")
    ]


@pytest.mark.integration("systemd-journal-remote")
def test_a_real_journal_is_read_by_journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = require_program("systemd-journal-remote", "systemd-journal-remote")
    entries = (
        ("postfix/qmgr", 2, b"MESSAGE=4B1F2A0: removed"),
        ("gatekeeper", 3, b"MESSAGE=side=policy stage=RCPT reasons=a client=192.0.2.1 recipient=<b@y>"),
        ("postfix/cleanup", 2, b"MESSAGE\n" + (26).to_bytes(8, "little") + b"4B1F2A0: message-id=<\xffx@y>"),
        ("kernel", 0, b"MESSAGE=nothing about mail"),
    )
    export = b"".join(
        b"__REALTIME_TIMESTAMP=%d\n_HOSTNAME=mx\nSYSLOG_IDENTIFIER=%s\nSYSLOG_FACILITY=%d\n_PID=7\n%s\n\n"
        % (1_772_334_245_000_000 + number * 1_000_000, program.encode(), facility, message)
        for number, (program, facility, message) in enumerate(entries)
    )
    (tmp_path / "export").write_bytes(export)
    subprocess.run([writer, "-o", str(tmp_path / "a.journal"), str(tmp_path / "export")], check=True)
    # The journal of this machine is none of a test's business: journalctl is told of another.
    real = require_program("journalctl", "systemd-journal-remote")
    (tmp_path / "journalctl").write_text(f'#!/bin/sh\nexec {real} --file {tmp_path}/a.journal "$@"\n')
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with MailLog(journal=True) as log:
        events = list(log.events())
    assert [Kind.REMOVED, Kind.DECIDED, Kind.MESSAGE_ID] == [event.kind for event in events]
    assert (3, 0, []) == (log.tally.lines, log.tally.unreadable, log.tally.damaged)
