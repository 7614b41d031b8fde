# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use a sender address: several tables, patterns, and what stands nowhere."""

from pathlib import Path

import pytest

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.core.verdict import Verdict
from tests.support.checking import HERE, World, rcpt

TABLES = [
    "inline:{ { a@b.example = alice, bob }, @team.example=carol, joe=joe }",
    "pcre:patterns",
    "inline:{ c@d.example=eve }",
]


async def judged(folder: Path, word: str, sender: str, user: str) -> Verdict:
    (folder / "patterns").write_text("/^(\\w+)\\.any@team\\.example$/ $1\n")
    world = World("permit")
    maps = {"sender_login_maps": (TABLES, SourceLine("gatekeeper.toml"))}
    reader = CheckBuilder({}, folder, maps=maps)
    check = reader.check([word], SourceLine("gatekeeper.toml"))
    assert check is not None
    assert [] == reader.problems
    world.checks = (check,)
    return await world.verdict(rcpt(sender=sender, sasl_user=user))


@pytest.mark.parametrize(
    ("sender", "user", "expected"),
    [
        ("a@b.example", "alice", ""),
        ("A@B.example", "BOB", ""),
        ("a+list@b.example", "alice", ""),
        ("a@b.example", "carol", "553 5.7.1"),
        ("x@team.example", "carol", ""),
        ("dave.any@team.example", "dave", ""),
        ("dave.any@team.example", "carol", "553 5.7.1"),  # the whole address comes before the domain, in all tables
        ("c@d.example", "eve", ""),
        ("joe@mx.example.com", "joe", ""),
        ("joe@example.com", "joe", "553 5.7.1"),  # a bare name is ours alone
        ("", "alice", ""),
        ("a@b.example", "", "553 5.7.1"),
        ("nobody@x.example", "", ""),
        ("nobody@x.example", "alice", "553 5.7.1"),
    ],
)
async def test_the_owners_of_an_address(tmp_path: Path, sender: str, user: str, expected: str) -> None:
    verdict = await judged(tmp_path, "reject_sender_login_mismatch", sender, user)
    assert expected == f"{verdict.code} {verdict.enhanced}".strip()


async def test_the_refusal_says_who_it_is_not(tmp_path: Path) -> None:
    verdict = await judged(tmp_path, "reject_sender_login_mismatch", "a@b.example", "eve")
    assert "553 5.7.1 <a@b.example>: Sender address rejected: not owned by user eve" == verdict.reply
    verdict = await judged(tmp_path, "reject_unauthenticated_sender_login_mismatch", "a@b.example", "")
    assert "553 5.7.1 <a@b.example>: Sender address rejected: not logged in" == verdict.reply


async def test_an_address_that_is_nobody_s_may_be_used_by_users(tmp_path: Path) -> None:
    word = "reject_known_sender_login_mismatch"
    assert "" == (await judged(tmp_path, word, "nobody@x.example", "alice")).code
    assert "553" == (await judged(tmp_path, word, "a@b.example", "carol")).code


def test_a_login_table_is_not_judged_as_an_access_table(tmp_path: Path) -> None:
    (tmp_path / "logins").write_text("@team.example carol\nunknown REJECT, OK\n")
    reader = CheckBuilder({}, tmp_path, maps={"sender_login_maps": (["hash:logins"], SourceLine("x"))})
    assert reader.check(["reject_sender_login_mismatch"], SourceLine("x")) is not None
    assert [] == reader.problems


def test_a_login_table_that_is_missing_is_named() -> None:
    reader = CheckBuilder({}, HERE, maps={"sender_login_maps": (["hash:gone"], SourceLine("g.toml", 9))})
    assert reader.check(["reject_sender_login_mismatch"], SourceLine("g.toml", 3)) is None
    assert ["g.toml:9: cannot read /nonexistent/gone: No such file or directory"] == [str(p) for p in reader.problems]


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", ", "\r", "\n", "\v", "\x85", "\u2003"])
async def test_what_a_pattern_takes_from_an_address_is_one_owner(tmp_path: Path, separator: str) -> None:
    """The sender is in the form in which Postfix tells it: without the quotes of its local part."""
    for table in ("pcre:{ {/^(.*)$/ ${1}} }", 'pcre:{ {/^([^"].*)$/ $1} }', "regexp:{ {/^(.*)@victim/ $1, boss} }"):
        reader = CheckBuilder({}, tmp_path, maps={"sender_login_maps": ([table], SourceLine("x"))})
        check = reader.check(["reject_sender_login_mismatch"], SourceLine("x"))
        assert check is not None
        world = World("permit")
        world.checks = (check,)
        for sender in (f"mallory@x.example{separator}x", f"x{separator}mallory@x.example{separator}x"):
            mail = rcpt(sender=f"{sender}@victim.example", sasl_user="mallory@x.example")
            assert "553" == (await world.verdict(mail)).code


@pytest.mark.parametrize("user", ["bürger", "用户", "josé.ñ", "a\u00a0b", "全\u3000角", "b\udcfcrger", "a" * 300])
async def test_what_a_pattern_takes_from_an_address_is_the_owner_unchanged(tmp_path: Path, user: str) -> None:
    for table in (r"pcre:{ {/^(.*)@x\.example$/ $1} }", r"regexp:{ {/^(.*)@x\.example$/ ${1}} }"):
        reader = CheckBuilder({}, tmp_path, maps={"sender_login_maps": ([table], SourceLine("x"))})
        check = reader.check(["reject_sender_login_mismatch"], SourceLine("x"))
        assert check is not None
        world = World("permit")
        world.checks = (check,)
        assert "" == (await world.verdict(rcpt(sender=f"{user}@x.example", sasl_user=user))).code
        assert "553" == (await world.verdict(rcpt(sender=f"{user}@x.example", sasl_user=f"{user}?"))).code


async def test_words_of_the_table_s_own_beside_a_substitution_are_owners(tmp_path: Path) -> None:
    maps = {"sender_login_maps": (["pcre:{ {/^(.*)@x\\.example$/ $1, boss admin} }"], SourceLine("x"))}
    check = CheckBuilder({}, tmp_path, maps=maps).check(["reject_sender_login_mismatch"], SourceLine("x"))
    assert check is not None
    world = World("permit")
    world.checks = (check,)
    for user, code in (("joe", ""), ("boss", ""), ("ADMIN", ""), ("eve", "553")):
        assert code == (await world.verdict(rcpt(sender="joe@x.example", sasl_user=user))).code
