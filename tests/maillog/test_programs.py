# SPDX-License-Identifier: GPL-3.0-or-later
"""What each program writes, as an event: real lines, with the names in them made up."""

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.log import escape
from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.lines import Line
from gatekeeper.maillog.programs import read_events

LINES = tomllib.loads((Path(__file__).parent / "lines.toml").read_text("utf-8"))["line"]


def event(program: str, text: str) -> Event | None:
    return next(read_events([Line(1.0, "mx", program, "7", text)], Counter()), None)


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line['program']}-{line['kind']}")
def test_a_line_is_understood(line: dict[str, Any]) -> None:
    found = event(line["program"], line["text"])
    assert found is not None
    told = (line.get("queue_id", ""), line["kind"], line.get("fields", {}))
    assert told == (found.queue_id, found.kind, dict(found.fields))


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("postfix/anvil", "statistics: max connection rate 1/60s for (smtpd:192.0.2.1) at Jan 27 06:25:01"),
        ("postfix/smtpd", "NOQUEUE: something new"),
        ("postfix/smtpd", "statistics: none"),
        ("postfix/qmgr", "4B1F2A0: skipped, still being delivered"),
        ("postfix/cleanup", "table hash:/etc/postfix/virtual(0,lock|fold_fix) has changed -- restarting"),
        ("dovecot", "lmtp(1): connect from local"),
        ("gatekeeper", "listening policy inet:127.0.0.1:10040"),
        ("opendkim", "OpenDKIM Filter v2.11.0 starting (args: -f)"),
        ("opendmarc", "4B1F2A0: a b c"),
        ("postgrey", "cleaning up old logs..."),
        ("policyd-spf", "spfcheck: pyspf result: \"['None', '', 'helo']\""),
        ("rspamd", "<1a2b3c>; proxy; proxy_milter_finish_handler: finished milter connection"),
    ],
)
def test_a_line_that_tells_nothing_about_a_mail_is_no_event(program: str, text: str) -> None:
    assert event(program, text) is None


def test_our_own_line_is_read_back_whatever_strangers_said() -> None:
    helo = '"; from=<x> to=<y> side=milter reasons=none\n'
    found = event(
        "gatekeeper",
        f"side=policy trace=AB queue_id=4B1F2A0 reasons=helo.x helo={escape(helo)} sender=<> recipient=<b@x>",
    )
    assert found is not None
    assert ("4B1F2A0", Kind.DECIDED) == (found.queue_id, found.kind)
    assert (helo, "", "b@x", "policy") == tuple(found.fields[name] for name in ("helo", "sender", "recipient", "side"))


def test_a_stranger_cannot_write_a_line_of_ours_into_postfixs() -> None:
    helo = "h side=policy reasons=spf.pass"
    text = f"NOQUEUE: reject: RCPT from x[192.0.2.1]: 550 5.1.1 no; from=<> to=<b@x> proto=SMTP helo=<{helo}>"
    found = event("postfix/smtpd", text)
    assert found is not None
    assert (Kind.REFUSED, helo) == (found.kind, found.fields["helo"])


PROGRAMS = sorted({line["program"] for line in LINES})
WORDS = sorted({word for line in LINES for word in re.findall(r"[\w.@-]+|\W+", line["text"])})


@given(st.sampled_from(PROGRAMS), st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=14).map("".join))
def test_any_text_of_any_program_is_an_event_or_none(program: str, text: str) -> None:
    found = event(program, text)
    assert found is None or all(isinstance(value, str) for value in found.fields.values())


def test_foreign_programs_are_counted() -> None:
    foreign: Counter[str] = Counter()
    lines = [Line(1.0, "mx", name, "", "x") for name in ("dovecot", "dovecot", "postfix/smtpd", "kernel")]
    assert [] == list(read_events(lines, foreign))
    assert {"dovecot": 2, "kernel": 1} == foreign
