# SPDX-License-Identifier: GPL-3.0-or-later
"""One bad line does not take a table away, as in Postfix; but nobody is trusted because of it."""

import re
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.tables.keys import Asked
from gatekeeper.checks.tables.reader import READERS, TableReader
from gatekeeper.checks.tables.table import Actions
from tests.support.checking import World, rcpt
from tests.support.needs import require_program


def lines(folder: Path, type: str, text: str, word: str = "check_client_access") -> list[tuple[int, str]]:
    """What is said about a table, with the number of lines that cannot be used at the end."""
    (folder / "access").write_text(text)
    builder = CheckBuilder({}, folder)
    assert builder.check([word, f"{type}:access"], SourceLine("g.toml")) is not None
    assert all(problem.warning for problem in builder.problems)
    return [(problem.line, problem.what) for problem in (*builder.problems, *builder.tallies)]


async def answer(folder: Path, type: str, text: str, address: str = "192.0.2.1") -> str:
    """`OK`, `pass`, or code and enhanced code, for a client by a table before a `reject` with 554 5.7.1."""
    (folder / "access").write_text(text)
    verdict = await World(f"check_client_access {type}:access, reject", folder=folder).verdict(rcpt(address=address))
    return f"{verdict.code} {verdict.enhanced}".strip() or "OK"


@pytest.mark.parametrize(
    ("type", "bad", "why"),
    [
        ("cidr", "10.0.0.1/8 REJECT", "did you mean '10.0.0.0/8'?"),
        ("cidr", "10.0.0.0/33 REJECT", "is not a valid network"),
        ("cidr", "300.0.0.0/8 REJECT", "is not a valid network"),
        ("cidr", "spam.example REJECT", "is not a valid network"),
        ("cidr", "10.0.0.0/8", "has no action"),
        ("cidr", "<html><body>502 Bad Gateway</body>", "is not a valid network"),
        ("cidr", "!10.0.0.1/8 REJECT", "did you mean"),
        ("pcre", "/(/ REJECT", "cannot be used as a regular expression"),
        ("pcre", "/a/q REJECT", "flag 'q' is not supported"),
        ("pcre", "/(a)/ REJECT $2", "a substitution that cannot be made"),
        ("pcre", "/a REJECT", "the pattern does not end"),
        ("pcre", "spam.example REJECT", "is not a pattern"),
        ("pcre", "/a/", "the pattern has no action"),
        ("regexp", "/(/ REJECT", "cannot be used as a regular expression"),
        ("regexp", "/\\d/ REJECT", "is not a POSIX expression"),
        ("hash", "spam.example", "has no action"),
        ("texthash", "spam.example", "has no action"),
    ],
)
async def test_a_rule_that_cannot_be_read_is_skipped_and_the_others_hold(
    tmp_path: Path, type: str, bad: str, why: str
) -> None:
    good = {"cidr": "192.0.2.0/24", "pcre": "/^192\\./", "regexp": "/^192\\./"}.get(type, "192.0.2.1")
    text = f"{bad}\n{good} 450 4.7.1 here\n"
    (number, what), tally = lines(tmp_path, type, text)
    assert (1, True, True) == (number, what.startswith("this rule is skipped: "), why in what)
    assert (0, "1 line skipped; the rest is in force") == tally
    assert "450 4.7.1" == await answer(tmp_path, type, text)
    assert "554 5.7.1" == await answer(tmp_path, type, text, address="198.51.100.1")


@pytest.mark.parametrize("type", ["hash", "cidr", "pcre", "regexp"])
async def test_an_action_that_cannot_be_read_is_answered_as_postfix_does(tmp_path: Path, type: str) -> None:
    first, second = {"hash": ("192.0.2.1", "192.0.2.2"), "cidr": ("192.0.2.1", "192.0.2.2")}.get(
        type, ("/^192\\.0\\.2\\.1$/", "/^192\\.0\\.2\\.2$/")
    )
    text = f"{first} REJCT no\n{second} 450 4.7.1 here\n"
    (number, what), tally = lines(tmp_path, type, text)
    assert (1, True) == (number, what.startswith("this entry is answered 451 4.3.5: unknown action 'REJCT'"))
    assert (0, "1 line with an action that is not understood; the rest is in force") == tally
    assert "451 4.3.5" == await answer(tmp_path, type, text)
    assert "450 4.7.1" == await answer(tmp_path, type, text, address="192.0.2.2")


async def test_an_ok_with_an_unknown_condition_lets_nobody_in_and_keeps_nobody_out(tmp_path: Path) -> None:
    assert "this entry never counts: 'if=sfp'" in lines(tmp_path, "hash", "192.0.2.1 OK if=sfp\n")[0][1]
    assert "554 5.7.1" == await answer(tmp_path, "hash", "192.0.2.1 OK if=sfp\n")


@pytest.mark.parametrize(
    "bad", ["192.0.2.1/33 REJECT", "192.0.2.1/33 DUNNO", "192.0.2.1", "192.0.2.1/33 NONSENSE", "if x"]
)
@pytest.mark.parametrize("ok", ["OK", "RELAY", "1234", "permit", "OK if=spf"])
async def test_no_ok_counts_below_a_rule_that_may_have_been_an_exception(tmp_path: Path, bad: str, ok: str) -> None:
    end = "endif\n" if bad.startswith("if") else ""
    text = f"{bad}\n{end}192.0.2.0/24 {ok}\n0.0.0.0/0 550 5.7.9 last\n"
    said = [what for _, what in lines(tmp_path, "cidr", text) if "count as DUNNO" in what]
    assert ["1 below line 1 that would permit count as DUNNO until that is mended: it may have been an exception"] == [
        what.removesuffix(" to them") for what in said
    ]
    # Neither permitted nor refused by the table: what comes after it in the list decides.
    assert "554 5.7.1" == await answer(tmp_path, "cidr", text)
    assert "550 5.7.9" == await answer(tmp_path, "cidr", text, address="198.51.100.1")


