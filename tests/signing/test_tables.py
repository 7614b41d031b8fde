# SPDX-License-Identifier: GPL-3.0-or-later
"""KeyTable and SigningTable in every form that relays use, and each mistake at its place."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatekeeper.core.problem import Problem
from gatekeeper.signing import data_set
from gatekeeper.signing.key_table import KeyTable, TableKey
from gatekeeper.signing.signing_table import SigningTable, _RefileIndex
from tests.support.signing_world import ed25519_pem, rsa, rsa_pem, write_key


class World:
    """A folder with a key, and tables written into it as they stand in relays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = write_key(folder / "mail.private")
        self.problems: list[Problem] = []

    def key_table(self, text: str, prefix: str = "") -> KeyTable:
        (self.folder / "KeyTable").write_text(text)
        table, problems = KeyTable.read(f"{prefix}{self.folder / 'KeyTable'}", base=self.folder)
        self.problems += problems
        return table

    def signing_table(self, text: str, prefix: str = "", keys: str = "k") -> SigningTable:
        table = self.key_table("".join(f"{name} example.com:mail:{self.key}\n" for name in keys.split()))
        (self.folder / "SigningTable").write_text(text)
        signing, problems = SigningTable.read(f"{prefix}{self.folder / 'SigningTable'}", table)
        self.problems += problems
        return signing

    def said(self) -> list[str]:
        return [str(problem).replace(f"{self.folder}/", "") for problem in self.problems]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def found(table: KeyTable, name: str, domain: str = "example.com") -> TableKey:
    key = table.find(name, domain)
    assert key is not None
    return key


def patterns(table: SigningTable, user: str, domain: str) -> list[str]:
    return [rule.pattern for rule in table.match(user, domain)]


# KeyTable


@pytest.mark.parametrize("prefix", ["", "file:", "refile:"])
def test_a_key_table_is_read_with_and_without_a_prefix(world: World, prefix: str) -> None:
    table = world.key_table(f"# keys\n\nmail._domainkey.example.com\texample.com:mail:{world.key}  # ours\n", prefix)
    key = found(table, "mail._domainkey.example.com")
    assert [] == world.said()
    assert ("example.com", "mail", str(world.key)) == (key.domain, key.selector, key.path)
    assert key.private is not None
    assert rsa().record() == key.private.record()


def test_a_key_table_may_be_a_comma_list_or_a_list_of_lines(world: World) -> None:
    for spec in (
        f"csl:k=example.com:mail:{world.key},",
        f"k = example.com:mail:{world.key}",
        [f"k e.com:s:{world.key}"],
    ):
        table, problems = KeyTable.read(spec)
        assert [] == problems
        assert "mail" == found(table, "k").selector or not isinstance(spec, str)


def test_key_names_are_case_sensitive_and_the_first_of_a_name_counts(world: World) -> None:
    table = world.key_table(
        f"k example.com:one:{world.key}\nK example.com:two:{world.key}\nk example.com:3:{world.key}\n"
    )
    assert ("one", "two") == (found(table, "k").selector, found(table, "K").selector)
    assert ["KeyTable:3: warning: key k: an earlier line has this name; this one is unused"] == world.said()


def test_a_key_may_stand_in_the_table_itself(world: World) -> None:
    bare = "".join(rsa_pem().decode().split("\n")[1:-2])
    one_line = rsa_pem().decode().replace("\n", "")
    table = world.key_table(f"bare example.com:mail:{bare}\npem example.com:mail:{one_line}\n")
    keys = [found(table, name).private for name in ("bare", "pem")]
    assert [] == world.said()
    assert [rsa().record()] * 2 == [key.record() for key in keys if key]
    assert [f"{world.folder}/KeyTable:{line}" for line in (1, 2)] == [key.origin for key in keys if key]


def test_a_percent_sign_for_the_domain_is_the_from_domain(world: World) -> None:
    table = world.key_table(f"k %:mail:{world.key}\n")
    key = found(table, "k", "example.org")
    assert ("example.org", True) == (key.domain, key.private is not None)


