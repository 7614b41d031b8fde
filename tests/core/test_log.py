# SPDX-License-Identifier: GPL-3.0-or-later
"""The log: one line for each decision, whatever strangers say."""

import io
import logging
import re
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core import log
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.core.verdict import PASS, Decision, Step, Verdict, defer_if_permit, reject
from gatekeeper.milter import edits
from gatekeeper.policy.protocol import action

CLIENT = Client(address=ip_address("192.0.2.1"), name="mail.example.com", port=4711)
REFUSED = reject("helo.non_fqdn", "504", "5.5.2", "<localhost>: need a fully qualified name")


def decided(request: Request, verdict: Verdict = PASS) -> Decision:
    return Decision(request, verdict, (Step("helo", "reject_non_fqdn_helo_hostname", verdict),), verdict)


def pairs(line: str) -> dict[str, str]:
    found = re.findall(r'(?:^| )([a-z_]+)=("[^"]*"|[^ "]*)', line)
    assert line == " ".join(f"{name}={value}" for name, value in found)
    return {name: log.unescape(value) for name, value in found}


def test_a_decision_is_one_line_of_pairs() -> None:
    request = Request(stage=Stage.RCPT, client=CLIENT, helo="localhost", sender="", recipient="b@example.org")
    assert (
        'side=policy trace=DEZ4WAGE stage=RCPT action="504 5.5.2 <localhost>: need a fully qualified name" '
        "reasons=helo.non_fqdn client=192.0.2.1 name=mail.example.com helo=localhost from=<> "
        "to=<b@example.org>"
    ) == log.decision_line(decided(request, REFUSED), "policy", action)


def test_what_only_would_have_been_answered_is_told_apart() -> None:
    request = Request(stage=Stage.RCPT)
    line = log.decision_line(Decision(request, PASS, (), REFUSED), "policy", action)
    assert ("DUNNO", REFUSED.reply) == (pairs(line)["action"], pairs(line)["judged"])


EARLY = defer_if_permit("greylist.early", "4.7.1", "Greylisted")


@pytest.mark.parametrize(
    ("side", "words", "said"),
    [("policy", action, "DEFER_IF_PERMIT 4.7.1 Greylisted"), ("milter", edits.answer, "450 4.7.1 Greylisted")],
)
def test_the_action_is_what_was_answered_in_the_words_of_the_protocol(side: str, words: log.Words, said: str) -> None:
    line = log.decision_line(decided(Request(stage=Stage.RCPT), EARLY), side, words)
    assert said == pairs(line)["action"]


def test_what_is_only_observed_is_told_from_what_counts() -> None:
    steps = (Step("client", "spf", REFUSED), Step("client", "greylist", EARLY, applied=False))
    found = pairs(log.decision_line(Decision(Request(stage=Stage.RCPT), REFUSED, steps, REFUSED), "policy", action))
    assert ("helo.non_fqdn,greylist.early", "greylist.early") == (found["reasons"], found["observed"])
    assert "judged" not in found


def test_both_sides_give_a_connection_the_same_trace_id() -> None:
    assert 8 == len(log.trace_id(CLIENT))
    assert log.trace_id(CLIENT) == log.trace_id(Client(address=ip_address("192.0.2.1"), port=4711))
    assert log.trace_id(CLIENT) != log.trace_id(Client(address=ip_address("192.0.2.1"), port=4712))


@given(helo=st.text(), sender=st.text(), recipient=st.text(), user=st.text(), queue_id=st.text())
def test_no_strangers_value_can_forge_a_line_or_a_pair(
    helo: str, sender: str, recipient: str, user: str, queue_id: str
) -> None:
    request = Request(
        stage=Stage.RCPT,
        client=CLIENT,
        helo=helo,
        sender=sender,
        recipient=recipient,
        sasl_user=user,
        queue_id=queue_id,
    )
    line = log.decision_line(decided(request), "policy", action)
    assert line.isascii()
    assert line.isprintable()
    assert {"side", "stage", "action", "client"} <= pairs(line).keys() <= NAMES


NAMES = {"side", "trace", "queue_id", "stage", "context", "action", "reasons"}
NAMES |= {"client", "name", "helo", "from", "to", "sasl_user"}


@given(st.binary(max_size=300))
def test_a_value_comes_back_as_it_was(data: bytes) -> None:
    value = data.decode("utf-8", "surrogateescape")
    assert value == log.unescape(log.escape(value))


def test_a_long_value_is_cut() -> None:
    assert 320 == len(log.escape(100_000 * "x"))


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.setup("info", stream)
    yield stream
    root.handlers[:], root.level = handlers, level


def test_a_line_break_from_outside_cannot_begin_a_record(written: io.StringIO) -> None:
    logging.getLogger("x").warning("odd: %s", "a\n2026-01-01 00:00:00 gatekeeper[1]: INFO action=OK\x1b[31m")
    _, second, end = written.getvalue().split("\n")
    assert second.startswith("    | 2026")
    assert "\x1b" not in second
    assert "" == end


def test_a_traceback_stays_with_its_record(written: io.StringIO) -> None:
    try:
        ip_address("no\naddress")
    except ValueError:
        logging.getLogger("x").exception("broken")
    first, *rest = written.getvalue().splitlines()
    assert not first.startswith("    | ")
    assert all(line.startswith("    | ") for line in rest)


def test_below_its_level_nothing_is_written(written: io.StringIO) -> None:
    logging.getLogger("x").debug("detail")
    assert "" == written.getvalue()


def test_a_decisions_line_is_what_logging_would_have_written(written: io.StringIO) -> None:
    logger = logging.getLogger("gatekeeper.test")
    decision = decided(Request(stage=Stage.RCPT, client=CLIENT, helo="key1234567.zen.dq.spamhaus.net"), REFUSED)
    log.write_decision(logger, decision, "policy", action)
    logger.info("%s", log.decision_line(decision, "policy", action))
    log.write_decision(logger, decision, "policy", action, logging.DEBUG)
    short, long = (line.partition("gatekeeper[") for line in written.getvalue().splitlines())
    assert long[2] == short[2]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", short[0])
    assert "key1234567" not in short[2]


def test_where_others_listen_a_decisions_line_is_a_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log.write_decision(logging.getLogger("gatekeeper.test"), decided(Request(stage=Stage.RCPT)), "policy", action)
    assert [log.decision_line(decided(Request(stage=Stage.RCPT)), "policy", action)] == caplog.messages