@pytest.mark.parametrize("type", ["cidr", "pcre"])
async def test_an_ok_counts_above_such_a_rule_and_below_one_that_was_an_ok(tmp_path: Path, type: str) -> None:
    ours, bad, two = {
        "cidr": ("192.0.2.0/24", "10.0.0.1/8", "198.51.100.0/24"),
        "pcre": ("/^192\\./", "/(/", "/^198\\./"),
    }[type]
    text = f"{ours} OK\n{bad} OK\n{two} OK\n{bad} REJECT\n{two} OK\n"
    assert "OK" == await answer(tmp_path, type, text)
    assert "OK" == await answer(tmp_path, type, text, address="198.51.100.1")
    assert "554 5.7.1" == await answer(tmp_path, type, text.replace(f"{two} OK\n{bad}", bad), address="198.51.100.1")


async def test_what_stands_in_an_if_that_cannot_be_read_holds_for_nobody(tmp_path: Path) -> None:
    """In Postfix it holds for everybody then."""
    for type, bad in (("cidr", "if 300.0.0.0/8"), ("cidr", "if !300.0.0.0/8"), ("pcre", "if /(/"), ("pcre", "if !/(/")):
        rule = "0.0.0.0/0" if type == "cidr" else "/./"
        text = f"{bad}\n{rule} 450 4.7.2 within\nendif\n{rule} 450 4.7.1 after\n"
        assert "450 4.7.1" == await answer(tmp_path, type, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("if 192.0.0.0/8\n192.0.2.1 450 4.7.1 x\n", "if without endif"),
        ("192.0.2.1 450 4.7.1 x\nendif\n", "endif without"),
    ],
)
async def test_an_if_or_an_endif_alone_is_told_and_taken_as_in_postfix(tmp_path: Path, text: str, told: str) -> None:
    assert told in lines(tmp_path, "cidr", text)[0][1]
    assert "450 4.7.1" == await answer(tmp_path, "cidr", text)


def test_many_bad_lines_are_counted_and_not_all_told(tmp_path: Path) -> None:
    said = lines(tmp_path, "cidr", "".join(f"10.0.{n}.1/24 REJECT\n" for n in range(200)) + "192.0.2.1 REJECT\n")
    assert (53, (0, "200 lines skipped; the rest is in force")) == (len(said) + 1, said[-1])


def test_what_stands_in_the_configuration_itself_is_used_whole_or_not_at_all() -> None:
    for table in (
        "cidr:{ { 10.0.0.1/8 REJECT }, { 192.0.2.1 REJECT } }",
        "inline:{ a.example=NONSENSE, b.example=OK }",
    ):
        builder = CheckBuilder({}, Path("/nonexistent"))
        assert builder.check(["check_client_access", table], SourceLine("g.toml", 4)) is None
        assert [False] == [problem.warning for problem in builder.problems]


@given(
    type=st.sampled_from(sorted(READERS)),
    text=st.text(max_size=200) | st.text("/!ifend ()[]\\$1aA+*.:0-9\n REJCTOK", max_size=80),
)
def test_whatever_stands_in_a_file_is_a_table(type: str, text: str) -> None:
    actions = Actions("t", lambda text: (_ for _ in ()).throw(ValueError(text)), strict=False)
    table = READERS[type](text.encode("utf-8", "surrogateescape"), actions)
    assert all(problem.warning for problem in actions.finish())
    table.search(["mail.example", "example"])
    table.search_address(ip_address("192.0.2.1"))


BAD = {
    "cidr": "10.0.0.1/8 x\n300.0.0.0/8 x\n10.0.0.0/33 x\n10.0.0.0/8\n192.0.2.0/24 good\nname x\n::1/200 x\n",
    "pcre": "/(/ x\n/a/q x\n/(a)/ $2\n/good/ good\n/[/ x\n",
    "regexp": "/(/ x\n/a/q x\n/(a)/ $2\n/good/ good\n/[/ x\n",
}


@pytest.mark.integration("postfix")
@pytest.mark.parametrize("type", BAD)
def test_the_lines_that_are_skipped_are_those_that_postfix_skips(tmp_path: Path, type: str) -> None:
    postmap = require_program("postmap", "postfix")
    (tmp_path / "main.cf").write_text("")
    (tmp_path / "access").write_text(BAD[type])
    key = {"cidr": "192.0.2.1"}.get(type, "good")
    asked: list[str | Path] = [postmap, "-c", tmp_path, "-q", key, f"{type}:{tmp_path}/access"]
    run = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    theirs = {int(number) for number in re.findall(r"access, line (\d+)", run.stderr)}
    reader = TableReader(tmp_path, lambda text: ())
    assert reader.read(f"{type}:access", SourceLine("x"), Asked.OWNER if type != "cidr" else Asked.CLIENT) is not None
    assert ("good\n", theirs) == (run.stdout, {problem.line for problem in reader.rejected if problem.line})
