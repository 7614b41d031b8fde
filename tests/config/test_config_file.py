# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: every mistake with its line, defaults that are Postfix's, and lists in both spellings."""

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gatekeeper.checks.builder.own_checks import SECTIONS
from gatekeeper.config.config_file import Config, defaults, load, refreshed
from gatekeeper.config.errors import validation_errors
from gatekeeper.config.locations import KeyLocations
from gatekeeper.config.schema import ChecksSection
from gatekeeper.core.problem import ConfigError
from gatekeeper.postfix.listen_address import ListenAddress
from tests.support.postconf import no_postfix

MAIN_CF = {
    "myhostname": "mx.example.com",
    "mynetworks": "127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128",
    "mydestination": "mx.example.com, , localhost",
    "virtual_alias_domains": "hash:/etc/postfix/virtual",
    "relay_domains": "customer.example",
    "recipient_delimiter": "+-",
    "parent_domain_matches_subdomains": "mynetworks,relay_domains,smtpd_access_maps",
}


def read(folder: Path, text: str) -> Config:
    file = folder / "gatekeeper.toml"
    file.write_text(text)
    return load(file, no_postfix)


def complaints(folder: Path, text: str) -> list[str]:
    """The problems of `text`, without the folder in front."""
    with pytest.raises(ConfigError) as wrong:
        read(folder, text)
    return [str(problem).removeprefix(f"{folder}/gatekeeper.toml:") for problem in wrong.value.problems]


def test_every_mistake_is_named_with_its_line_at_once(tmp_path: Path) -> None:
    found = complaints(
        tmp_path,
        """hostnam = "x"
timeout = 3
[dns]
timeout = "5 parsecs"
nameservers = ["127.0.0.1:53",
    "not-an-address:53"]
[policy]
workers = "2"
listen = [
    "inet:127.0.0.1:0",
    "nonsense",
]
[milter]
mode = "x"
workers = 0
""",
    )
    assert ["1", "2", "4", "6", "8", "11", "14", "15"] == [line.partition(":")[0] for line in found]


def test_an_unknown_key_suggests_the_right_one(tmp_path: Path) -> None:
    assert ["2: unknown key 'listn' in [policy]; did you mean 'listen'?"] == complaints(tmp_path, "[policy]\nlistn = 1")


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(tmp_path: Path) -> None:
    assert ["1: unknown key 'nameservers' in the top level; it belongs in [dns]"] == complaints(
        tmp_path, "nameservers = []"
    )


def test_a_misspelled_section_is_suggested_too(tmp_path: Path) -> None:
    assert ["1: unknown key 'polcy' in the top level; did you mean 'policy'?"] == complaints(tmp_path, "[polcy]")


def test_a_value_of_the_wrong_kind_is_told_what_is_allowed(tmp_path: Path) -> None:
    assert [
        "1: policy is a number; allowed: a section of its own, in [brackets]",
        '3: milter.mode is \'x\'; allowed: "s", "v" or "sv"',
        "4: milter.workers is a string; allowed: a whole number",
    ] == complaints(tmp_path, 'policy = 3\n[milter]\nmode = "x"\nworkers = "2"\n')


def test_a_section_that_is_not_built_yet_says_so(tmp_path: Path) -> None:
    assert ["1: [metrics] is not available in this version yet; remove it"] == complaints(tmp_path, "[metrics]")


def test_two_names_of_one_list_are_a_mistake(tmp_path: Path) -> None:
    text = '[policy.contexts.a]\nrestrictions = "permit"\nrecipient_restrictions = []\n'
    assert ["3: restrictions and recipient_restrictions name the same list; use only one of them"] == complaints(
        tmp_path, text
    )


def test_toml_that_does_not_parse_is_named_with_its_line(tmp_path: Path) -> None:
    assert complaints(tmp_path, 'a = 1\nb = "')[0].startswith("2: not TOML: ")
    assert complaints(tmp_path, "a = 1\na = 2")[0].startswith("2: not TOML: ")


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_bytes(b'a = 1\nb = "\xff"\n')
    with pytest.raises(ConfigError, match=r"g\.toml:2: is not UTF-8"):
        load(tmp_path / "g.toml", no_postfix)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read: No such file"):
        load(tmp_path / "nothing.toml", no_postfix)


