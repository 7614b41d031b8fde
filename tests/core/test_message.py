# SPDX-License-Identifier: GPL-3.0-or-later
"""Splitting a message loses nothing and never raises."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatekeeper.core.message import Header, crlf, from_file, parse

PIECES = st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b"A", b"from", b"\x00", b"\xff", b"A: b\r\n"])
RAW = st.lists(PIECES, max_size=30).map(b"".join)


def join(headers: list[Header], body: bytes) -> bytes:
    """What went over the wire."""
    return b"".join(field.line + b"\r\n" for field in headers) + b"\r\n" + body


def test_a_message_is_split_into_exact_fields_and_body() -> None:
    headers, body = parse(b"From: a@b\r\nSubject:  two\r\n\tlines \r\n\r\nbody\r\n")
    assert [Header(b"From", b" a@b"), Header(b"Subject", b"  two\r\n\tlines ")] == headers
    assert b"body\r\n" == body


@pytest.mark.parametrize(
    ("raw", "names", "body"),
    [
        (b"", [], b""),
        (b"\r\nbody", [], b"body"),
        (b"A: b", [b"A"], b""),
        (b"A: b\r\n", [b"A"], b""),
        (b"A: b\r\nno field\r\n", [b"A"], b"no field\r\n"),
        (b" A: b\r\n", [], b" A: b\r\n"),
        (b": b\r\n", [], b": b\r\n"),
        (b"A:\r\n\r\n", [b"A"], b""),
        (b"A \t: b\r\n\r\n", [b"A"], b""),
        (b"A: b\nC: d\r\n\r\n", [b"A"], b""),
        (b"\xff: b\r\n", [], b"\xff: b\r\n"),
    ],
)
def test_the_first_line_that_is_no_field_ends_the_header(raw: bytes, names: list[bytes], body: bytes) -> None:
    headers, rest = parse(raw)
    assert (names, body) == ([field.name for field in headers], rest)


def test_a_space_before_the_colon_does_not_hide_a_field() -> None:
    # Postfix's cleanup(8) rewrites it in the same way before any milter sees it
    assert [Header(b"From", b" a@b")] == parse(b"From : a@b\r\n\r\n")[0]


MBOX = b"From joe@example.com Sun Nov 29 14:17:37 2026"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("lines", [[MBOX], [b">" + MBOX], [MBOX, b">>" + MBOX], [b"From "]])
def test_the_lines_with_which_a_mailbox_begins_a_message_are_read_as_postfix_reads_them(
    lines: list[bytes], end: bytes
) -> None:
    raw = end.join([*lines, b"Subject: x", b"", MBOX, b""])
    assert ([Header(b"Subject", b" x")], MBOX + b"\r\n") == from_file(raw)
    made = [Header(b"X-Mailbox-Line", b" " + line) for line in lines]
    assert ([*made, Header(b"Subject", b" x")], MBOX + b"\r\n") == parse(crlf(raw))


@pytest.mark.parametrize("raw", [MBOX, MBOX + b"\r\n", b"From ", b"From \n" * 3])
def test_a_file_of_nothing_but_such_lines_is_empty(raw: bytes) -> None:
    assert ([], b"") == from_file(raw)


@given(raw=RAW)
def test_every_other_file_is_read_like_what_comes_by_smtp(raw: bytes) -> None:
    assert from_file(raw) == parse(crlf(raw))


FIELDS = st.builds(
    Header,
    st.from_regex(rb"[!-9;-~]{1,12}", fullmatch=True),
    st.lists(st.sampled_from([b"a", b":", b" ", b"\r\n ", b"\r\n\t", b"\xe9", b"\n"]), max_size=8).map(b"".join),
)


@given(headers=st.lists(FIELDS, max_size=6), body=st.binary(max_size=60))
def test_a_well_formed_message_comes_back_to_the_byte(headers: list[Header], body: bytes) -> None:
    assert (headers, body) == parse(join(headers, body))


@given(raw=RAW)
@example(raw=b"A:\r\n ")
def test_nothing_raises_and_no_name_holds_a_space_or_colon(raw: bytes) -> None:
    headers, body = parse(raw)
    assert raw.endswith(body)
    assert all(re.fullmatch(rb"[!-9;-~]+", field.name) for field in headers)


@given(raw=RAW)
def test_no_value_can_end_its_field_and_begin_another(raw: bytes) -> None:
    headers, _ = parse(raw)
    assert not any(re.search(rb"\r\n(?![ \t])", field.value) for field in headers)


@given(raw=RAW)
def test_every_line_end_becomes_crlf_once(raw: bytes) -> None:
    made = crlf(raw)
    assert [line.replace(b"\r", b" ") for line in re.split(rb"\r\n|\n", raw)] == made.split(b"\r\n")
    assert made == crlf(made)
