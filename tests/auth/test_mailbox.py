# SPDX-License-Identifier: GPL-3.0-or-later
"""The short way to read From says what the full reading says, or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.auth.author import read_mailboxes
from gatekeeper.auth.mailbox import usual_mailbox

PIECES = [
    "joe",
    "example.com",
    "Joe Doe",
    "@",
    "<",
    ">",
    '"',
    ".",
    " ",
    "\t",
    "\r\n ",
    ",",
    ":",
    ";",
    "(",
    ")",
    "\\",
    "ö",
    "[",
    "-",
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b" joe@example.com", ("joe", "example.com")),
        (b' "Doe, Joe @ home" <Joe.Doe+list@Example.COM> ', ("Joe.Doe+list", "example.com")),
        (b" Joe Doe <joe@example.com>", ("joe", "example.com")),
        (b"=?utf-8?q?J=C3=B6?= <joe@example.com>", ("joe", "example.com")),
        (b"joe@example.com <eve@example.org>", None),
        (b"joe@example.com, eve@example.org", None),
        (b'"Joe" <joe@example.com> eve', None),
        (b"joe@example..com", None),
        (b"", None),
    ],
)
def test_the_usual_forms_are_read_and_no_others(value: bytes, expected: tuple[str, str] | None) -> None:
    assert expected == usual_mailbox(value)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_whatever_it_reads_the_full_reading_reads_alike(text: str) -> None:
    value = text.encode()
    if (usual := usual_mailbox(value)) is not None:
        assert ((usual,), (usual[1],), "", False) == read_mailboxes(value + b"()")  # beyond the short way


@pytest.mark.parametrize("value", [b'"' * 100_000, b"a." * 50_000, b" " * 100_000, b"a " * 250 + b"<", b"a@" * 250])
def test_a_value_made_to_cost_time_is_left_to_others(value: bytes) -> None:
    assert usual_mailbox(value) is None