def test_without_postfix_the_defaults_are_loopback() -> None:
    config = defaults(no_postfix)
    assert ["127.0.0.0/8", "::1"] == [*map(str, config.mynetworks)]
    assert ((), (), "") == (config.local_domains, config.relay_domains, config.recipient_delimiter)


def test_with_postfix_the_defaults_are_what_main_cf_says() -> None:
    config = defaults(lambda names: MAIN_CF)
    assert ("mx.example.com", "localhost") == config.local_domains
    assert ("customer.example", ".customer.example") == config.relay_domains
    assert ("mx.example.com", "+-") == (config.hostname, config.recipient_delimiter)


def test_a_table_in_main_cf_cannot_be_taken_over_and_is_warned_about(tmp_path: Path) -> None:
    (warning,) = defaults(lambda names: {**MAIN_CF, "config_directory": "/etc/postfix-out"}).warnings
    what = "virtual_alias_domains says 'hash:/etc/postfix/virtual', which cannot be used here"
    assert f"/etc/postfix-out/main.cf: warning: {what}; set local_domains in gatekeeper.toml" == str(warning)
    (tmp_path / "g.toml").write_text('local_domains = "example.com"')
    assert () == load(tmp_path / "g.toml", lambda names: MAIN_CF).warnings


@pytest.mark.parametrize(
    ("mynetworks", "taken", "said"),
    [
        ("127.0.0.0/8 localhost !10.1.1.1 10.0.0.0/8", ["127.0.0.0/8", "localhost", "!10.1.1.1", "10.0.0.0/8"], ""),
        ("127.0.0.0/8 # office 10.0.0.0/8", ["127.0.0.0/8"], "'#' in the middle of a line"),
        ("10.0.0.1/8 127.0.0.0/8", ["10.0.0.1/8"], "did you mean '10.0.0.0/8'?; gatekeeper trusts nobody by this"),
        ("127.0.0.0/8, !?, 10.0.0.0/8", ["127.0.0.0/8", "!?"], "'!?' is not a network, a host name or a table"),
        ("::1, 127.0.0.0/8", ["::1"], "an IPv6 address needs brackets"),
        (".example.com 127.0.0.0/8", [".example.com", "127.0.0.0/8"], "matches nothing in Postfix"),
        ("", [], ""),
    ],
)
def test_mynetworks_of_main_cf_are_no_mistake_of_our_file(mynetworks: str, taken: list[str], said: str) -> None:
    main_cf = {"config_directory": "/etc/postfix", "mynetworks": mynetworks}
    config = defaults(lambda names: main_cf)
    warnings = [str(problem) for problem in config.warnings]
    assert (taken, bool(said)) == ([*map(str, config.mynetworks)], bool(warnings))
    for warning in warnings:
        assert warning.startswith("/etc/postfix/main.cf: warning: mynetworks: ")
        assert said in warning


def test_what_main_cf_has_and_we_cannot_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text("")
    main_cf = {**MAIN_CF, "mydestination": "a.example, [192.0.2.1], b..example, c.example", "recipient_delimiter": "é"}
    config = load(tmp_path / "g.toml", lambda names: main_cf)
    assert (("a.example", "c.example"), "") == (config.local_domains, config.recipient_delimiter)
    said = "\n".join(map(str, config.warnings))
    for word in ("[192.0.2.1]", "b..example", "é"):
        assert f"{word!r}" in said
    assert str(tmp_path) not in said