def test_a_percent_sign_in_a_path_finds_the_key_of_the_from_domain_read_at_the_start(world: World) -> None:
    for domain in ("example.com", "example.org"):
        (world.folder / domain).mkdir()
        write_key(world.folder / domain / f"{domain}.private")
    table = world.key_table(f"k %:mail:{world.folder}/%/%.private\n")
    (world.folder / "example.org" / "example.org.private").unlink()
    assert [True, True, False] == [
        found(table, "k", domain).private is not None for domain in ("example.com", "example.org", "example.net")
    ]


def test_a_percent_sign_in_the_path_of_a_fixed_domain_is_that_domain(world: World) -> None:
    write_key(world.folder / "example.com.private")
    table = world.key_table("k example.com:mail:./%.private\n")
    assert [] == world.said()
    assert str(world.folder / "example.com.private") == found(table, "k", "example.org").path


def test_a_fourth_field_counts_only_if_it_names_an_algorithm(world: World) -> None:
    write_key(world.folder / "a:b", ed25519_pem())
    table = world.key_table("good e.com:s:./a:b:ed25519-sha256\nplain e.com:s:./a:b\nwrong e.com:s:./a:b:rsa-sha256\n")
    assert [str(world.folder / "a:b")] * 2 == [found(table, name).path for name in ("good", "plain")]
    assert ["KeyTable:3: key wrong: its algorithm is ed25519-sha256, not rsa-sha256"] == world.said()


def test_names_in_a_refile_may_be_patterns(world: World) -> None:
    table = world.key_table(f"*.example.com %:mail:{world.key}\n", "refile:")
    assert "a.example.com" in table
    assert "a.EXAMPLE.com" not in table


def test_all_mistakes_of_a_key_table_are_named_at_once_and_the_rest_works(world: World) -> None:
    table = world.key_table(
        "stray\n"
        "two example.com:mail\n"
        "name exa mple.com:mail:/x\n"
        "sel example.com:a b:/x\n"
        "gone example.com:mail:./gone.private\n"
        f"spaced example.com : mail : {world.key}\n"
        f"nodot mail:example.com:{world.key}\n"
    )
    expected = "expected domain:selector:key, with a path or the key itself after the second :"
    assert [
        f"KeyTable:1: key stray: {expected}",
        f"KeyTable:2: key two: {expected}",
        "KeyTable:3: key name: exa mple.com is neither a valid domain name nor %",
        "KeyTable:4: key sel: a b is not a valid selector",
        "KeyTable:6: warning: key spaced: white space around a : is part of the value for OpenDKIM; remove it",
        "KeyTable:7: warning: key nodot: mail has no dot, so nobody can look its key up; write DOMAIN:SELECTOR:KEY",
        "gone.private: cannot read the private key, named in KeyTable:5: No such file or directory",
    ] == world.said()
    assert ("mail", True) == (found(table, "spaced").selector, found(table, "spaced").private is not None)
    assert found(table, "gone").private is None


def test_check_validates_every_key_once_and_names_inline_keys_by_their_line(world: World) -> None:
    table = world.key_table(f"a example.com:mail:nokey\nb example.com:mail:{world.key}\nc e.com:s:{world.key}\n")
    assert ["KeyTable:1: this is neither PEM nor base64"] == [
        str(problem).removeprefix(f"{world.folder}/") for problem in table.check()
    ]


SECRET = "MIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9"


@given(st.text(alphabet="k%:.# \t\n=,a-", max_size=60))
@example("k example.com:")
@example("k ")
@example("")
def test_a_key_in_a_wrong_place_is_not_shown(before: str) -> None:
    table, problems = KeyTable.read([f"{before}{SECRET}", f"k e.com:s:{SECRET}{before}"])
    assert not any(SECRET in str(problem) for problem in problems + table.check())


def test_an_inline_seed_that_begins_as_a_path_is_a_key_all_the_same() -> None:
    table, problems = KeyTable.read([f"k e.com:s:/{'A' * 42}="])
    assert [] == problems + table.check()


# SigningTable


def test_a_plain_table_is_asked_in_opendkims_order(world: World) -> None:
    lines = ["*", "joe@*", ".com", "joe@.com", ".example.com", "joe@.example.com", "a.example.com", "joe@a.example.com"]
    table = world.signing_table("".join(f"{line} k\n" for line in lines), "file:")
    assert [] == world.said()
    assert lines[::-1] == patterns(table, "joe", "a.example.com")
    assert ["a.example.com", ".example.com", ".com", "*"] == patterns(table, "ann", "a.example.com")
    assert ["joe@.com", ".com", "joe@*", "*"] == patterns(table, "JOE", "example.com")


