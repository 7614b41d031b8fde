# SPDX-License-Identifier: GPL-3.0-or-later
"""Mailboxes with and without quotes, and where they lead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.postfix.mailbox_form import external, forms, internal, normal, resolved

FORMS = [
    ("a b@x.example", '"a b"@x.example'),
    ("a,b@x.example", '"a,b"@x.example'),
    ("a@b@x.example", '"a@b"@x.example'),
    ('a"b@x.example', r'"a\"b"@x.example'),
    (r"a\b@x.example", r'"a\\b"@x.example'),
    ('"ab"@x.example', r'"\"ab\""@x.example'),
    ("a..b@x.example", '"a..b"@x.example'),
    (".a@x.example", '".a"@x.example'),
    ("@x.example", '""@x.example'),
    ("a\x7fb@x.example", '"a\x7fb"@x.example'),
    ("ä+b%c!d@x.example", "ä+b%c!d@x.example"),
    ("a\xa0b@x.example", "a\xa0b@x.example"),
    ("a b", '"a b"'),
]


@pytest.mark.parametrize(("inside", "outside"), FORMS)
def test_a_mailbox_has_the_quotes_that_it_needs(inside: str, outside: str) -> None:
    assert (outside, inside) == (external(inside), internal(outside))


@given(st.text())
def test_quotes_come_off_as_they_were_put_on(local: str) -> None:
    assert f"{local}@x.example" == internal(external(f"{local}@x.example"))


@given(st.text())
def test_a_quoted_mailbox_has_its_separators_within_quotes(local: str) -> None:
    quoted = external(f"{local}@x.example")
    assert quoted.startswith('"') or not {*local} & {*' ,\t\r\n"'}


def test_tables_are_asked_for_the_quoted_form_first() -> None:
    assert ['"a b"@x.example', "a b@x.example"] == list(forms("a b@x.example"))
    assert ["ab@x.example"] == list(forms("ab@x.example"))


@pytest.mark.parametrize(
    ("mailbox", "expected"),
    [
        ("A@X.Example.", "a@x.example"),
        ("@route.example:a@x.example", "a@x.example"),
        ("@route.example:a", "@route.example:a"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_a_mailbox_is_looked_up_in_one_spelling(mailbox: str, expected: str) -> None:
    assert expected == normal(mailbox)


@pytest.mark.parametrize(
    ("mailbox", "expected"),
    [
        ("a%b.example@ours", "a@b.example"),
        ("b.example!a@ours", "a@b.example"),
        ("a@b.example@ours", "a@b.example"),
        ("a%b%c.example@ours", "a%b@c.example"),
        ("c.example!b!a@ours", "b!a@c.example"),
        ("c.example!b%a@ours", "b%a@c.example"),
        ("a%ours@ours", "a@ours"),
        ("a%b.example%ours@ours", "a@b.example"),
        ("a%b.example", "a@b.example"),
        ("a%b.example@theirs", "a%b.example@theirs"),
        ("a@ours", "a@ours"),
        ("a", "a"),
        ("%@ours", "%@ours"),
    ],
)
def test_a_local_part_may_lead_elsewhere(mailbox: str, expected: str) -> None:
    assert expected == resolved(mailbox, "ours".__eq__)


@given(st.text('ab@!%. "\\'))
def test_any_mailbox_leads_somewhere(mailbox: str) -> None:
    resolved(mailbox, "a".__eq__)
