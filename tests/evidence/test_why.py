# SPDX-License-Identifier: GPL-3.0-or-later
"""The story of one mail: found by what people know of it, told so that a terminal bears it."""

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.cli.common import FINDING, OK, USAGE
from gatekeeper.evidence.again import sessions
from gatekeeper.evidence.why import as_json, describe, finder, sentences
from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.fates import Fate, fate
from gatekeeper.maillog.lines import Line
from gatekeeper.maillog.programs import read_events
from gatekeeper.maillog.stories import Story, join
from tests.support.needs import ROOT, require_corpus

LINES = tomllib.loads((ROOT / "tests" / "maillog" / "lines.toml").read_text("utf-8"))["line"]
PEER = "mail.example.com[192.0.2.1]"
ASKED = "client=192.0.2.1 helo=h.example sender=<a@example.com> recipient=<b@example.org>"
ENVELOPE = "from=<a@example.com> to=<b@example.org> proto=ESMTP helo=<h.example>"
SENT = (
    "4B1F2A0: to=<inbox@example.org>, orig_to=<b@example.org>, relay=mx[192.0.2.9]:25, delay=1, dsn=2.0.0, "
    "status=sent (250 ok)"
)
GREYLISTED = f"450 4.2.0 <b@example.org>: Recipient address rejected: Greylisted; {ENVELOPE}"
TOO_LATE = f"END-OF-MESSAGE from {PEER}: 5.7.1 no; {ENVELOPE}"
LATE_FOR_NOW = TOO_LATE.replace("5.7", "4.7")
MAIL = (
    ("postfix/smtpd[7]", f"connect from {PEER}"),
    ("gatekeeper[1]", f"side=policy trace=T stage=RCPT action=DUNNO reasons=spf.pass {ASKED}"),
    ("postfix/smtpd[7]", f"4B1F2A0: client={PEER}"),
    ("postfix/cleanup[8]", "4B1F2A0: message-id=<Some.Id@example.com>"),
    ("postfix/qmgr[9]", "4B1F2A0: from=<a@example.com>, size=858, nrcpt=1 (queue active)"),
    ("postfix/smtp[10]", SENT),
    ("postfix/qmgr[9]", "4B1F2A0: removed"),
    ("postfix/smtpd[7]", f"disconnect from {PEER}"),
)  # fmt: skip
REFUSAL = (
    ("postfix/smtpd[7]", f"connect from {PEER}"),
    ("gatekeeper[1]", f'side=policy ref=7K3QX stage=RCPT action="450 4.2.0 Wait" reasons=greylist.early {ASKED}'),
    ("postfix/smtpd[7]", f"NOQUEUE: reject: RCPT from {PEER}: {GREYLISTED}"),
    ("postfix/smtpd[7]", f"disconnect from {PEER}"),
)  # fmt: skip


def told(*said: tuple[str, str]) -> Story:
    lines = []
    for second, (tag, text) in enumerate(said):
        program, _, pid = tag.partition("[")
        lines.append(Line(1_772_334_245.0 + second, "mx", program, pid.rstrip("]"), text))
    (story,) = join(read_events(lines, Counter()))
    return story


def as_log(said: Sequence[tuple[str, str]]) -> str:
    return "".join(f"2026-03-01T03:04:{n:02}+00:00 mx {tag}: {text}\n" for n, (tag, text) in enumerate(said))


@pytest.mark.parametrize(
    "what",
    [
        *("4B1F2A0", " 4B1F2A0 ", "<Some.Id@example.com>", "some.id@EXAMPLE.com"),
        *("a@example.com", "A@Example.Com", "<a@example.com>", "b@example.org", "inbox@example.org", "example.org"),
        *("192.0.2.1", "[192.0.2.1]", "mail.example.com", "h.example"),
    ],
)
def test_a_mail_is_found_by_whatever_is_known_of_it(what: str) -> None:
    assert finder(what)(told(*MAIL))


@pytest.mark.parametrize(
    "what", ["4B1F2A", "4b1f2a0", "c@example.org", "ample.org", "192.0.2.2", "Some.Id", "", "<>", "7K3QX"]
)
def test_a_mail_is_not_found_by_something_else(what: str) -> None:
    assert not finder(what)(told(*MAIL))


def test_a_refusal_is_found_by_the_reference_that_its_sender_reads_to_you() -> None:
    assert finder("7k3qx")(told(*REFUSAL))


def test_a_story_says_what_became_of_the_mail_and_then_what_each_program_did() -> None:
    lines = list(sentences(told(*MAIL)))
    assert "Mail 4B1F2A0, <Some.Id@example.com> from <a@example.com> to <b@example.org>" == lines[0]
    assert ["  Delivered.", "  <inbox@example.org>: sent by mx[192.0.2.9]:25: 250 ok"] == lines[1:3]
    assert len(MAIL) == len([line for line in lines if line[2:4].isdigit() and line[4] == ":"])
    (ours,) = (line for line in lines if "gatekeeper" in line)
    assert ours.endswith("gatekeeper           policy at RCPT for <b@example.org> answers DUNNO (spf.pass)")