def test_tables_are_matched_without_regard_to_case(world: World) -> None:
    assert ["Joe@Example.COM"] == patterns(world.signing_table("Joe@Example.COM k\n"), "jOE", "example.com")
    assert ["*@Example.COM"] == patterns(world.signing_table("*@Example.COM k\n", "refile:"), "jOE", "example.com")
    assert ["j?e@E.com"] == patterns(world.signing_table("j?e@E.com k\n", "refile:"), "JE", "e.com")


def test_a_star_at_domain_in_a_plain_file_matches_with_a_warning(world: World) -> None:
    table = world.signing_table("*@example.com k\n")
    assert ["*@example.com"] == patterns(table, "joe", "example.com")
    assert [] == patterns(table, "joe", "a.example.com")
    what = "*@example.com matches here, but in OpenDKIM only with refile: before the name of the file"
    assert [f"SigningTable:1: warning: {what}"] == world.said()


def test_other_patterns_in_a_plain_file_match_nothing_and_are_named(world: World) -> None:
    world.signing_table("*@*.example.com k\n")
    what = "*@*.example.com matches nothing; patterns need refile: before the name of the file"
    assert [f"SigningTable:1: warning: {what}"] == world.said()


def test_the_order_of_a_refile_decides(world: World) -> None:
    lines = ["joe@x.example.com", "*@*.example.com", "j*@x.example.com", "*@x.example.com", "*"]
    for order in (lines, lines[::-1]):
        table = world.signing_table("".join(f"{line} k\n" for line in order), "refile:")
        assert order == patterns(table, "joe", "x.example.com")
    assert [] == world.said()


def test_a_star_at_domain_does_not_match_subdomains(world: World) -> None:
    assert [] == patterns(world.signing_table("*@example.com k\n", "refile:"), "joe", "a.example.com")


def test_a_dot_and_a_plus_in_a_refile_are_themselves_and_the_rest_is_posix(world: World) -> None:
    text = "(ann|joe)@e.com k\na+[[:digit:]]{2}@e.com k\n[^x]y@e.com k\n"
    table = world.signing_table(text, "refile:")
    assert ["(ann|joe)@e.com"] == patterns(table, "joe", "e.com")
    assert ["a+[[:digit:]]{2}@e.com"] == patterns(table, "a+17", "e.com")
    assert [[], ["[^x]y@e.com"]] == [patterns(table, user, "e.com") for user in ("xy", "yy")]
    assert [] == patterns(table, "joe", "exe.com") + patterns(table, "aa17", "e.com")


def test_lines_of_a_refile_that_cannot_match_are_named(world: World) -> None:
    table = world.signing_table(" *@a.com k\nb.com k\n(*@c.com k\nd\\.x@d.com k\n", "refile:")
    assert [] == patterns(table, "joe", "a.com")
    white = "a line of a refile that starts with white space does not count, as in OpenDKIM; remove the white space"
    assert [
        f"SigningTable:1: warning: {white}",
        "SigningTable:2: warning: b.com matches nothing: a refile compares whole addresses; write *@b.com",
        "SigningTable:3: the pattern (*@c.com is not a valid regular expression",
        "SigningTable:4: warning: a backslash stands for itself here; . and + need none",
    ] == world.said()


def test_a_rule_names_its_place_its_key_and_its_signer(world: World) -> None:
    (rule,) = world.signing_table("\nexample.com %:joe@lists.%\n").match("joe", "example.com")
    assert f"{world.folder}/SigningTable:2" == rule.location
    assert ("example.com", "joe@lists.example.com") == (
        rule.key_for("example.com"),
        rule.signer_for("example.com"),
    )


