# SPDX-License-Identifier: GPL-3.0-or-later
"""Host lists: OpenDKIM's order of tries, its traps, the deviations that are wanted, what opens it."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.problem import Problem
from gatekeeper.core.request import Client
from gatekeeper.signing.host_list import HostList

SIGNED = "these hosts are internal, and their mail from our domains is signed"


def client(address: str = "192.0.2.9", name: str = "unknown") -> Client:
    return Client(address=ip_address(address), name=name)


def hosts(*lines: str) -> HostList:
    found, problems = HostList.read(lines)
    assert [] == [str(problem) for problem in problems if not problem.opens]
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
        f"{path}:{line}: OPENS: {entry} counts as {net} here, but OpenDKIM never matches it: {SIGNED}; write {net}"
        for line, entry, net in (
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
    what = "*.example.com is every host below example.com here, but OpenDKIM takes it as negated"
    said = f"{what}: {SIGNED}; .example.com in a file: list says it clearly"
    assert [f"{path}:1: OPENS: {said}"] == [str(problem) for problem in problems]


def test_a_negated_pattern_in_a_refile_stays_negated(tmp_path: Path) -> None:
    path = tmp_path / "TrustedHosts"
    path.write_text("!bad*.example.com\n.example.com\n")
    found, _ = HostList.read(f"refile:{path}")
    assert ["", ".example.com"] == [found.find(client(name=f"{name}.example.com")) for name in ("bad1", "good")]


# What opens a list to the world


def of_refile(folder: Path, text: str, option: str = "signing.internal_hosts") -> tuple[HostList, list[str]]:
    (folder / "hosts").write_text(text)
    found, problems = HostList.read(f"refile:{folder}/hosts", option)
    return found, [str(problem).removeprefix(f"{folder}/") for problem in problems]


WORLD = [
    client("9.1.2.3", "mail.example.com"),
    client("2001:db8::9", "host.example.net"),
    client("198.51.100.1"),
    client("2001:db8::9"),
]


@pytest.mark.parametrize("pattern", ["*", "**", "|", "^*", "*|x", "*.*", "*$"])
def test_a_pattern_that_opendkim_takes_as_negated_for_everybody_is_refused(tmp_path: Path, pattern: str) -> None:
    found, said = of_refile(tmp_path, f"127.0.0.1\nlocalhost\n{pattern}\n")
    why = "OpenDKIM takes it as negated, so that no host is in the list"
    would = "everybody would be internal, and their mail from our domains is signed"
    assert [f"hosts:3: {pattern} matches any name and any address, and {why}: {would}; remove it"] == said
    assert ["", "", "", ""] == [found.find(one) for one in WORLD]
    assert ["127.0.0.1", "localhost"] == [found.find(client("127.0.0.1")), found.find(client(name="localhost"))]


@pytest.mark.parametrize("pattern", ["[0-9a-z]*", "[^!]*", "[0-9.]*"])
def test_a_pattern_that_matches_everybody_for_opendkim_too_is_refused(tmp_path: Path, pattern: str) -> None:
    found, (said,) = of_refile(tmp_path, f"{pattern}\n")
    assert said.startswith(f"hosts:1: {pattern} matches any name and any address: everybody would be internal")
    assert ["", "", "", ""] == [found.find(one) for one in WORLD]


@pytest.mark.parametrize("line", ["1.2.3.4/0", "0.0.0.0/0.0.0.0", "0.0.0.0/00", "::ffff:0:0/96", "1.0.0.0/1", "1::/0"])
def test_a_network_that_counts_here_alone_is_never_a_good_part_of_the_world(line: str) -> None:
    found, (problem,) = HostList.read([line])
    assert not problem.warning
    assert ["", "", "", ""] == [found.find(one) for one in WORLD]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.0.0.0/0", "hosts:1: OPENS: 0.0.0.0/0 is every host of IPv4: SIGNED; name your networks"),
        ("[0.0.0.0]/0", "hosts:1: [0.0.0.0]/0 is every host of IPv4, and OpenDKIM takes brackets in a refile for"),
        ("::/0", "hosts:1: OPENS: ::/0 is every host of IPv6: SIGNED; name your networks"),
        ("2000::/3", "hosts:1: OPENS: 2000::/3 is every host of IPv6: SIGNED; name your networks"),
        ("0.0.0.0/1", "hosts:1: OPENS: 0.0.0.0/1 is 1/2 of all hosts of IPv4: SIGNED; name your networks"),
        (
            "10.0.0.1\n0.0.0.0/1\n128.0.0.0/1",
            "hosts:2: OPENS: 0.0.0.0/1 with other lines makes 0.0.0.0/0, which is every host of IPv4: SIGNED",
        ),
        ("0.0.0.0/0\n!192.0.2.1", "hosts:1: OPENS: 0.0.0.0/0 is every host of IPv4: SIGNED; name your networks"),
        (".com", "hosts:1: OPENS: .com is every host below com, a top-level domain: SIGNED; name the hosts"),
        (
            ".*",
            "hosts:1: OPENS: .* matches hosts that have nothing in common, such as those of acme.com and contoso.com: ",
        ),
        (".*.*", "hosts:1: OPENS: .*.* matches hosts that have nothing in common, such as those of acme.com and"),
        ("[a-m]*", "hosts:1: OPENS: [a-m]* matches hosts that have nothing in common, such as those of "),
        ("(mail|mx1).*", "hosts:1: OPENS: (mail|mx1).* matches hosts that have nothing in common, such as those of "),
        (
            "(.com|.net)",
            "hosts:1: OPENS: (.com|.net) matches hosts that have nothing in common, such as those of acme.",
        ),
        (
            "1*",
            "hosts:1: OPENS: 1* matches hosts that have nothing in common, such as those of acme.com and ",
        ),
        ("[0-9]*", "hosts:1: OPENS: [0-9]* matches hosts that have nothing in common, such as those of "),
        ("*.com", "hosts:1: warning: *.com takes hosts out of the list, as in OpenDKIM: it matches the ! of a"),
        ("*example.com", "hosts:1: warning: *example.com takes hosts out of the list, as in OpenDKIM: it matches"),
        ("*.", "hosts:1: warning: *. takes hosts out of the list, as in OpenDKIM: it matches the ! of a"),
        ("(5|9).*", "hosts:1: OPENS: (5|9).* matches hosts that have nothing in common, such as those of 5.0.0.0/8"),
        ("0/0", "hosts:1: warning: 0/0 matches nothing; "),
        (".", "hosts:1: warning: . matches nothing; "),
        ("?*", "hosts:1: the pattern ?* is not a valid regular expression"),
        ("[2001:db8::1]", "hosts:1: OPENS: [2001:db8::1] counts as 2001:db8::1 here, but OpenDKIM takes brackets in a"),
        ("2001:0DB8::1", "hosts:1: OPENS: 2001:0DB8::1 counts as 2001:db8::1 here, but OpenDKIM never matches it: SIG"),
    ],
)
def test_what_a_line_opens_is_said(tmp_path: Path, text: str, said: str) -> None:
    _, (actual,) = of_refile(tmp_path, f"{text}\n")
    assert actual.startswith(said.replace("SIGNED", SIGNED).removesuffix("SIG"))


@pytest.mark.parametrize(
    "text",
    [
        "!0.0.0.0/0",
        "!*",
        "!.com",
        "10.0.0.0/8\nfc00::/7\nfe80::/10",
        "!!*",
        "10.*\n192.168.*",
        "(mail|mx).ours.example",
    ],
)
def test_what_opens_nothing_is_not_said_to(tmp_path: Path, text: str) -> None:
    assert [] == of_refile(tmp_path, f"{text}\n")[1]


def test_a_pattern_of_addresses_is_no_pattern_of_networks(tmp_path: Path) -> None:
    found, said = of_refile(tmp_path, "10.0.0.*\n192.0.*/24\n")
    assert [] == said
    assert ["10.0.0.*", "", "192.0.*/24"] == [
        found.find(client(address)) for address in ("10.0.0.9", "10.9.9.9", "192.0.2.9")
    ]


def test_a_negated_pattern_takes_out_what_would_be_in_the_list(tmp_path: Path) -> None:
    found, _ = of_refile(tmp_path, "192.0.2.0/24\n*.7\n.example.com\n")
    assert ["", "192.0.2.0/24"] == [found.find(client(f"192.0.2.{number}")) for number in (7, 8)]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("signing.peers", "OPENS: 0.0.0.0/0 is every host of IPv4: these hosts are peers, and their mail is neither"),
        ("verify.trusted_forwarders", "OPENS: 0.0.0.0/0 is every host of IPv4: these hosts are forwarders, and their"),
    ],
)
def test_what_is_opened_depends_on_the_option(option: str, said: str) -> None:
    _, (problem,) = HostList.read(["0.0.0.0/0"], option)
    assert str(problem).startswith(f"{option}: {said}")


def test_a_list_by_which_nobody_is_trusted_opens_nothing(tmp_path: Path) -> None:
    _, said = of_refile(tmp_path, "*\n0.0.0.0/0\n*.example.com\n", "signing.external_ignore")
    assert ["hosts:1: warning", "hosts:3: warning"] == [line[:16] for line in said]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("192.168.0.1-192.168.0.9", "write networks, such as 192.0.2.0/24, for a range; "),
        ("192.168.0.1-9", "write networks, such as 192.0.2.0/24, for a range; "),
        ("192.168.0.*", "write networks, such as 192.0.2.0/24, for a range; "),
        ("10.0.0.0/8,192.168.0.0/16", "write each on a line of its own; "),
        ("a.example,b.example", "write each on a line of its own; "),
        ("*.example.com", "write .example.com for what is below it; "),
    ],
)
def test_a_line_that_means_several_hosts_is_told_how_to_write_them(line: str, hint: str) -> None:
    _, (problem,) = HostList.read([line])
    assert f"internal_hosts: warning: {line} matches nothing; {hint}allowed are" in str(problem)


def test_only_the_first_of_two_networks_on_a_line_counts_with_a_warning() -> None:
    found, (problem,) = HostList.read(["10.0.0.0/8 192.168.0.0/16"])
    assert "only 10.0.0.0/8 counts, and 192.168.0.0/16 is ignored; write each on a line of its own" == problem.what
    assert ["10.0.0.0/8", ""] == [found.find(client(address)) for address in ("10.1.1.1", "192.168.1.1")]


@pytest.mark.parametrize("line", ["*.example.com", "192.168.", "192.168.0.0/33", "joe@example.com"])
def test_an_entry_that_matches_nothing_is_named(line: str) -> None:
    found, (problem,) = HostList.read([line], "internal_hosts")
    assert problem.warning
    assert str(problem).startswith(f"internal_hosts: warning: {line} matches nothing; ")
    assert str(problem).endswith("allowed are host names, .domain, addresses and networks, with ! for not")
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