def test_a_refreshed_configuration_has_what_postfix_says_now(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text('hostname = "a.example"')
    main_cf = {"mynetworks": "10.0.0.0/8"}
    config = load(tmp_path / "g.toml", lambda names: main_cf)
    (tmp_path / "g.toml").write_text("a mistake")
    main_cf["mynetworks"] = "192.0.2.0/24"
    new = refreshed(config)
    assert (["192.0.2.0/24"], "a.example") == ([*map(str, new.mynetworks)], new.hostname)
    main_cf.clear()
    with pytest.raises(ConfigError, match=r"main\.cf: postconf does not tell"):
        refreshed(new)


def test_a_network_with_host_bits_gets_the_network_that_was_meant(tmp_path: Path) -> None:
    found = complaints(tmp_path, 'mynetworks = "192.168.0.1/24"')
    assert ["1: mynetworks: '192.168.0.1/24' has bits set beyond the prefix; did you mean '192.168.0.0/24'?"] == found


def test_lists_are_also_taken_as_one_string(tmp_path: Path) -> None:
    config = read(tmp_path, 'mynetworks = "10.0.0.0/8, [fe80::]/10"\nlocal_domains = "A.example .bücher.example"')
    assert [ip_network("10.0.0.0/8"), ip_network("fe80::/10")] == [pattern.value for pattern in config.mynetworks]
    assert ("a.example", ".xn--bcher-kva.example") == config.local_domains


def test_one_address_or_a_list_of_them_is_taken(tmp_path: Path) -> None:
    config = read(tmp_path, '[policy]\nlisten = "inet:0@localhost"\n[milter]\nlisten = ["unix:/a", "local:/b"]')
    assert (ListenAddress("inet", "localhost", 0),) == config.policy.listen
    assert ("unix:/a", "unix:/b") == tuple(map(str, config.milter.listen))


def test_restrictions_alone_are_the_recipient_list(tmp_path: Path) -> None:
    policy = read(tmp_path, '[policy]\nrestrictions = "permit_mynetworks, reject"').policy
    assert ["permit_mynetworks", "reject"] == [
        str(restriction) for name, _, restrictions in policy.lists() for restriction in restrictions
    ]


def test_a_list_of_strings_says_the_same_as_one_string(tmp_path: Path) -> None:
    one = read(tmp_path, '[policy]\nrestrictions = "permit_mynetworks, check_client_access hash:/x"')
    many = read(tmp_path, '[policy]\nrestrictions = ["permit_mynetworks", "check_client_access hash:/x"]')
    assert one.policy == many.policy


def test_a_context_holds_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    config = read(tmp_path, '[policy.contexts.submission]\nclient_restrictions = ["permit_sasl_authenticated"]')
    lists = {name: restrictions for name, _, restrictions in config.policy.contexts["submission"].lists()}
    assert (1, 0) == (len(lists["client"]), len(lists["recipient"]))


def test_every_check_with_options_has_its_section() -> None:
    sections = {name: field.annotation for name, field in ChecksSection.model_fields.items()}
    del sections["dkim"]  # no word of the lists: the milter asks it
    assert dict(SECTIONS) == sections


def test_a_section_decodes_straight_into_its_check(tmp_path: Path) -> None:
    config = read(tmp_path, '[checks.greylist]\ndelay = "10m"')
    assert 600.0 == config.checks.greylist.delay


def test_a_mistake_in_a_check_is_named_like_any_other(tmp_path: Path) -> None:
    assert ["2: unknown key 'dely' in [checks.greylist]; did you mean 'delay'?"] == complaints(
        tmp_path, '[checks.greylist]\ndely = "10m"'
    )
    assert ["1: unknown key 'greylst' in [checks]; did you mean 'greylist'?"] == complaints(
        tmp_path, "[checks.greylst]"
    )


TOML = """# comment
a = 1
[b]
list = [ # comment
  "x",
  { c = 1, d = 2 },
  ["y",
   "z"],
]
text = \"\"\"
[not a section]
key = 3
\"\"\"
[[b.tables]]
e = 1
[[b.tables]]
e = 2
"""

LINES = {
    ("a",): 2,
    ("b",): 3,
    ("b", "list"): 4,
    ("b", "list", 0): 5,
    ("b", "list", 1, "d"): 6,
    ("b", "list", 2, 1): 8,
    ("b", "text"): 10,
    ("b", "tables", 0, "e"): 15,
    ("b", "tables", 1, "e"): 17,
    ("b", "tables", 1, "missing"): 16,
    ("nothing",): 0,
}


@pytest.mark.parametrize(("path", "line"), LINES.items())
def test_every_key_is_found_at_the_line_where_it_stands(path: tuple[str | int, ...], line: int) -> None:
    assert line == KeyLocations(TOML).line(path)


@given(st.text(alphabet='ab[]{}=".,\n# 1_', max_size=120))
def test_places_take_any_text(text: str) -> None:
    assert 0 <= KeyLocations(text).line(("a", "b")) <= text.count("\n") + 1


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=5))
def test_any_value_of_an_option_is_taken_or_named_as_a_mistake(value: object) -> None:
    assert all(sentence for name in Config.model_fields for sentence in sentences(name, value))


