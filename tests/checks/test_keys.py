# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that no lookup asks for are told with what to write; those that one asks for are never told to be in vain.

What matches was asked of a real Postfix: tests/same_as_postfix/odd_keys.txt and the sessions about it.
"""

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.builder.postfix_words import ASKED
from gatekeeper.checks.tables.access import domain_keys, mailbox_keys
from gatekeeper.checks.tables.client_list_reader import read_client_list
from gatekeeper.checks.tables.indexed import address_keys, fold
from gatekeeper.checks.tables.keys import ASKED_SHAPES, Asked, Shape, shape_of
from gatekeeper.postfix import client_list
from tests.support.checking import HERE, mistakes
from tests.support.postfix_sessions import FOLDER, LISTS, SESSIONS

NEVER = "neither Postfix nor gatekeeper matches"


def said(word: str, key: str) -> list[str]:
    """What is said about a key in a table of a word; the right-hand side is never an OK."""
    return mistakes(f"{word} inline:{{ {{ {key} = DUNNO }} }}", HERE)


@pytest.mark.parametrize(
    ("word", "key", "advice"),
    [
        ("check_client_access", "*.spam.example", "write 'spam.example', which covers subdomains too"),
        ("check_client_access", ".spam.example", "write 'spam.example', which covers subdomains too"),
        ("check_client_access", "*spam.example", "write 'spam.example', which covers subdomains too"),
        ("check_client_access", "spam.example.", "write 'spam.example', which covers subdomains too"),
        ("check_client_access", "192.168.", "write '192.168'"),
        ("check_client_access", "10.1.2.*", "write '10.1.2'"),
        ("check_client_access", "10.1.*.*", "write '10.1'"),
        ("check_client_access", "10.*", "write '10'"),
        ("check_client_access", "10.1.2.x", "write '10.1.2'"),
        ("check_client_access", "[192.0.2.1]", "write '192.0.2.1'"),
        ("check_client_access", "[192.0.2.1]:25", "write '192.0.2.1'"),
        ("check_client_access", "192.0.2.1:25", "write '192.0.2.1'"),
        ("check_client_access", "192.0.2.1.", "write '192.0.2.1'"),
        ("check_client_access", "192.000.002.001", "write '192.0.2.1'"),
        ("check_client_access", "192.0.2.1-192.0.2.9", "write the networks of the range into a cidr: table"),
        ("check_client_access", "[2001:db8::1]", "write '2001:db8::1'"),
        ("check_client_access", "2001:0db8::1", "write '2001:db8::1'"),
        ("check_client_access", "2001:db8:0:0:0:0:0:1", "write '2001:db8::1'"),
        ("check_client_access", "::ffff:192.0.2.1", "write '192.0.2.1'"),
        ("check_client_access", "::ffff:c000:201", "write '192.0.2.1'"),
        ("check_client_access", "10.0.0.1/8", "did you mean '10.0.0.0/8'?"),
        ("check_client_access", "192.0.2.0/33", "allowed: "),
        ("check_client_access", "connect:192.168", "write '192.168'"),
        ("check_client_access", "mail.example:25", "write 'mail.example', which covers subdomains too"),
        ("check_client_access", "mail.example:", "this is not an alias file: write 'mail.example', which"),
        ("check_client_access", "bücher.example", "write 'xn--bcher-kva.example', which covers subdomains too"),
        ("check_client_access", "mail*.example", "for patterns take a pcre: table"),
        ("check_client_access", "*", "for patterns take a pcre: table"),
        ("check_client_access", "user@mail.example", "it is a mailbox, and this table is asked for clients, by name"),
        ("check_client_access", "user@", "it is a mailbox of any domain, and this"),
        ("check_client_access", "@mail.example", "write 'mail.example', which covers subdomains too"),
        ("check_client_access", "<>", "it is the null sender, and this table is asked for clients"),
        ("check_client_access", "300.1.1.1", "it is neither a name nor an address nor a mailbox"),
        ("check_client_access", "http://spam.example/", "allowed: "),
        ("check_reverse_client_hostname_access", "*.spam.example", "write 'spam.example'"),
        ("check_sender_access", "*@bad.example", "write 'bad.example', which covers subdomains too"),
        ("check_sender_access", "*@*.bad.example", "write 'bad.example', which covers subdomains too"),
        ("check_sender_access", "*.bad.example", "write 'bad.example', which covers subdomains too"),
        ("check_sender_access", "@.bad.example", "write 'bad.example', which covers subdomains too"),
        ("check_sender_access", "user@*", "write 'user@'"),
        ("check_sender_access", "user@bad.example.", "write 'user@bad.example'"),
        ("check_sender_access", "user@.bad.example", "for patterns take a pcre: table"),
        ("check_sender_access", "user@*.bad.example", "for patterns take a pcre: table"),
        ("check_sender_access", "user+*@bad.example", "for patterns take a pcre: table"),
        ("check_sender_access", "<user@bad.example>", "write 'user@bad.example'"),
        ("check_sender_access", "from:user@bad.example", "write 'user@bad.example'"),
        ("check_sender_access", "[bad.example]", "write 'bad.example', which covers subdomains too"),
        ("check_sender_access", "192.0.2.1", "it is an address, and this table is asked for senders"),
        ("check_sender_access", "192.168.", "it is neither a name"),
        ("check_sender_access", "10.0.0.0/8", "it is a network, and this table is asked for senders"),
        ("check_sender_access", "2001:db8::1", "it is an address, and"),
        ("check_recipient_access", "<>", "it is the null sender, and this table is asked for recipients"),
        ("check_recipient_access", "*@bad.example", "write 'bad.example', which covers subdomains too"),
        ("check_helo_access", "*.bad.example", "write 'bad.example', which covers subdomains too"),
        ("check_helo_access", "user@bad.example", "it is a mailbox, and this table is asked for HELO names"),
        ("check_helo_access", "10.0.0.0/8", "put 10.0.0.0/8 into a cidr: table"),
        ("check_helo_access", "192.168", "put 192.168.0.0/16 into a cidr: table"),
        ("check_sender_mx_access", "user@bad.example", "it is a mailbox, and this table is asked for servers, by name"),
        ("check_sender_mx_access", "*.bad.example", "write 'bad.example', which covers subdomains too"),
        ("check_sender_a_access", "bad.example", "it is a host name, and this table is asked for servers, by address"),
        ("check_sasl_access", "*@ours.example", "for patterns take a pcre: table"),
        ("check_sasl_access", "@ours.example", "it is all mailboxes of a domain, and this table is asked for logins"),
        ("check_etrn_access", "192.0.2.1", "it is an address, and this table is asked for domains"),
        (
            "check_ccert_access",
            "aabbccddeeff00112233445566778899",
            "write 'aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88",
        ),
        ("check_ccert_access", "mail.example", "it is a host name, and this table is asked for fingerprints"),
    ],
)
def test_a_key_that_never_matches_is_told_with_what_to_write(word: str, key: str, advice: str) -> None:
    [what] = said(word, key)
    assert what.startswith(f"{NEVER} {key!r} here")
    assert advice in what


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("check_client_access", "spam.example a_b.example 192.0.2.1 192.168 10 2001:db8::1 2001:DB8:0:1 unknown xyz"),
        ("check_helo_access", "spam.example localhost 192.0.2.1 [192.0.2.1] [ipv6:2001:db8::1]"),
        ("check_sender_access", 'spam.example a@b.example a+x@b.example a@ a+x@ <> "a b"@c.example [192.0.2.1]'),
        ("check_sender_access", "jörg@b.example j=x@b.example a@[192.0.2.1] o'hara@b.example a..b@c.example xyz"),
        ("check_recipient_access", "spam.example a@b.example postmaster@ postmaster"),
        ("check_sasl_access", "joe joe@b.example 1234 x\\joe jörg 192.0.2.1"),
        ("check_sender_ns_access", "ns.example 192.0.2.1 192.168"),
        ("check_ccert_access", "aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD"),
    ],
)
def test_a_key_that_may_match_is_not_told(tmp_path: Path, word: str, keys: str) -> None:
    (tmp_path / "access").write_text("".join(f"{key} DUNNO\n" for key in re.findall(r'(?:"[^"]*"|\S)+', keys)))
    assert [] == mistakes(f"{word} hash:access", tmp_path)


@pytest.mark.parametrize(
    ("word", "key", "what"),
    [
        (
            "check_sender_access",
            "@a.example",
            "Postfix never matches '@a.example' here, but gatekeeper does; write 'a.ex",
        ),
        ("check_client_access", "10.0.0.0/8", "Postfix never matches the network 10.0.0.0/8 here, but gatekeeper does"),
        ("check_client_access", "2001:db8::", "'2001:db8::' matches this one address, as in Postfix; a network is"),
        ("check_sender_access", "bücher.example", "matches only where it is said in this script (SMTPUTF8), as in"),
        ("check_sender_access", "a@bücher.example", "add a line for 'a@xn--bcher-kva.example'"),
    ],
)
def test_a_key_that_matches_otherwise_than_one_may_think_is_told(word: str, key: str, what: str) -> None:
    assert [True] == [what in one for one in said(word, key)]


def test_a_table_is_judged_by_all_that_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "access").write_text(
        "a@b.example DUNNO\n192.0.2.1 DUNNO\n[192.0.2.1] DUNNO\n*.c.example DUNNO\n<> DUNNO\n"
    )
    words = "check_client_access hash:access, check_sender_access hash:access, check_recipient_access hash:access"
    [what] = mistakes(words, tmp_path)
    assert f"{NEVER} '*.c.example' here; write 'c.example', which covers subdomains too" == what


def test_what_is_told_of_keys_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("".join(f"*.{n}.example DUNNO\n" for n in range(1000)))
    problems = mistakes("check_client_access hash:access", tmp_path)
    assert (21, "and 980 more keys like '*.0.example'") == (len(problems), problems[-1])


@pytest.mark.parametrize("word", [word for word, asked in ASKED.items() if not asked.has_addresses])
def test_a_cidr_table_that_is_never_asked_for_an_address_is_told(word: str) -> None:
    [what] = mistakes(f"{word} cidr:{{ {{ 192.0.2.0/24 REJECT }} }}", HERE)
    assert "never matches: a cidr: table knows addresses only, and it is asked for" in what


@pytest.mark.parametrize(
    ("option", "word", "key", "advice"),
    [
        ("sender_login_maps", "reject_sender_login_mismatch", "*@ours.example", "write '@ours.example'"),
        ("sender_login_maps", "reject_sender_login_mismatch", ".ours.example", "write '@ours.example'"),
        ("sender_login_maps", "reject_sender_login_mismatch", "joe@", "it is a mailbox of any domain, and this"),
        ("sender_login_maps", "reject_sender_login_mismatch", "<joe@ours.example>", "write 'joe@ours.example'"),
        ("relay_clientcerts", "permit_tls_clientcerts", "host.example", "asked for fingerprints of certificates"),
    ],
)
def test_keys_in_tables_of_policy_are_told_too(option: str, word: str, key: str, advice: str) -> None:
    reader = CheckBuilder({}, HERE, maps={option: ([f"inline:{{ {{ {key} = joe }} }}"], SourceLine("g.toml", 3))})
    assert reader.check([word], SourceLine("g.toml", 9)) is not None
    assert [(3, True)] == [(problem.line, advice in problem.what) for problem in reader.problems]


@pytest.mark.parametrize(
    ("parents", "key", "advice"),
    [
        (True, "10.0.0.0/8", "put 10.0.0.0/8 into a cidr: table"),
        (True, "192.168", "put 192.168.0.0/16 into a cidr: table"),
        (True, "*.ours.example", "write 'ours.example'"),
        (True, ".ours.example", "write 'ours.example'"),
        (False, "*.ours.example", "write '.ours.example'"),
        (True, "a@ours.example", "it is a mailbox"),
        (True, "ours.example", ""),
        (False, ".ours.example", ""),
    ],
)
def test_keys_in_tables_of_mynetworks_are_told_too(tmp_path: Path, parents: bool, key: str, advice: str) -> None:
    (tmp_path / "hosts").write_text(f"{key} x\n")
    patterns = [client_list.parse_pattern("hash:hosts")]
    _, problems = read_client_list(patterns, "mynetworks", SourceLine("x"), tmp_path, parents=parents)
    assert ([True] if advice else []) == [advice in problem.what for problem in problems]


def folded(key: str) -> str:
    return fold(key.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


NAMES = st.from_regex(
    r"[a-zA-Z_]([a-z0-9_-]{0,5}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?){0,3}\.[a-z]{2,4}", fullmatch=True
)
LOCALS = st.from_regex(r"[a-zA-Z0-9!#$%&'+/=?^_`{|}~.-]{1,12}", fullmatch=True) | st.from_regex(
    r"[a-z @.,]{1,8}", fullmatch=True
)


@given(NAMES, st.ip_addresses())
@example("a.example", IPv6Address("2001:db8::1"))
@example("a.example", IPv6Address("1::2:0:0:3:4"))
@example("a.example", IPv4Address("0.0.0.0"))
def test_what_is_asked_for_about_a_client_is_never_told_to_be_in_vain(
    name: str, address: IPv4Address | IPv6Address
) -> None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return  # Postfix and gatekeeper know it as an IPv4 address
    keys = [*domain_keys(name), *(key for key in address_keys(str(address)) if key.strip(":"))]
    for asked in (Asked.CLIENT, Asked.SERVER):
        assert [] == [key for key in keys if shape_of(folded(key)) not in ASKED_SHAPES[asked]]


@given(LOCALS, NAMES, st.sampled_from(["", "+", "-"]))
def test_what_is_asked_for_about_a_mailbox_is_never_told_to_be_in_vain(local: str, name: str, delimiter: str) -> None:
    quoted, *others = mailbox_keys(f"{local}@{name}", delimiter)
    # A local part that needs quotes is asked for without them too: nobody writes such a key.
    keys = [quoted, *(key for key in others if '"' not in quoted)]
    assert [] == [key for key in keys if shape_of(folded(key)) not in ASKED_SHAPES[Asked.SENDER]]


@given(st.text(max_size=40) | st.text('a1.*@:/[]<>-x" é', max_size=20))
def test_whatever_a_key_is_something_bounded_is_said(key: str) -> None:
    assert isinstance(shape_of(folded(key)), Shape)
    inline = key.translate({ord(c): None for c in "{}=, \t\r\n"})
    for word in ASKED:
        assert len(said(word, inline or "x")) <= 2


ODD = [number for number, table in enumerate(LISTS) if "odd_keys.txt" in table.get("recipient", "")]


@pytest.mark.parametrize("number", ODD)
def test_what_postfix_matched_is_not_told_and_what_it_did_not_is(number: int, tmp_path: Path) -> None:
    """The lookup of a session that found something found a key about which nothing is said."""
    word = LISTS[number]["recipient"].split()[0]
    told = {
        what.split("'")[1] for what in mistakes(f"{word} texthash:{FOLDER}/odd_keys.txt", tmp_path) if NEVER in what
    }
    for session in SESSIONS:
        if session.judged_by != number:
            continue
        words = session.words
        keys = {
            "check_client_access": [*domain_keys(words["name"]), *address_keys(words["client"])],
            "check_helo_access": [*domain_keys(words["helo"])],
        }.get(word, [*mailbox_keys(words["to" if "recipient" in word else "from"], "+")])
        odd = [
            line.split()[0].lower() for line in (FOLDER / "odd_keys.txt").read_text().splitlines() if line[:1] != "#"
        ]
        found = [key for key in keys if key.lower() in odd]
        assert bool(session.postfix or session.gatekeeper) == bool(found), session
        if word != "check_helo_access":  # a HELO may be said in any form, the mistaken one too
            assert not told & {*found[:1]} or words["from"].startswith("*")


@pytest.mark.parametrize(
    ("network", "meant"), [("::ffff:192.0.2.0/120", "192.0.2.0/24"), ("::ffff:c000:201", "192.0.2.1")]
)
def test_ipv4_written_as_ipv6_in_a_cidr_table_is_told(network: str, meant: str) -> None:
    for rules in (f"{{ {network} REJECT }}", f"{{ if 0.0.0.0/0 }} {{ {network} REJECT }} {{ endif }}"):
        [what] = mistakes(f"check_client_access cidr:{{ {rules} }}", HERE)
        assert what.endswith(f"such clients have IPv4 addresses; write {meant}{'' if '/' in meant else '/32'}")
    assert [] == mistakes("check_client_access cidr:{ { 2001:DB8:A::/48 REJECT } }", HERE)
