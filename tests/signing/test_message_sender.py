# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a signature vouches for. How From is read stands in tests/auth/test_author.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.signing.message_sender import MessageSender, parse_senders


@pytest.mark.parametrize(
    ("value", "senders"),
    [
        ("joe@example.com", ["joe@example.com"]),
        (" Joe <Joe@Example.COM> ", ["Joe@example.com"]),
        ('"Joe @ home, eve@example.org" <joe@example.com>', ["joe@example.com"]),
        ('"quoted \\" <eve@example.org>" <joe@example.com>', ["joe@example.com"]),
        ("joe@example.com <joe@example.com>", ["joe@example.com"]),
        ("Joe @ Work <joe@example.com>", ["joe@example.com"]),
        ("Foo\\Bar <joe@example.com>", ["joe@example.com"]),
        ("Doe, Joe <joe@example.com>", ["joe@example.com"]),
        ("Doe, Joe @ Work <joe@example.com>", ["joe@example.com"]),
        ("Team: joe@example.com;", ["joe@example.com"]),
        ("Team: joe@example.com, Ann <ann@example.com>;", ["joe@example.com", "ann@example.com"]),
        ("Re: Joe; sales <joe@example.com>", ["joe@example.com"]),
        ("Joe ;-) <joe@example.com>", ["joe@example.com"]),
        ("Joe <3 <joe@example.com>", ["joe@example.com"]),
        ("Joe -> Ann <joe@example.com>", ["joe@example.com"]),
        ("[List] Joe <joe@example.com>", ["joe@example.com"]),
        ("=?utf-8?q?J=C3=B6?= <joe@example.com>", ["joe@example.com"]),
        ("Jö <joe@example.com>", ["joe@example.com"]),
        ("joe@example.com (eve@example.org (nested \\) ))", ["joe@example.com"]),
        ("joe (c) @ (d) example.com", ["joe@example.com"]),
        ('"joe doe"@example.com', ['"joe doe"@example.com']),
        ("Joe\r\n <joe@example.com>", ["joe@example.com"]),
        ("joe@bücher.example", ["joe@xn--bcher-kva.example"]),
        ("joe@example.com, Ann <ann@example.com>,", ["joe@example.com", "ann@example.com"]),
    ],
)
def test_the_address_is_found(value: str, senders: list[str]) -> None:
    assert senders == [str(sender) for sender in parse_senders(value.encode())]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Joe",
        "<>",
        "joe@",
        "@example.com",
        "joe doe@example.com",
        "<joe@example.com",
        "joe@example.com>",
        "Joe <joe@example.com> Doe",
        "<ann@example.com> <joe@example.com>",
        "Joe <<joe@example.com>>",
        "eve@example.org <joe@example.com>",
        "joe@example.com, Ann <ann@example.org>",
        "Team: joe@example.com; ann@example.org",
        "joe@example.com eve@example.org",
        "<joe@example.com> eve@example.org",
        "<joe@example.com> <eve@example.org>",
        "<@example.org:joe@example.com>",
        "<@example.com:joe@example.com>",
        "joe@example.com, root@localhost",
        "joe@example.com, ann@[192.0.2.1]",
        "joe@example.com@example.com",
        'joe@"example.com"',
        "joe@exam=ple.com",
        "joe@[192.0.2.1]",
        "joe@example.com.",
        "joe@example..com",
        "joe@example.com (open",
        '"open <joe@example.com>',
        "jo\x00e@example.com",
        "j\xffe@exam\xffple.com",
        "j" * 300 + "@example.com",
        "joe@" + "a." * 130 + "com",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"address|quote|control"):
        parse_senders(value.encode("latin-1"))


@pytest.mark.parametrize(
    "value", [b"(" * 50_000, b"(" * 50_000 + b")" * 50_000, b'"' * 50_001, b"<" * 50_000, b",a" * 9]
)
def test_hostile_nesting_is_refused_in_linear_time(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"address|quote|control"):
        parse_senders(value)


@given(st.binary() | st.text(alphabet='a@.<>,;:()"\\ \r\n[]').map(str.encode))
def test_no_bytes_make_the_parser_raise_anything_but_value_error(value: bytes) -> None:
    try:
        senders = parse_senders(value)
    except ValueError:
        return
    assert senders
    assert all(sender.domain.isascii() and sender.domain.isprintable() for sender in senders)


@given(
    st.from_regex(r"\A[a-z0-9.+_=-]{1,20}\Z"),
    st.from_regex(r"\A[a-z]{1,9}(\.[a-z]{1,9}){0,3}\Z"),
    st.text(alphabet="abc ,<>@()", max_size=9),
)
def test_an_address_is_found_whatever_the_quoted_name_says(user: str, domain: str, name: str) -> None:
    assert [MessageSender(user, domain)] == parse_senders(f'"{name}" <{user}@{domain}>'.encode())
