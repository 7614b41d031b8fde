# SPDX-License-Identifier: GPL-3.0-or-later
"""How DNS lists are written: Postfix's syntax, and sentences about what is not."""

import ctypes
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.dnslists.lookup import listed_domain, parse_list, reversed_address
from gatekeeper.dnslists.dns_list import DnsList
from tests.support.needs import missing


def test_a_list_is_a_zone_a_filter_and_a_weight() -> None:
    site = parse_list("Zen.Spamhaus.org=127.0.0.[2;10..11]*3")
    assert ("zen.spamhaus.org", 3) == (site.zone, site.weight)
    assert [True, False, True, False] == [site.matches(f"127.0.0.{last}") for last in (2, 3, 11, 12)]


def test_an_allow_list_has_a_negative_weight() -> None:
    assert DnsList("list.dnswl.org", None, -2) == parse_list("list.dnswl.org*-2")


def test_without_a_filter_all_but_errors_and_strangers_match() -> None:
    site = parse_list("bl.example")
    assert [True, False, False, False] == [site.matches(a) for a in ("127.1.2.3", "127.255.255.254", "10.0.0.1", "x")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "zone=",
        "zone=127.0.0",
        "zone=127.0.0.256",
        "zone=127.0.0.[11..2]",
        "zone=127.0.0.[2,3]",
        "zone=127.0.0.2*",
        "zone=10.0.0.[2..11]",
        "zone=127.0.0.[]",
        "=127.0.0.2",
        "a..b",
        "zone=127.0.0.2;127.0.0.3",
    ],
)
def test_a_mistake_is_answered_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        parse_list(text)


def test_addresses_are_asked_backwards() -> None:
    assert "1.2.0.192" == reversed_address(ipaddress.ip_address("192.0.2.1"))
    nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2"
    assert nibbles == reversed_address(ipaddress.ip_address("2001:db8::1"))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("Mail.Example", "mail.example"),
        ("user@b\u00fccher.example", "xn--bcher-kva.example"),
        ("user@[192.0.2.1]", None),
        ("192.0.2.1", None),
        ("host.1", None),
        ("", None),
    ],
)
def test_names_are_asked_as_a_labels_and_numbers_not_at_all(name: str, asked: str | None) -> None:
    assert asked == listed_domain(name)


@given(st.text("127.0[];*=az-", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_list_or_a_value_error(text: str) -> None:
    try:
        site = parse_list(text)
    except ValueError:
        return
    assert site == parse_list(f"{site.zone}*{site.weight}") or site.octets is not None


_OCTET = st.integers(0, 260).map(str)
_MEMBER = _OCTET | st.tuples(_OCTET, _OCTET).map("..".join)
_FIELD = _OCTET | st.lists(_MEMBER, min_size=1, max_size=3).map(lambda members: f"[{';'.join(members)}]")
_FILTER = st.lists(_FIELD, min_size=3, max_size=3).map(lambda fields: ".".join(["127", *fields]))


class PostfixFilter:
    """A filter as Postfix's own library reads it: `error` if it does not."""

    def __init__(self, text: str) -> None:
        library = Path("/usr/lib/postfix/libpostfix-util.so")
        if not library.exists():
            missing("Postfix's libraries are not installed: apt-get install postfix")
        self._util = ctypes.CDLL(str(library))
        self._util.vstring_alloc.restype = self._util.ip_match_save.restype = ctypes.c_void_p
        self._util.ip_match_parse.restype = ctypes.c_char_p
        self._util.ip_match_parse.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._util.ip_match_save.argtypes = [ctypes.c_void_p]
        self._util.ip_match_execute.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        codes = self._util.vstring_alloc(100)
        self.error: bytes | None = self._util.ip_match_parse(codes, ctypes.create_string_buffer(text.encode()))
        self._codes = self._util.ip_match_save(codes) if self.error is None else None

    def matches(self, address: str) -> bool:
        packed = ctypes.create_string_buffer(ipaddress.ip_address(address).packed, 4)
        return bool(self._util.ip_match_execute(self._codes, packed))


@given(
    _FILTER | _FILTER.map("[{}]".format) | st.from_regex(r"127\.[0-9.;\[\]]{5,20}", fullmatch=True),
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=8),
)
def test_postfix_reads_the_same_filters_and_lets_the_same_answers_through(
    text: str, answers: list[tuple[int, int, int]]
) -> None:
    postfix = PostfixFilter(text)
    try:
        site = parse_list(f"zone={text}")
    except ValueError:
        assert postfix.error is not None
        return
    assert postfix.error is None
    for a, b, c in [(0, 0, 2), (0, 0, 4), *answers]:
        if (a, b) != (255, 255):
            assert postfix.matches(f"127.{a}.{b}.{c}") == site.matches(f"127.{a}.{b}.{c}")
