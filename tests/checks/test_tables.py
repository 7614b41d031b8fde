# SPDX-License-Identifier: GPL-3.0-or-later
"""Table files: how lines are read, how patterns match, and that every mistake is named with its line."""

import os
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.action import TableAction
from gatekeeper.checks.tables.indexed import parse_indexed
from gatekeeper.checks.tables.keys import Asked
from gatekeeper.checks.tables.packed import Packed
from gatekeeper.checks.tables.reader import READERS, TableReader
from gatekeeper.checks.tables.regex import compile_perl, compile_posix
from gatekeeper.checks.tables.table import Actions, Table, text_lines
from gatekeeper.pipeline.check import Check
from tests.support.checking import World, mistakes, rcpt
from tests.support.needs import require_program


def no_restrictions(text: str) -> tuple[Check, ...]:
    raise ValueError(f"unknown restriction {text!r}")


def parse(type: str, text: str) -> tuple[Table, list[str]]:
    """The table, and its problems as `line: what`."""
    actions = Actions("t", no_restrictions)
    table = READERS[type](text.encode("utf-8", "surrogateescape"), actions)
    return table, [f"{problem.line}: {problem.what}" for problem in actions.finish()]


def text_of(action: TableAction | None) -> str:
    """The text of an entry `REJECT text`, or what else it is."""
    return "" if action is None else action.verdict.text or action.verdict.reason


def find(type: str, text: str, key: str) -> str:
    return text_of(parse(type, text)[0].search([key]))


def test_comments_do_not_count_and_blanks_continue_a_line() -> None:
    text = "# c\n\na 1\n  2\n   # c\n\n\t3\nb\r\n"
    assert [(3, "a 1 2 3"), (8, "b")] == list(text_lines(text.encode()))


def test_keys_are_folded_and_the_first_of_two_counts() -> None:
    table, problems = parse("hash", "A.Example REJECT one\na.example REJECT two\n")
    assert "one" == text_of(table.search(["a.example"]))
    assert ["2: 'a.example' occurs twice; the first one counts"] == problems


def test_every_mistake_is_named_with_its_line() -> None:
    text = "a REJECT\nb\nc REDIRECT nobody\nd FILTER x\ne PREPEND x\nf nonsense\ng hash:x\nh OK if=x\ni nonsense\n"
    assert [2, 3, 4, 5, 6, 7, 8, 9] == [int(problem.partition(":")[0]) for problem in parse("hash", text)[1]]


def test_problems_of_one_file_are_bounded() -> None:
    problems = parse("hash", "".join(f"k{n} nonsense\n" for n in range(1000)))[1]
    assert (51, "0: and 950 more") == (len(problems), problems[-1])


def test_the_first_network_of_a_cidr_table_that_matches_counts() -> None:
    table = parse(
        "cidr", "192.0.2.1 REJECT host\n192.0.0.0/16 REJECT wide\n192.0.2.0/24 REJECT late\n::/0 REJECT six\n"
    )[0]
    found = [text_of(table.search_address(ip_address(a))) for a in ("192.0.2.1", "192.0.2.2", "198.51.100.1", "::1")]
    assert ["host", "wide", "", "six"] == found


@given(
    st.from_regex(r"(\d{1,3}\.){3}\d{1,3}(/\d{1,3})?", fullmatch=True) | st.ip_addresses(v=4).map(lambda a: f"{a}/31")
)
def test_the_short_way_to_read_a_network_comes_to_what_the_library_says(text: str) -> None:
    try:
        network = ip_network(text)
    except ValueError:
        network = None
    table, problems = parse("cidr", f"{text} REJECT yes\n")
    assert (network is None) is bool(problems)
    if network is not None:
        assert "yes" == text_of(table.search_address(network.broadcast_address))


def test_a_cidr_table_does_not_match_names() -> None:
    assert "" == find("cidr", "0.0.0.0/0 REJECT", "mail.example")


