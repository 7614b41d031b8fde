# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of networks, names and tables, in order; what Postfix makes of them is in tests/behind_postfix."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.request import Client, parse_address
from gatekeeper.postfix.client_list import ClientList, ClientPattern, end_of_list, parse_pattern, parse_postfix_pattern


def found(words: str, address: str, name: str = "unknown") -> str:
    hosts = ClientList(map(parse_pattern, words.split()))
    return hosts.find(Client(address=parse_address(address), name=name))


@pytest.mark.parametrize(
    ("words", "address", "expected"),
    [
        ("!192.168.7.9 192.168.7.0/24", "192.168.7.9", ""),
        ("!192.168.7.9 192.168.7.0/24", "192.168.7.10", "192.168.7.0/24"),
        ("192.168.7.0/24 !192.168.7.9", "192.168.7.9", "192.168.7.0/24"),
        ("!10.0.0.0/8 10.1.2.3 0.0.0.0/0", "10.1.2.3", ""),
        ("!!10.1.2.3", "10.1.2.3", "!!10.1.2.3"),
        ("[::1]/128", "::1", "[::1]/128"),
        ("::1", "::1", "::1"),
        ("::/0", "192.0.2.1", ""),
        ("::ffff:192.0.2.0/120", "192.0.2.1", ""),
    ],
)
def test_the_first_pattern_that_matches_decides(words: str, address: str, expected: str) -> None:
    assert expected == found(words, address)


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        ("example.com", "A.Example.com", "example.com"),
        ("example.com", "example.com", "example.com"),
        ("example.com", "notexample.com", ""),
        (".example.com", "a.example.com", ""),
        ("!a.example.com example.com", "a.example.com", ""),
        ("!a.example.com example.com", "b.example.com", "example.com"),
        ("unknown", "unknown", "unknown"),
    ],
)
def test_a_name_stands_for_what_is_below_it(words: str, name: str, expected: str) -> None:
    assert expected == found(words, "192.0.2.1", name)


def test_without_parents_the_dot_says_so() -> None:
    hosts = ClientList(map(parse_pattern, (".example.com", "example.net")), parents=False)
    names = ["a.b.example.com", "example.com", "example.net", "a.example.net"]
    assert [".example.com", "", "example.net", ""] == [hosts.find(Client(name=name)) for name in names]


def test_a_list_ends_where_it_cannot_be_understood() -> None:
    words = [parse_pattern("10.0.0.0/8"), end_of_list("!?"), parse_pattern("192.0.2.0/24")]
    hosts = ClientList(words)
    clients = [Client(address=parse_address(address)) for address in ("10.1.1.1", "192.0.2.1")]
    assert ["10.0.0.0/8", ""] == [hosts.find(client) for client in clients]


def test_a_table_that_nobody_reads_ends_the_list_too() -> None:
    hosts = ClientList(map(parse_pattern, ("!cidr:/gone", "10.0.0.0/8")))
    assert "" == hosts.find(Client(address=parse_address("10.1.1.1")))


@pytest.mark.parametrize(
    "word",
    [
        *(
            "!",
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/0.255.255.255",
            "192.168/16",
            "192.168.7",
        ),
        *("[::1", "[::1/128]", "::1]", "[host]", "[]", "fe80::1%eth0", "$mynetworks", "a b", "1:::2", "x..y", "*"),
    ],
)
def test_what_is_no_pattern_is_said(word: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: |did you mean"):
        parse_pattern(word)


@pytest.mark.parametrize("word", ["::1", "!2001:db8::/32", "2001:db8::1"])
def test_main_cf_needs_brackets(word: str) -> None:
    with pytest.raises(ValueError, match="needs brackets"):
        parse_postfix_pattern(word)


def test_a_proxied_table_is_read_directly() -> None:
    assert "hash:/etc/postfix/networks" == parse_postfix_pattern("!proxy:hash:/etc/postfix/networks").value


NETWORKS = st.builds(
    lambda number, bits, included: ClientPattern(
        f"{number}/{bits}", "network", ip_network((number >> (32 - bits) << (32 - bits), bits)), included
    ),
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(22, 32),
    st.booleans(),
)


@given(st.lists(NETWORKS, max_size=12), st.integers(0x0A000000, 0x0A0000FF))
def test_a_list_says_what_going_through_it_says(patterns: list[ClientPattern], number: int) -> None:
    address = ip_address(number)
    first = next((p for p in patterns if not isinstance(p.value, str) and address in p.value), None)
    expected = first is not None and first.included
    assert expected == ClientList(patterns).decide(Client(address=parse_address(str(address))))[0]


@given(st.text("!/[].:0129afx*_-é "))
def test_any_word_is_a_pattern_or_a_value_error(word: str) -> None:
    try:
        pattern = parse_pattern(word)
    except ValueError:
        return
    ClientList([pattern]).find(Client(address=parse_address("192.0.2.1"), name="a.example"))