def sentences(name: str, value: object) -> list[str]:
    try:
        Config.model_validate({name: value})
    except ValidationError as error:
        return [sentence for _, sentence in validation_errors(error, Config)]
    return []


def test_what_differs_from_postfix_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "gatekeeper.toml"
    file.write_text(
        'hostname = "MX.example.com"\nmynetworks = "127.0.0.0/8 ::1 10.0.0.0/8"\nrecipient_delimiter = "+"\n'
        'relay_domains = "customer.example .customer.example"\nlocal_domains = "other.example"\n'
    )
    config = load(file, lambda names: MAIN_CF)
    assert [
        "2: warning: mynetworks differs from Postfix's (only here: 10.0.0.0/8); leave it out to use Postfix's",
        "3: warning: recipient_delimiter is '+' here and '+-' in Postfix; leave it out to use Postfix's",
    ] == [str(problem).removeprefix(f"{file}:") for problem in config.drift]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("restrictions = permit_mynetworks, reject\n", "need quotes"),
        ('restrictions = "permit_mynetworks,\n  reject"\n', 'needs """'),
        ('restrictions = "check_client_access pcre:{ { /a\\.b/ OK } }"\n', "single quotes"),
        ('restrictions = ["permit_mynetworks"\n "reject"]\n', "commas between"),
        ('restrictions = "permit"\nrestrictions = "reject"\n', "a second time"),
    ],
)
def test_what_main_cf_may_do_and_toml_may_not_is_told_with_the_way_out(tmp_path: Path, text: str, hint: str) -> None:
    [complaint] = complaints(tmp_path, f"[policy]\n{text}")
    assert hint in complaint


def test_lists_may_be_one_string_everywhere(tmp_path: Path) -> None:
    text = """[checks.dnsbl]
lists = "zen.spamhaus.org=127.0.0.[2;4..11]*2, bl.spamcop.net"
[checks.access]
client = "hash:/a cidr:/b"
[checks.ratelimit]
client_messages = "10/1m, 100/1h"
"""
    checks = read(tmp_path, text).checks
    assert (2, ("hash:/a", "cidr:/b"), 2) == (
        len(checks.dnsbl.lists),
        checks.access.client,
        len(checks.ratelimit.client_messages),
    )


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("smtpd_null_access_lookup_key", "null@ours.example", "but gatekeeper asks access tables for '<>'; write"),
        ("parent_domain_matches_subdomains", "mynetworks, relay_domains", "is without smtpd_access_maps, but in"),
    ],
)
def test_what_main_cf_says_of_keys_and_is_not_so_here_is_told(name: str, value: str, what: str) -> None:
    keys = {"smtpd_null_access_lookup_key": "<>"}
    assert () == defaults(lambda _: MAIN_CF | keys | {"virtual_alias_domains": ""}).warnings
    [warning] = defaults(lambda _: MAIN_CF | keys | {"virtual_alias_domains": "", name: value}).warnings
    assert (True, True) == (what in warning.what, warning.warning)


@pytest.mark.parametrize("option", ["list_timeout", "workers", "peers", "socket_mode", "user_messages", "delay"])
@pytest.mark.parametrize("section", ["store", "dns", "log"])
def test_an_option_in_the_wrong_section_is_not_taken_for_a_misspelt_neighbour(
    tmp_path: Path, section: str, option: str
) -> None:
    if (section, option) == ("dns", "list_timeout"):
        return  # there it belongs
    [said, *_] = complaints(tmp_path, f"[{section}]\n{option} = 1\n")
    assert f"2: unknown key {option!r} in [{section}]; it belongs in [" in said