def test_conditions_in_a_cidr_table() -> None:
    inner = "if !192.0.2.1\n192.0.2.0/24 REJECT two\nendif\n"
    text = f"if 192.0.0.0/16\n!192.0.2.0/24 REJECT not two\n{inner}endif\n::/0 REJECT six\n"
    table, problems = parse("cidr", text)
    found = [
        text_of(table.search_address(ip_address(a))) for a in ("192.0.3.1", "192.0.2.2", "192.0.2.1", "1.2.3.4", "::1")
    ]
    assert (["not two", "two", "", "", "six"], []) == (found, problems)


def test_a_network_with_host_bits_is_refused() -> None:
    [problem] = parse("cidr", "10.0.0.1/8 OK")[1]
    assert problem == "1: '10.0.0.1/8' has bits set beyond the prefix; did you mean '10.0.0.0/8'?"


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        (r"/^mail[[:digit:]]+\.example$/", "MAIL12.example", True),
        (r"/^mail/i", "MAIL", False),
        (r"/[[:alpha:][:digit:]_-]+\.x/", "a1_-.x", True),
        (r"/^[^[:space:]]+$/", "a b", False),
        (r"/^[\.]$/", "\\", True),  # a backslash in brackets is itself
        (r"/^[]x]$/", "]", True),
        (r"/^[a\]$/", "\\", True),
        (r"/\<smtp\>/", "my smtp here", True),
        (r"!/example/", "other.org", True),
        (r"/a\/b/", "a/b", True),
        (r"|a/b|", "a/b", True),
    ],
)
def test_regexp_patterns_match_as_posix_has_them(pattern: str, key: str, matches: bool) -> None:
    assert ("yes" if matches else "") == find("regexp", f"{pattern} REJECT yes", key)


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        (r"/^\d+\.example$/", "12.example", True),
        (r"/^(?:a|b)+?$/", "ab", True),
        (r"/b/A", "ab", False),
        (r"/a b/x", "ab", True),
        (r"/[[:upper:]]/i", "a", False),
        (r"/^[\w\]]+$/", "a]", True),
        (r"/^(?!good)/", "bad", True),
        (r"/^\Qa.b\E$/", "a.b", True),
        (r"/^(a(?1)?b)$/", "aabb", True),
        (r"/^(?<n>a)\h\k<n>$/", "a a", True),
        (r"/^..$/", "\N{LATIN SMALL LETTER U WITH DIAERESIS}", True),  # bytes, as Postfix has them
    ],
)
def test_pcre_patterns_match_as_perl_has_them(pattern: str, key: str, matches: bool) -> None:
    assert ("yes" if matches else "") == find("pcre", f"{pattern} REJECT yes", key)


