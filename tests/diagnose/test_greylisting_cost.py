# SPDX-License-Identifier: GPL-3.0-or-later
"""What greylisting cost, as the log tells it: lines are those of real decisions."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.core.log import decision_line
from gatekeeper.core.verdict import Mode
from gatekeeper.diagnose.greylisting_cost import GreylistingCost, as_json, read_greylisting_cost, sentences
from gatekeeper.policy.protocol import action
from tests.support.checking import World, rcpt

PREFIX = "2026-11-22 20:15:01.123 gatekeeper[12]: INFO "


class Logged(World):
    """Writes down what it decides."""

    async def lines(self, *asked: tuple[float, str, str]) -> list[str]:
        """A line for each (seconds since the last one, sender, client's address)."""
        lines = []
        for wait, sender, address in asked:
            self.now += wait
            decision = await self.decide(rcpt(sender=sender, address=address, name="unknown"))
            lines.append(PREFIX + decision_line(decision, "policy", action))
        return lines


def world(mode: Mode = Mode.ENFORCE) -> Logged:
    return Logged("greylist", "", {"greylist": Greylist(mode=mode, learning=0, auto_allow=3)})


MAIL = (
    (0, "wanted@example.net", "192.0.2.1"),
    (0, "spam@example.com", "198.51.100.1"),
    (100, "wanted@example.net", "192.0.2.1"),
    (300, "wanted@example.net", "192.0.2.9"),
    (10, "wanted@example.net", "192.0.2.1"),
    (10, "bounce-1-u=x.example@list.example", "203.0.113.1"),
    (4000, "bounce-2-u=x.example@list.example", "203.0.113.1"),
)


async def test_wanted_mail_is_what_came_back_and_passed() -> None:
    found = read_greylisting_cost(await world().lines(*MAIL))
    assert GreylistingCost([400.0, 4000.0], found.by_sender, not_retried=1, passed_at_once=1) == found
    assert 3 == found.deferred
    assert {"example.net from 192.0.2.9": 1, "list.example from 203.0.113.1": 1} == found.by_sender


async def test_the_report_is_for_people_and_for_programs() -> None:
    found = read_greylisting_cost(await world().lines(*MAIL))
    told = list(sentences(found))
    assert "3 mails were asked to wait; 1 more were checked and did not have to" == told[0]
    assert "2 wanted mails came back and passed, after a median of 37 minutes" == told[2]
    assert "  the longest took 67 minutes" in told
    counted = as_json(found)
    assert (2, 2200.0, 4000.0) == (counted["wanted_that_waited"], counted["median_wait"], counted["longest_wait"])
    assert {"up to 10 minutes": 1, "up to half an hour": 0, "up to an hour": 0, "longer": 1} == counted["waits"]


async def test_who_becomes_known_while_waiting_has_waited() -> None:
    senders = [f"{name}@example.net" for name in "abcd"]
    lines = await world().lines(
        *((0, sender, "192.0.2.1") for sender in senders[:3]),
        (200, senders[3], "192.0.2.1"),
        *((50, sender, "192.0.2.1") for sender in [*senders[:2], *senders[:3]]),
        (0, senders[3], "192.0.2.1"),
    )
    assert [300.0, 350.0, 450.0, 250.0] == read_greylisting_cost(lines).waits


async def test_what_is_only_observed_delays_nobody_and_is_counted_apart() -> None:
    found = read_greylisting_cost(await world(Mode.OBSERVE).lines(*MAIL))
    assert (0, [], 0) == (found.deferred, found.waits, found.passed_at_once)
    assert (4, 3) == (found.would_wait, found.would_pass)
    assert {
        "example.net from 192.0.2.1": 2,
        "example.com from 198.51.100.1": 1,
        "list.example from 203.0.113.1": 1,
    } == found.observed_by_sender
    told = list(sentences(found))
    assert "4 mails would have been asked to wait, and 3 more were checked and would not; none waited" in told[0]
    assert "  2 example.net from 192.0.2.1" == told[2]
    assert 3 == len(told[2:])


@pytest.mark.parametrize("mode", Mode)
async def test_a_service_in_observe_mode_delays_nobody_whatever_its_checks_say(mode: Mode) -> None:
    if mode is Mode.OFF:
        return
    observing = world(mode)
    observing.observe = True
    found = read_greylisting_cost(await observing.lines(*MAIL))
    assert (0, 4, 3) == (found.deferred, found.would_wait, found.would_pass)


async def test_observed_and_enforced_greylisting_are_told_apart_in_one_log() -> None:
    found = read_greylisting_cost([*await world(Mode.OBSERVE).lines(*MAIL), *await world().lines(*MAIL)])
    assert (3, 1, 4, 3) == (found.deferred, found.passed_at_once, found.would_wait, found.would_pass)
    assert 4 == as_json(found)["would_wait"]
    assert any(line.startswith("3 mails were asked to wait") for line in sentences(found))


def test_a_log_from_before_tells_what_was_observed_by_what_was_judged() -> None:
    mail = "reasons=greylist.early waited=0s client=192.0.2.1 sender=<a@b.example> recipient=<c@d.example>"
    answers = ('action=DUNNO judged="450 4.7.1 x"', 'action="450 4.7.1 x"')
    found = read_greylisting_cost([f"{PREFIX}side=policy {answer} {mail}" for answer in answers])
    assert (1, 1) == (found.would_wait, found.deferred)


def test_an_empty_log_says_so() -> None:
    assert "no wanted mail waited" == list(sentences(read_greylisting_cost([])))[-1]


async def test_the_command_reads_rotated_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = await world().lines(*MAIL)
    (tmp_path / "log.1.gz").write_bytes(gzip.compress("\n".join(lines[:3]).encode() + b"\n\xff postfix side=x\n"))
    (tmp_path / "log").write_text("\n".join(lines[3:]))
    logs = [str(tmp_path / name) for name in ("log.1.gz", "log")]
    assert 0 == cli.main(["greylist", "report", "--json", *logs])
    assert 2 == json.loads(capsys.readouterr().out)["wanted_that_waited"]
    assert 0 == cli.main(["greylist", "report", *logs])
    assert "3 mails were asked to wait" in capsys.readouterr().out


def test_a_log_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["greylist", "report", "/nonexistent/log"])
    assert "cannot read /nonexistent/log: No such file" in capsys.readouterr().err


@given(st.lists(st.text(), max_size=4), st.sampled_from(["early", "passed", "known"]))
def test_any_line_is_taken_or_passed_over(texts: list[str], reason: str) -> None:
    joined = " ".join(texts)
    read_greylisting_cost(
        [joined, f" side=policy reasons=greylist.{reason} action=450 waited={joined}", f" side={joined}greylist."]
    )
