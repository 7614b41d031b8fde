# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of a log: five notations, dates without a year, and whatever else stands in a file."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.maillog.lines import Line, LineParser

NEWEST = datetime(2026, 3, 2, 12, 0, tzinfo=UTC).timestamp()


def parse(text: str, newest: float = NEWEST) -> Line | None:
    return LineParser(newest).parse(text)


def local(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


def utc(text: str) -> float:
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Mar  1 03:04:05 mx postfix/submission/smtpd[12]: connect from x[192.0.2.1]",
            (local("2026-03-01 03:04:05"), "mx", "postfix/submission/smtpd", "12", "connect from x[192.0.2.1]"),
        ),
        (
            "2026-03-01T03:04:05.250000+01:00 mx opendkim[7]: 4B1: no: colon: matters",
            (utc("2026-03-01 02:04:05.25"), "mx", "opendkim", "7", "4B1: no: colon: matters"),
        ),
        (
            "2026-03-01T03:04:05Z mx dovecot: lmtp(1): hello",
            (utc("2026-03-01 03:04:05"), "mx", "dovecot", "", "lmtp(1): hello"),
        ),
        ("<22>Mar  1 03:04:05 mx postfix/qmgr[1]: x", (local("2026-03-01 03:04:05"), "mx", "postfix/qmgr", "1", "x")),
        (
            '<22>1 2026-03-01T03:04:05Z mx postfix/qmgr 1 - [a b="]\\""][c] \ufeffQ: removed',
            (utc("2026-03-01 03:04:05"), "mx", "postfix/qmgr", "1", "Q: removed"),
        ),
        (
            "<22>1 2026-03-01T03:04:05Z mx postfix/qmgr - - - Q: x",
            (utc("2026-03-01 03:04:05"), "mx", "postfix/qmgr", "", "Q: x"),
        ),
        (
            "2026-03-01 03:04:05.250 gatekeeper[9]: INFO side=policy trace=A",
            (local("2026-03-01 03:04:05") + 0.25, "", "gatekeeper", "9", "side=policy trace=A"),
        ),
        (
            "2026-03-01 03:04:05 #3(rspamd_proxy) <a1>; proxy; rspamd_task_write_log: id: <x>",
            (local("2026-03-01 03:04:05"), "", "rspamd", "3", "<a1>; proxy; rspamd_task_write_log: id: <x>"),
        ),
    ],
)
def test_each_notation_of_a_line_is_understood(text: str, line: tuple[float, str, str, str, str]) -> None:
    assert Line(*line) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mar",
        "Mar  1 03:04:05",
        "Mar  1 03:04:05 mx",
        "Mar  1 03:04:05 mx two words: no tag",
        "Mar 41 03:04:05 mx postfix/smtpd[1]: a day that does not exist",
        "Mar  1 25:04:05 mx postfix/smtpd[1]: an hour that does not exist",
        "Mär  1 03:04:05 mx postfix/smtpd[1]: another language",
        "Mar-01-03:04:05 mx postfix/smtpd[1]: other marks",
        "postfix/smtpd[1]: the head is cut",
        "2026-13-01T03:04:05Z mx postfix/smtpd[1]: a month that does not exist",
        "<22",
        "<x>Mar  1 03:04:05 mx postfix/qmgr[1]: no priority",
        "<22>1 2026-03-01T03:04:05Z mx postfix/qmgr",
        "<22><22><22>Mar  1 03:04:05 mx postfix/qmgr[1]: one priority is enough",
        "Mar  1 03:04:05 mx postfix/smtpd[1: the bracket is open",
    ],
)
def test_what_is_no_line_of_a_log_is_told_as_none(text: str) -> None:
    assert parse(text) is None


def years(stamps: list[str], newest: str) -> list[int]:
    parser = LineParser(local(newest))
    lines = [parser.parse(f"{stamp} mx postfix/qmgr[1]: x") for stamp in stamps]
    return [time.localtime(line.at).tm_year for line in lines if line]


@pytest.mark.parametrize(
    ("stamps", "newest", "told"),
    [
        (["Mar  1 00:00:00", "Mar  2 00:00:00"], "2026-03-02 01:00:00", [2026, 2026]),
        (["Dec 31 23:59:59", "Jan  1 00:00:00"], "2026-01-01 00:00:01", [2025, 2026]),
        (["Dec 31 23:59:59", "Jan  1 00:00:00"], "2025-12-31 23:59:59", [2025, 2026]),
        (["Apr  1 00:00:00"], "2026-03-02 00:00:00", [2025]),
        # The first line of the new year was written before the last of the old one.
        (
            ["Dec 31 23:59:58", "Jan  1 00:00:00", "Dec 31 23:59:59", "Jan  1 00:00:01"],
            "2026-01-01 12:00:00",
            [2025, 2026, 2025, 2026],
        ),
        (["Mar  2 00:00:00", "Mar  1 00:00:00"], "2026-03-02 01:00:00", [2026, 2026]),
        (["Feb 29 12:00:00"], "2024-03-01 00:00:00", [2024]),
    ],
)
def test_a_date_without_a_year_gets_the_year_that_the_age_of_the_file_tells(
    stamps: list[str], newest: str, told: list[int]
) -> None:
    assert told == years(stamps, newest)


@given(st.text(max_size=200) | st.from_regex(r"\A[A-Z<0-9][a-z0-9 >:T.+Z-]{0,40} [a-z]* ?[a-z/\[\]]*:? ?.*"))
def test_any_text_is_a_line_or_none(text: str) -> None:
    line = parse(text)
    assert line is None or isinstance(line.at, float)


def test_a_line_cut_anywhere_is_a_shorter_line_or_none() -> None:
    text = "Mar  1 03:04:05 mx postfix/submission/smtpd[12]: connect from x[192.0.2.1]"
    whole = parse(text)
    assert whole
    for end in range(len(text)):
        line = parse(text[:end])
        assert line is None or (line.at == whole.at and whole.text.startswith(line.text))