@pytest.mark.parametrize(
    ("type", "line"),
    [
        ("regexp", r"/\d/ OK"),
        ("regexp", r"/(?:a)/ OK"),
        ("regexp", r"/a/x OK"),
        ("regexp", r"/a++/ OK"),
        ("regexp", r"/[[.a.]]/ OK"),
        ("regexp", r"/[a/ OK"),
        ("regexp", r"/a OK"),
        ("regexp", r"/a/q OK"),
        ("regexp", r"/a/!/b/ OK"),
        ("regexp", r"/a/"),
        ("regexp", r"a OK"),
        ("regexp", r"/(a)/ REJECT $2"),
        ("regexp", r"/(a)/ REJECT $x"),
        ("regexp", r"!/(a)/ REJECT $1"),
        ("regexp", r"endif"),
        ("regexp", r"/*a/ OK"),
        ("regexp", r"/a{/ OK"),
        ("regexp", r"/a|*b/ OK"),
        ("pcre", r"/(a/ OK"),
        ("pcre", r"/a/q OK"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_line(type: str, line: str) -> None:
    assert ["2"] == [problem.partition(":")[0] for problem in parse(type, f"# first\n{line}\n")[1]]


def test_an_if_without_endif_is_refused() -> None:
    assert ["1: if without endif"] == parse("pcre", "if /a/\n/b/ OK\n")[1]


def test_conditions_nest() -> None:
    text = "if /example/\nif !/^good/\n/./ REJECT bad\nendif\n/./ OK\nendif\n/./ REJECT other\n"
    assert ["bad", "access.ok", "other"] == [find("pcre", text, k) for k in ("x.example", "good.example", "x.org")]


def test_groups_are_put_into_the_text() -> None:
    assert "no a, b $5" == find("pcre", "/^(.)(.)$/ REJECT no ${1}, $(2) $$5", "ab")


def test_a_repeat_within_a_repeat_is_warned_of() -> None:
    assert "has a repeat directly inside a repeat" in parse("pcre", "/^(a+)+$/ OK")[1][0]
    assert [] == parse("pcre", r"/^([a-z]+\.)*example$/ OK")[1]


def test_patterns_see_the_whole_and_never_a_part() -> None:
    table = parse("pcre", "/^example$/ REJECT")[0]
    assert table.search(["mail.example", "example"]) is None


@pytest.mark.parametrize("name", ["mysql:/x", "proxy:mysql:/x", "/etc/postfix/access", "hash:", "memcache:/x"])
def test_a_table_that_cannot_be_read_is_refused_with_what_is_allowed(name: str) -> None:
    assert ["allowed: hash:FILE" in what for what in mistakes(f"check_client_access {name}")] == [True]


def test_a_missing_file_is_named_where_it_is_written() -> None:
    tables = TableReader(Path("/nonexistent"), no_restrictions)
    assert None is tables.read("hash:access", SourceLine("gatekeeper.toml", 7), Asked.CLIENT)
    assert ["gatekeeper.toml:7: cannot read /nonexistent/access: No such file or directory"] == list(
        map(str, tables.problems)
    )


def test_a_file_is_read_once_and_its_mistakes_told_once(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("a nonsense\n")
    words = "check_client_access hash:access, check_helo_access hash:access"
    assert 1 == len(mistakes(words, tmp_path))


@given(
    type=st.sampled_from(sorted(READERS)),
    text=st.text(max_size=200) | st.text("/!ifend ()[]\\$1aA+*.:0-9\n REJCT", max_size=80),
)
def test_any_text_is_a_table_with_problems_at_lines_that_exist(type: str, text: str) -> None:
    table, problems = parse(type, text)
    assert all(0 <= int(problem.partition(":")[0]) <= text.count("\n") + 1 for problem in problems)
    table.search(["mail.example", "example"])
    table.search_address(ip_address("192.0.2.1"))


@given(st.text("ab[]^$.*+?(){}|\\:dw-", max_size=30))
def test_any_pattern_is_compiled_or_refused(pattern: str) -> None:
    for compile in (compile_posix, compile_perl):
        try:
            compile(pattern, "")
        except ValueError:
            continue


LINES = "A.example REJECT one\n# c\n  two\n\nb OK\n  \tx\n192.0.2 DUNNO\nb REJECT twice\n"


@pytest.mark.parametrize("cut", range(len(LINES)))
def test_a_file_cut_anywhere_is_still_read(cut: int) -> None:
    table, _ = parse("hash", LINES[:cut])
    assert text_of(table.search(["a.example"])) in (
        "",
        "access.reject",
        *("one two"[:n] for n in range(8)),
        "Access denied",
    )


HOSTILE = [("^(a+)+$", "a" * 60 + "!"), ("(a|aa)+$", "a" * 999 + "!"), (r"(\w+\s?)+$", "a" * 60 + "!")]


@pytest.mark.parametrize(("pattern", "key"), HOSTILE)
@pytest.mark.parametrize("type", ["regexp", "pcre"])
def test_a_pattern_that_would_take_for_ever_is_given_up_and_the_next_one_asked(
    type: str, pattern: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    hard = f"/{pattern}/ REJECT hard\n!/{pattern}/ REJECT hard\nif /{pattern}/\n/./ REJECT inside\nendif\n"
    text = f"{hard}/./ REJECT next\n"
    assert "next" == find(type, text, key)
    assert ["t:1", "t:2", "t:3"] == [line.split(": ")[0] for line in caplog.messages]


@given(key=st.text(max_size=80) | st.sampled_from("ab").map(lambda char: char * 500))
@pytest.mark.parametrize("pattern", ["(a*)*b", "(.*)(.*)(.*)x", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_any_name_is_matched_within_the_limit(pattern: str, key: str) -> None:
    assert find("pcre", f"/{pattern}/ REJECT yes", key) in ("", "yes")


@given(st.dictionaries(st.binary(max_size=12).filter(lambda key: not set(key) & {9, 10}), st.binary(max_size=9)))
def test_packed_entries_are_found_again_and_nothing_else(entries: dict[bytes, bytes]) -> None:
    texts = {key: text.replace(b"\n", b" ") for key, text in entries.items()}
    packed = Packed(len(texts))
    assert all(packed.add(key, text) for key, text in texts.items())
    assert not any(packed.add(key, b"again") for key in texts)
    assert texts == {key: packed.find(key) for key in packed.keys()}  # noqa: SIM118 (no dict)
    assert [] == [key for key in (b"", b"x", b"absent") if packed.find(key) != texts.get(key)]


POSTMAP_KEYS = [
    "strasse.example",
    "STRA\N{LATIN SMALL LETTER SHARP S}E.example",
    "\N{LATIN CAPITAL LETTER A WITH DIAERESIS}B@x.example",
    '"a b"@x.example',
    "tab",
    "nbsp",
    "colon:",
    "colon",
]
POSTMAP_TABLE = (
    "# c\nStra\N{LATIN SMALL LETTER SHARP S}e.example  REJECT fold\n"
    "\N{LATIN SMALL LETTER A WITH DIAERESIS}b@x.example REJECT a\n b\n"
    '"A b"@x.example  REJECT quoted\ntab\tREJECT v\nnbsp\N{NO-BREAK SPACE}x  REJECT y\ncolon: REJECT zz\n'
)


def settle(folder: Path) -> None:
    """Make the files look old: Postfix waits for those that are younger than a second, which may not be whole yet."""
    for path in folder.iterdir():
        os.utime(path, (0, 0))


@pytest.mark.integration("postfix")
def test_keys_are_cut_and_folded_as_postmap_does(tmp_path: Path) -> None:
    postmap = require_program("postmap", "postfix")
    (tmp_path / "main.cf").write_text("compatibility_level = 3.6\nsmtputf8_enable = yes\n")
    (tmp_path / "table").write_text(POSTMAP_TABLE)
    settle(tmp_path)
    asked: list[str | Path] = [postmap, "-c", tmp_path, "-q", "-", f"texthash:{tmp_path}/table"]
    run = subprocess.run(asked, input="\n".join(POSTMAP_KEYS), capture_output=True, text=True, timeout=20)
    ours = {key: find("texthash", POSTMAP_TABLE, key) for key in POSTMAP_KEYS}
    theirs = dict(line.split("\tREJECT ") for line in run.stdout.splitlines())
    assert theirs == {key: text for key, text in ours.items() if text}


REGEXPS = [
    r"^(a|b{1,2})+c$",
    r"a{,2}b",
    r"\<smtp\>",
    r"^[]a\]+$",
    r"(^|x)y$",
    r"[[:digit:]]{2,}",
    r"(a)(b)?\1",
    "a|b|",
    "()",
]
SUBJECTS = ["abbc", "aab", "my smtp x", "]]", "xy", "y", "a12", "aba", "MAIL.Example", "\\"]


@pytest.mark.parametrize("pattern", REGEXPS)
@pytest.mark.integration("postfix")
def test_regexp_tables_match_what_postmap_says(tmp_path: Path, pattern: str) -> None:
    postmap = require_program("postmap", "postfix")
    (tmp_path / "main.cf").write_text("compatibility_level = 3.6\n")
    (tmp_path / "table").write_text(f"/{pattern}/ REJECT yes\n")
    settle(tmp_path)
    asked: list[str | Path] = [postmap, "-c", tmp_path, "-q", "-", f"regexp:{tmp_path}/table"]
    run = subprocess.run(asked, input="\n".join(SUBJECTS), capture_output=True, text=True, timeout=20)
    theirs = [line.split("\t")[0] for line in run.stdout.splitlines()]
    assert theirs == [key for key in SUBJECTS if find("regexp", f"/{pattern}/ REJECT yes", key)]


@pytest.mark.integration("postfix")
def test_postmap_reads_the_same(tmp_path: Path) -> None:
    postmap = require_program("postmap", "postfix")
    (tmp_path / "main.cf").write_text("compatibility_level = 3.6\n")
    text = "A.Example\tREJECT one\n  two\n# no\nb.example   OK\nuser@ DUNNO\nb.example REJECT\n"
    (tmp_path / "table").write_text(text)
    settle(tmp_path)
    run = subprocess.run(
        [postmap, "-c", tmp_path, "-s", f"texthash:{tmp_path}/table"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    theirs = sorted(line.split("\t")[0] for line in run.stdout.splitlines())
    table, _ = parse("texthash", text)
    assert theirs == sorted(key.decode() for key in table.entries.keys())  # type: ignore[attr-defined]  # noqa: SIM118 (no dict)


def test_entries_that_say_the_same_share_one_action() -> None:
    table, problems = parse("hash", "".join(f"host{n}.example REJECT\n" for n in range(20_000)))
    assert [] == problems
    assert table.search(["host0.example"]) is table.search(["host19999.example"])


@pytest.mark.parametrize(
    ("entry", "sender", "expected"),
    [
        ("REDIRECT $1@archive.example", "joe@net.example", "REDIRECT joe@archive.example"),
        ("REDIRECT $1@archive.example", "a b@net.example", ""),
        ("BCC $1@archive.example", "a\tb@net.example", ""),
        ("REDIRECT $1@archive.example", "bürger@net.example", "REDIRECT bürger@archive.example"),
        ("BCC $1@archive.example", "用户@net.example", "BCC 用户@archive.example"),
        ("REDIRECT $1@archive.example", "b\udcfcrger@net.example", "REDIRECT b\udcfcrger@archive.example"),
        ("REDIRECT $1@archive.example", f"{'a' * 300}@net.example", f"REDIRECT {'a' * 300}@archive.example"),
        ("REDIRECT $1$1$1$1@archive.example", f"{'a' * 300}@net.example", ""),
        ("REDIRECT $1@archive.example", "a\x1bb@net.example", ""),
        ("FILTER smtp:$1", "ü@net.example", "FILTER smtp:ü"),
        ("PREPEND X-From: $1", "bürger@net.example", "PREPEND X-From: bürger"),
        ("PREPEND X-From: $1", "a\x1b\x7fb@net.example", 'PREPEND X-From: "a??b"'),
        ("FILTER $1:[192.0.2.1]", "smtp@net.example", "FILTER smtp:[192.0.2.1]"),
        ("FILTER $1:[192.0.2.1]", "smtp:[198.51.100.1] x@net.example", ""),
        ("PREPEND X-From: $1", "a b@net.example", 'PREPEND X-From: "a b"'),
        ("PREPEND X-From: $1", "a\r\nX-Evil: b@net.example", 'PREPEND X-From: "a\\??x-evil: b"'),
    ],
)
async def test_what_a_pattern_takes_from_an_address_stays_one_argument(
    tmp_path: Path, entry: str, sender: str, expected: str
) -> None:
    (tmp_path / "patterns").write_text(f"/^(.*)@net\\.example$/ {entry}\n")
    verdict = await World("check_sender_access pcre:patterns", folder=tmp_path).verdict(rcpt(sender=sender))
    assert (expected, "" if expected else "451") == ("" if verdict.code else verdict.text, verdict.code)


@pytest.mark.parametrize("key", ["0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3"])
def test_a_network_that_postfix_never_matches_matches_here_if_somebody_can_own_it(key: str) -> None:
    actions = Actions("access", lambda _: ())
    table = parse_indexed(f"{key} OK\n192.0.2.0/24 REJECT\n".encode(), actions)
    found = [table.search_address(ip_address(address)) for address in ("203.0.113.9", "2a00:1450::5", "192.0.2.1")]
    assert [False, False, True] == [action is not None for action in found]
    said = [what for _, what in actions.keys.remarks(frozenset({Asked.CLIENT}))]
    assert f"neither Postfix nor gatekeeper matches the network {key} here; put it into a cidr: table" == said[0]
    assert said[1].startswith("Postfix never matches the network 192.0.2.0/24 here, but gatekeeper does")
