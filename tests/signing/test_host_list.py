# SPDX-License-Identifier: GPL-3.0-or-later
"""Host lists: OpenDKIM's order of tries, its traps, and the two deviations that are wanted."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.problem import Problem
from gatekeeper.core.request import Client
from gatekeeper.signing.host_list import HostList


def client(address: str = "192.0.2.9", name: str = "unknown") -> Client:
    return Client(address=ip_address(address), name=name)


def hosts(*lines: str) -> HostList:
    found, problems = HostList.read(lines)
    assert [] == [str(problem) for problem in problems]
    return found


@pytest.mark.parametrize(
    ("lines", "address", "entry"),
    [
        (["192.0.2.1"], "192.0.2.1", "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.2", ""),
        (["[192.0.2.1]"], "192.0.2.1", "[192.0.2.1]"),
        (["192.0.2.0/24"], "192.0.2.200", "192.0.2.0/24"),
        (["0.0.0.0/0"], "198.51.100.1", "0.0.0.0/0"),
        (["0.0.0.0/0"], "2001:db8::1", ""),
        (["2001:db8::/32"], "2001:db8:1::1", "2001:db8::/32"),
        (["[2001:db8::]/32"], "2001:db8:1::1", "[2001:db8::]/32"),
        (["::1"], "::1", "::1"),
        (["::ffff:192.0.2.1"], "192.0.2.1", "::ffff:192.0.2.1"),
        (["192.0.2.0/24", "!192.0.2.0/28"], "192.0.2.3", ""),
        (["192.0.2.0/24", "!192.0.2.0/28"], "192.0.2.77", "192.0.2.0/24"),
        (["192.0.2.3", "!192.0.2.0/28"], "192.0.2.3", "192.0.2.3"),
        (["192.0.2.3", "!192.0.2.3/32"], "192.0.2.3", "192.0.2.3"),
        (["192.0.2.3/32", "!192.0.2.3"], "192.0.2.3", ""),
        (["192.0.2.3", "!192.0.2.3"], "192.0.2.3", ""),
        (["192.0.2.3", "![192.0.2.3]"], "192.0.2.3", "192.0.2.3"),
        (["[192.0.2.3]", "!192.0.2.3"], "192.0.2.3", ""),
    ],
)
def test_an_address_is_tried_exactly_and_then_by_networks_from_the_narrowest(
    lines: list[str], address: str, entry: str
) -> None:
    assert entry == hosts(*lines).find(client(address))
    assert entry == hosts(*lines[::-1]).find(client(address))


@pytest.mark.parametrize(
    ("lines", "name", "entry"),
    [
        (["mail.example.com"], "mail.example.com", "mail.example.com"),
        (["Mail.Example.com"], "MAIL.example.com", "Mail.Example.com"),
        (["example.com"], "mail.example.com", ""),
        ([".example.com"], "a.mail.example.com", ".example.com"),
        ([".example.com"], "example.com", ""),
        ([".example.com", "!bad.example.com"], "bad.example.com", ""),
        ([".example.com", "!.bad.example.com"], "x.bad.example.com", ""),
        ([".com", "!.example.com", "good.example.com"], "good.example.com", "good.example.com"),
        (["unknown"], "unknown", ""),
    ],
)
def test_a_name_is_tried_exactly_and_then_by_its_suffixes(lines: list[str], name: str, entry: str) -> None:
    assert entry == hosts(*lines).find(client(name=name))


def test_a_host_is_in_the_list_by_its_name_or_its_address_so_that_not_a_name_vetoes_no_address() -> None:
    found = hosts("!bad.example.com", "192.0.2.0/24")
    assert "192.0.2.0/24" == found.find(client("192.0.2.1", "bad.example.com"))


def test_a_client_without_an_address_is_in_no_network() -> None:
    assert "" == hosts("0.0.0.0/0").find(Client())


def test_a_network_with_host_bits_set_counts_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "TrustedHosts"
    path.write_text("127.0.0.1\n192.168.0.1/24 # office\n10.0.0.0/255.0.0.0\n")
    found, problems = HostList.read(str(path))
    assert "192.168.0.1/24" == found.find(client("192.168.0.77"))
    assert "10.0.0.0/255.0.0.0" == found.find(client("10.1.2.3"))
    assert [
        f"{path}:{line}: warning: {entry} counts as {network} here, but OpenDKIM never matches it; write {network}"
        for line, entry, network in (
            (2, "192.168.0.1/24", "192.168.0.0/24"),
            (3, "10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        )
    ] == [str(problem) for problem in problems]


def test_a_star_in_a_refile_matches_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "TrustedHosts"
    path.write_text("*.example.com\n!bad.example.com\n10.*\n192.0.2.0/24\n")
    found, problems = HostList.read(f"refile:{path}")
    names = ("a.example.com", "bad.example.com", "example.com")
    assert ["*.example.com", "", ""] == [found.find(client("198.51.100.1", name)) for name in names]
    assert ["10.*", "192.0.2.0/24"] == [found.find(client(address)) for address in ("10.1.2.3", "192.0.2.3")]
    what = "*.example.com matches here, but OpenDKIM takes it as negated; .domain in a file: list is clearer"
    assert [f"{path}:1: warning: {what}"] == [str(problem) for problem in problems]


def test_a_negated_pattern_in_a_refile_stays_negated(tmp_path: Path) -> None:
    path = tmp_path / "TrustedHosts"
    path.write_text("!bad*.example.com\n.example.com\n")
    found, _ = HostList.read(f"refile:{path}")
    assert ["", ".example.com"] == [found.find(client(name=f"{name}.example.com")) for name in ("bad1", "good")]


@pytest.mark.parametrize("line", ["*.example.com", "192.168.", "192.168.0.0/33", "joe@example.com"])
def test_an_entry_that_matches_nothing_is_named(line: str) -> None:
    found, (problem,) = HostList.read([line], "internal_hosts")
    assert problem.warning
    assert str(problem).startswith(f"internal_hosts: warning: {line} matches nothing; allowed are host names")
    assert "" == found.find(client("192.168.0.1", "a.example.com"))


def test_a_list_may_begin_with_an_ipv6_address() -> None:
    found, problems = HostList.read("fe80::1, ::1,127.0.0.1")
    assert [] == problems
    assert ["::1", "127.0.0.1"] == [found.find(client(address)) for address in ("::1", "127.0.0.1")]


def tries(address: IPv4Address) -> Iterator[str]:
    """What OpenDKIM's dkimf_checkip() looks for, word for word."""
    yield f"{address}"
    yield f"[{address}]"
    for bits in range(32, -1, -1):
        network = ip_network(f"{address}/{bits}", strict=False).network_address
        yield f"{network}/{bits}"
        yield f"[{network}]/{bits}"


def by_the_book(lines: Sequence[str], address: IPv4Address) -> bool:
    for text in tries(address):
        if f"!{text}" in lines:
            return False
        if text in lines:
            return True
    return False


ADDRESS = st.sampled_from([IPv4Address("10.0.0.0") + number for number in range(4)])
LINE = st.builds(
    "{}{}".format, st.sampled_from(["", "!"]), ADDRESS.flatmap(lambda address: st.sampled_from(list(tries(address))))
)


@given(st.lists(LINE, max_size=6), ADDRESS)
def test_addresses_are_judged_as_opendkim_judges_them(lines: list[str], address: IPv4Address) -> None:
    found, _ = HostList.read(lines)
    assert by_the_book(lines, address) == bool(found.find(Client(address=address)))


@given(st.lists(st.text(max_size=20) | st.text(alphabet="!*.[]/:0129afx", max_size=12)), st.text(max_size=20))
def test_no_text_makes_a_list_raise(lines: list[str], name: str) -> None:
    found, problems = HostList.read(lines)
    found.find(Client(name=name))
    assert all(isinstance(problem, Problem) for problem in problems)
