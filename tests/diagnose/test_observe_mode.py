# SPDX-License-Identifier: GPL-3.0-or-later
"""In observe mode nothing is claimed that did not happen: what the real service writes, and what is read out of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper import cli
from gatekeeper.core.log import read_decision
from tests.support.milter_client import CONTINUE, MilterClient, Outcome
from tests.support.service import Service, need_milter
from tests.support.signing_world import write_key

pytestmark = pytest.mark.integration("gatekeeper")

CONFIG = """
{mode}
hostname = "mx.example"
mynetworks = ["127.0.0.0/8"]
[dns]
nameservers = ["127.0.0.1:9"]
timeout = "100ms"
[store]
url = "memory:"
[policy]
listen = "inet:127.0.0.1:0"
workers = 1
restrictions = ["reject_invalid_helo_hostname", "greylist"]
[checks.greylist]
mode = "{greylist}"
clients = "all"
learning = 0
[checks.dkim]
mode = "enforce"
required_headers = true
[milter]
listen = "unix:{folder}/milter.sock"
workers = 1
[signing]
key_table = ["k example.com:mail:{folder}/mail.private", "b broken.example:mail:{folder}/none.private"]
signing_table = ["example.com k", "broken.example b"]
"""
REQUEST = (
    "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nclient_name=mail.example.net\n"
    "helo_name={helo}\nsender=ann@example.net\nrecipient=bob@example.com\ninstance={instance}\n\n"
)
MAIL = (b"ann@example.com", b"ann@broken.example", b"")


@dataclass(frozen=True, slots=True)
class Played:
    """What was answered, and what was written down."""

    answers: list[bytes]
    outcomes: list[Outcome]
    log: Path

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def decisions(self, side: str) -> list[dict[str, str]]:
        found = [read_decision(line) for line in self.lines]
        return [decision for decision in found if decision is not None and decision["side"] == side]


def play(folder: Path, *, mode: str = "", greylist: str = "enforce") -> Played:
    folder.chmod(0o755)
    write_key(folder / "mail.private")
    (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder, mode=mode, greylist=greylist))
    service = Service(folder / "gatekeeper.toml", "run")
    service.wait_for("^listening milter")
    answers, outcomes = [], []
    with service.policy() as policy:
        for number, helo in enumerate(("mail.example.net", "a..b")):
            policy.sendall(REQUEST.format(helo=helo, instance=number).encode())
            answers.append(policy.recv(1000))
    for sender in MAIL:
        with MilterClient(f"{folder}/milter.sock") as client:
            client.open(client="127.0.0.1")
            client.envelope(sender)
            header = b"Date: x\r\nFrom: <" + sender + b">\r\n" if sender else b"Subject: no From\r\n"
            outcomes.append(client.content(header + b"\r\nHello\r\n"))
    service.end()
    (folder / "log").write_text("\n".join(service.lines))
    return Played(answers, outcomes, folder / "log")


@pytest.fixture(scope="module")
def observed() -> Iterator[Played]:
    """The whole service in observe mode."""
    need_milter()
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        yield play(Path(name), mode='mode = "observe"')


@pytest.fixture(scope="module")
def greylist_observed() -> Iterator[Played]:
    """One check in observe mode."""
    need_milter()
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        yield play(Path(name), greylist="observe")


def test_a_service_that_only_observes_says_so_at_its_start(observed: Played, greylist_observed: Played) -> None:
    assert 1 == sum('WARNING mode = "observe": nothing is refused, delayed, signed' in line for line in observed.lines)
    said = [line for line in greylist_observed.lines if "only observed" in line]
    assert ["greylist"] == [line.rpartition(": ")[2] for line in said]


def test_what_was_answered_and_what_would_have_been_are_told_apart(observed: Played) -> None:
    assert [b"action=DUNNO\n\n"] * 2 == observed.answers
    waiting, refused = observed.decisions("policy")
    assert ("DUNNO", "greylist.early") == (waiting["action"], waiting["observed"])
    assert waiting["judged"].startswith("DEFER_IF_PERMIT 4.7.1 Greylisted")
    assert ("DUNNO", "501 5.5.2") == (refused["action"], refused["judged"][:9])


def test_mail_that_left_unsigned_is_not_called_signed(observed: Played, capsys: pytest.CaptureFixture[str]) -> None:
    assert [(CONTINUE, [], [])] * 3 == [(one.answer, one.fields, one.removed) for one in observed.outcomes]
    assert not [line for line in observed.lines if "sign.ok" in line]
    unsigned, deferred, malformed = observed.decisions("milter")
    assert ("DUNNO", "sign.observed", "sign.observed") == (
        unsigned["action"],
        unsigned["reasons"],
        unsigned["observed"],
    )
    assert unsigned["why"].endswith("it would have been signed with d=example.com s=mail")
    assert ("DUNNO", "sign.bad_key", "451 4.7.5") == (deferred["action"], deferred["reasons"], deferred["judged"][:9])
    assert ("DUNNO", "550 5.6.0") == (malformed["action"], malformed["judged"][:9])
    cli.main(["dkim", "report", str(observed.log)])
    signed, would, *_ = capsys.readouterr().out.splitlines()
    assert "signed: 0; looked like ours and not signed: 1" == signed
    assert would.endswith("would have been signed: 1")
    cli.main(["dkim", "report", "--json", str(observed.log)])
    found = json.loads(capsys.readouterr().out)
    assert (0, 1, 1) == (found["signed"], found["would_sign"], found["missed"])


def test_a_check_that_is_observed_alone_claims_nothing_either(greylist_observed: Played) -> None:
    waiting, refused = greylist_observed.decisions("policy")
    assert (b"action=DUNNO\n\n", "DUNNO") == (greylist_observed.answers[0], waiting["action"])
    assert ("DEFER_IF_PERMIT", "greylist.early") == (waiting["judged"].split()[0], waiting["observed"])
    assert greylist_observed.answers[1] == f"action={refused['action']}\n\n".encode()
    assert "judged" not in refused
    signed, *_ = greylist_observed.decisions("milter")
    assert ("sign.ok", None) == (signed["reasons"], signed.get("observed"))


def test_what_greylisting_would_have_delayed_is_reported(
    observed: Played, greylist_observed: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    for log in (observed.log, greylist_observed.log):
        assert 0 == cli.main(["greylist", "report", str(log)])
        first, _, who = capsys.readouterr().out.splitlines()
        assert 'only observed (mode = "observe"): 1 mails would have been asked to wait' in first
        assert "  1 example.net from mail.example.net" == who
