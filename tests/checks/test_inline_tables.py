# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables without a file: inline: and static:, as Postfix reads them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from tests.support.checking import HERE, World, mistakes, rcpt


async def text(table: str, sender: str) -> str:
    return (await World(f"check_sender_access {table}").verdict(rcpt(sender=sender))).text.rpartition(": ")[2]


@pytest.mark.parametrize(
    ("table", "sender", "expected"),
    [
        ("inline:{ a.example=REJECT, b.example=DEFER }", "u@b.example", "Access denied"),
        ("inline:{{ a.example = REJECT go away, please }}", "u@a.example", "go away, please"),
        ("inline:{ { A.Example = REJECT no } }", "u@a.example", "no"),
        ("inline:{ { a.example = REJECT x=y } }", "u@a.example", "x=y"),
        ("inline:{ { a.example = REJECT one }, { a.example = REJECT two } }", "u@a.example", "two"),
        ("inline:{ { u@a.example = REJECT over\n   lines } }", "u@a.example", "over lines"),
        ("static:REJECT", "u@a.example", "Access denied"),
        ("static:{ REJECT whoever you are }", "", "whoever you are"),
    ],
)
async def test_an_entry_is_found(table: str, sender: str, expected: str) -> None:
    assert expected == await text(table, sender)


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("inline:a=b", "'a=b' is not a table"),
        ("inline:{}", "'{}' is not a table"),
        ("inline:{ a }", "'a' is not an entry"),
        ("inline:{ =REJECT }", "'=REJECT' is not an entry"),
        ("inline:{ a=NONSENSE }", "unknown action 'NONSENSE'"),
        ("inline:{ a= }", "the entry has no action"),
        ("static:NONSENSE", "unknown action 'NONSENSE'"),
    ],
)
def test_a_mistake_is_named_at_the_line_of_the_list(table: str, what: str) -> None:
    reader = CheckBuilder({}, HERE)
    assert reader.check(["check_sender_access", table], SourceLine("gatekeeper.toml", 7)) is None
    [problem] = reader.problems
    assert ("gatekeeper.toml", 7, True) == (problem.file, problem.line, problem.what.startswith(what))


@given(st.text(alphabet="ab={}, \n\té\udcff$:", max_size=40))
def test_any_text_makes_a_table_or_a_problem(inner: str) -> None:
    reader = CheckBuilder({}, HERE)
    check = reader.check(["check_sender_access", f"inline:{{{inner}}}"], SourceLine("x"))
    assert (check is None) == bool([problem for problem in reader.problems if not problem.warning])


async def test_a_negated_network_says_nothing_of_names_or_the_other_kind_of_address(tmp_path: Path) -> None:
    """Found by comparing with Postfix (cidr_match_execute())."""
    (tmp_path / "networks").write_text("!10.0.0.0/8 REJECT\n")
    world = World("check_client_access cidr:networks", folder=tmp_path)
    answers = [
        (await world.verdict(rcpt(address=address))).code for address in ("10.1.2.3", "192.0.2.1", "2001:db8::1")
    ]
    assert ["", "554", ""] == answers


def test_a_table_inside_a_table_is_refused() -> None:
    [what] = mistakes("check_sender_access inline:{ { a = check_helo_access hash:b } }")
    assert "a table cannot name another table" in what