def test_a_refusal_says_who_refused_what() -> None:
    lines = list(sentences(told(*REFUSAL)))
    assert "A session of mail.example.com[192.0.2.1] from <a@example.com> to <b@example.org>" == lines[0]
    assert "  Refused for now." == lines[1]
    assert "450 4.2.0 <b@example.org>: Recipient address rejected: Greylisted" in lines[2]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (MAIL, Fate.DELIVERED),
        (MAIL[:5], Fate.TAKEN),
        ((MAIL[0], MAIL[2], MAIL[7]), Fate.GONE),
        (MAIL[:2], Fate.UNKNOWN),
        (REFUSAL, Fate.DEFERRED),
        (tuple((tag, text.replace("450", "550")) for tag, text in REFUSAL), Fate.REFUSED),
        (tuple((tag, text.replace("status=sent", "status=bounced")) for tag, text in MAIL), Fate.BOUNCED),
        (tuple((tag, text.replace("status=sent", "status=deferred")) for tag, text in MAIL[:6]), Fate.WAITING),
        ((*MAIL[:6], ("postfix/smtp[10]", MAIL[5][1].replace("inbox", "x").replace("sent", "bounced"))), Fate.PARTLY),
        ((*MAIL[:4], ("postfix/cleanup[8]", f"4B1F2A0: milter-reject: {TOO_LATE}")), Fate.REFUSED),
        ((*MAIL[:4], ("postfix/cleanup[8]", f"4B1F2A0: milter-reject: {LATE_FOR_NOW}")), Fate.DEFERRED),
    ],
)  # fmt: skip
def test_what_became_of_a_mail_is_told(said: Sequence[tuple[str, str]], expected: Fate) -> None:
    assert expected is fate(told(*said))


def test_each_kind_of_event_has_its_words() -> None:
    for line in LINES:
        said = describe(
            Event(1.0, "mx", line["program"], "7", line.get("queue_id", ""), Kind(line["kind"]), line.get("fields", {}))
        )
        assert said.isprintable()
        assert said
    assert set(Kind) - {Kind.DECIDED} == {Kind(line["kind"]) for line in LINES}


@given(st.sampled_from(LINES), st.text(max_size=40))
def test_what_a_stranger_wrote_never_reaches_a_terminal_raw(line: dict[str, object], evil: str) -> None:
    fields = line.get("fields", {})
    assert isinstance(fields, dict)
    event = Event(
        1.0,
        "mx",
        "postfix/smtpd",
        "7",
        "4B1F2A0",
        Kind(str(line["kind"])),
        {name: f"{value}{evil}" for name, value in fields.items()},
    )
    story = Story("mx", ["4B1F2A0"], [event], message_id=evil)
    assert all(text.isascii() and text.isprintable() for text in sentences(story))


def test_a_story_for_programs_has_every_event() -> None:
    told_as_json = as_json(told(*MAIL))
    assert (["4B1F2A0"], "delivered", "a@example.com", 8) == (
        *(told_as_json[name] for name in ("queue_ids", "fate", "sender")), len(told_as_json["events"]),
    )  # fmt: skip
    json.dumps(told_as_json)


def test_a_mail_is_asked_about_again_as_its_client_sent_it() -> None:
    (session,) = sessions(told(*MAIL))
    assert ("192.0.2.1", "mail.example.com", "h.example", "a@example.com", "b@example.org") == (
        str(session.address), session.name, session.helo, session.sender, session.recipient,
    )  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["why", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_tells_the_last_stories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "mail.log"
    log.write_text(as_log(MAIL) + as_log(REFUSAL))
    status, out, err = run(capsys, "example.com", str(log), "--last", "1")
    assert (OK, "") == (status, err)
    assert out.startswith("2 stories; these are the last 1")
    assert 1 == out.count("connection of")
    assert 2 == len(json.loads(run(capsys, "example.com", str(log), "--json")[1]))


def test_what_the_log_does_not_know_is_a_finding_and_what_cannot_be_read_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "mail.log"
    log.write_text(as_log(MAIL))
    said = "gatekeeper: the log says nothing about '4B1F2A9'\n"
    assert (FINDING, "", said) == run(capsys, "4B1F2A9", str(log))
    with pytest.raises(SystemExit) as exit_status:
        cli.main(["why", "4B1F2A0", str(tmp_path / "none")])
    assert exit_status.value.code == USAGE
    assert "none cannot be read: No such file" in capsys.readouterr().err


def test_what_would_be_answered_now_is_said_beside_what_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.toml").write_text(
        'hostname = "mx.example.org"\nmynetworks = "127.0.0.0/8"\nstore.url = "memory:"\n'
        'policy.restrictions = ["reject_unknown_sender_domain"]\n'
    )
    (tmp_path / "dns.zone").write_text("example.com. MX 0 .\n")
    (tmp_path / "mail.log").write_text(as_log(MAIL))
    status, out, _ = run(
        capsys,
        "4B1F2A0",
        str(tmp_path / "mail.log"),
        "--now",
        "--config",
        str(tmp_path / "g.toml"),
        "--dns",
        str(tmp_path / "dns.zone"),
    )
    assert status == OK
    assert (
        "What would be answered now\n"
        "192.0.2.1 (mail.example.com), HELO h.example, from <a@example.com>, to <b@example.org>" in out
    )
    assert "Verdict: refused" in out


def test_a_mail_of_a_real_relay_is_told_across_its_filter(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "115B53012029", str(require_corpus("maillog/mail.log")))
    assert (OK, "") == (status, err)
    assert out.startswith("Mail D70C13012026, 115B53012029,")
    assert "signed with d=" in out
