# SPDX-License-Identifier: GPL-3.0-or-later
"""Long lines are broken as Postfix's smtp(8) breaks them, whatever the chunks; tests/behind_postfix/ asks it."""

from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.message import Header
from gatekeeper.signing.line_length import LineLimit, break_field
from tests.support.signing_world import sent

TEXT = st.lists(st.sampled_from([b"a", b"bcd", b" ", b"\r\n", b"\r", b"\n", b"\r\r\n"]), max_size=30).map(b"".join)


def broken(text: bytes, limit: int, size: int) -> bytes:
    lines = LineLimit(limit)
    return b"".join(lines.feed(text[start : start + size]) for start in range(0, len(text), size)) + lines.end()


@given(TEXT, st.integers(2, 9), st.integers(1, 12))
def test_any_chunking_breaks_the_lines_alike(text: bytes, limit: int, size: int) -> None:
    assert sent(text, limit) == broken(text, limit, size)


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert b"x" * 998 + b"\r\ny" == broken(b"x" * 998 + b"\r\ny", 998, 65535)
    assert b"x" * 998 + b"\r\n x\r\ny" == broken(b"x" * 999 + b"\r\ny", 998, 65535)


def test_without_a_limit_lines_stay_whole() -> None:
    assert b"x" * 5000 == broken(b"x" * 5000, 0, 100)


def test_the_name_of_a_field_counts() -> None:
    field = Header(b"Subject", b" " + b"y" * 12)
    assert Header(b"Subject", b" yyy\r\n yyyyyyyyy") == break_field(field, 12)
    assert field is break_field(field, 21)