def test_all_mistakes_of_a_signing_table_are_named_at_once(world: World) -> None:
    table = world.signing_table("a.com\nb.com kk\nc.com :x\nd.com k\nd.com k:joe\n")
    assert [
        "SigningTable:1: a.com: the name of a key is missing",
        "SigningTable:2: b.com: there is no key kk in the KeyTable",
        "SigningTable:3: c.com: the name of a key is missing",
        "SigningTable:5: warning: d.com: joe has no @, so that OpenDKIM signs nothing; here the signature has no i=",
        "SigningTable:5: warning: d.com: an earlier line has this pattern; this one is unused",
    ] == world.said()
    assert ["b.com"] == patterns(table, "joe", "b.com")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "/nonexistent/table",
            "SigningTable: cannot read the table /nonexistent/table: No such file or directory; fix the path",
        ),
        ("dsn:mysql://x", "SigningTable: dsn: tables are not supported, write their contents to a text file; allowed"),
        ("hash:/etc/x", "SigningTable: hash: is not a type of table; allowed"),
        ("/etc/x.db", "SigningTable: Berkeley DB files are not supported"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(spec: str, said: str) -> None:
    table, (problem,) = SigningTable.read(spec, KeyTable.read([])[0])
    assert str(problem).startswith(said)
    assert 0 == len(table)


def test_relative_paths_start_at_the_base_with_or_without_a_prefix(world: World) -> None:
    world.signing_table("example.com k\n")
    keys = KeyTable.read([])[0]
    for spec in ("SigningTable", "file:SigningTable", "refile:./SigningTable"):
        assert 1 == len(SigningTable.read(spec, keys, base=world.folder)[0])


@pytest.mark.slow
def test_a_hundred_thousand_domains_are_found_by_name_however_they_are_written(world: World) -> None:
    keys = world.key_table("".join(f"k{n} d{n}.com:s:{world.key}\n" for n in range(100_000)))
    assert "d99999.com" == found(keys, "k99999").domain
    for prefix, form in (("", "d{0}.com k{0}\n"), ("refile:", "*@d{0}.com k{0}\n")):
        (world.folder / "S").write_text("".join(form.format(n) for n in range(100_000)))
        table, problems = SigningTable.read(f"{prefix}{world.folder / 'S'}", keys)
        assert [] == problems
        assert ["k99999"] == [rule.key_name for rule in table.match("joe", "d99999.com")]


# against simpler ways to say the same

LABEL = st.sampled_from(["a", "b", "com"])
DOMAIN = st.lists(LABEL, min_size=1, max_size=3).map(".".join)
PATTERN = st.text(alphabet="ab*@.?+[]^(|)\\", max_size=8) | st.builds(
    "{}{}".format, st.sampled_from(["*@", "*@*.", "a@", "a*@", "", "*"]), DOMAIN
)


@given(st.lists(PATTERN, max_size=6), st.sampled_from(["a", "b", "ab", "a.b", '"a@b"']), DOMAIN)
def test_the_index_of_a_refile_finds_what_trying_each_pattern_in_order_finds(
    lines: Sequence[str], user: str, domain: str
) -> None:
    ordered = _RefileIndex()
    expected = []
    for number, line in enumerate(lines):
        try:
            if data_set.pattern(data_set.without_final_dot(line)).search(f"{user}@{domain}"):
                expected.append(number)
            ordered.add(number, line)
        except ValueError:
            pass
    assert expected == ordered.match(user, domain)


@pytest.mark.parametrize("pattern", ["@|.", "*.", "(a|b).", "a+.", "[a].", "."])
def test_a_dot_that_is_not_behind_a_label_is_part_of_the_pattern(world: World, pattern: str) -> None:
    table = world.signing_table(f"{pattern} k\n", "refile:")
    assert [] == patterns(table, "a", "a")


@given(st.text(max_size=20))
def test_a_literal_pattern_matches_itself_and_nothing_else(text: str) -> None:
    if data_set.is_literal(text):
        pattern = data_set.pattern(text, ignore_case=False)
        assert pattern.search(text)
        assert not pattern.search(text + "x")
        assert not pattern.search(text.replace(".", "x").replace("+", "x")) or not re.search(r"[.+]", text)


@given(st.text() | st.text(alphabet="k:%@*. \n#=,/", max_size=80))
def test_no_text_makes_a_table_raise(text: str) -> None:
    keys, problems = KeyTable.read(text.split("\n"))
    table, more = SigningTable.read(text.split("\n"), keys)
    list(table.match("joe", "example.com"))
    assert all(isinstance(problem, Problem) for problem in problems + more)
