# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of names, and milter macros that make mail ours."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.signing.name_set import MacroList, NameSet


def names(spec: str | list[str], base: Path = Path()) -> NameSet:
    found, problems = NameSet.read(spec, "signing.exempt_domains", base=base)
    assert [] == problems
    return found


def test_a_name_is_found_whatever_its_case_and_nothing_else_is() -> None:
    found = names("Example.com,example.org")
    assert ["Example.com", "example.org", "", ""] == [
        found.find(name) for name in ("EXAMPLE.com", "example.org", "a.example.com", "")
    ]


def test_a_refile_has_patterns(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("*@list.example # a comment\nann@example.com\n")
    found = names("refile:names", tmp_path)
    assert ["*@list.example", "ann@example.com", ""] == [
        found.find(name) for name in ("x@LIST.example", "Ann@example.com", "joe@example.com")
    ]


@pytest.mark.parametrize("written", ["ann@bücher.example", "Ann@BÜCHER.example.", "ann@xn--bcher-kva.example"])
@pytest.mark.parametrize("asked", ["ann@bücher.example", "ann@xn--bcher-kva.example.", "ANN@XN--BCHER-KVA.example"])
def test_a_mailbox_is_found_however_its_domain_is_written(tmp_path: Path, written: str, asked: str) -> None:
    (tmp_path / "names").write_text(f"{written}\n")
    (tmp_path / "patterns").write_text(f"a*{written[3:]}\n")
    assert [written, written, f"a*{written[3:]}"] == [
        found.find(asked)
        for found in (names([written]), names("refile:names", tmp_path), names("refile:patterns", tmp_path))
    ]


def test_no_names_are_false() -> None:
    assert [False, True] == [bool(names("")), bool(names("a"))]


def test_a_pattern_that_is_none_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("a\n(b\n")
    _, (problem,) = NameSet.read(f"refile:{tmp_path}/names", "signing.exempt_domains")
    assert (f"{tmp_path}/names", 2) == (problem.file, problem.line)


@pytest.mark.parametrize(
    ("spec", "macros", "found"),
    [
        (["auth_type"], {"{auth_type}": "PLAIN"}, "{auth_type}=PLAIN"),
        (["auth_type"], {"{auth_type}": ""}, ""),
        (["auth_type"], {}, ""),
        (["{auth_type} PLAIN|LOGIN"], {"{auth_type}": "LOGIN"}, "{auth_type}=LOGIN"),
        (["auth_type PLAIN|LOGIN"], {"{auth_type}": "login"}, ""),
        ("csl:daemon_name=a|b, j", {"j": "mx.example.org"}, "j=mx.example.org"),
        ("daemon_name=a|b,j=x", {"{daemon_name}": "b", "j": "mx.example.org"}, "{daemon_name}=b"),
    ],
)
def test_a_macro_counts_if_it_is_set_as_wanted(spec: str | list[str], macros: dict[str, str], found: str) -> None:
    wanted, problems = MacroList.read(spec, "signing.macros")
    assert ([], found) == (problems, wanted.find(macros))


def test_what_is_no_macro_is_named() -> None:
    _, (problem,) = MacroList.read(["a-b c"], "signing.macros")
    assert problem.what.startswith("a-b is not a milter macro")


@given(st.text(max_size=60))
def test_no_text_upsets_a_set(text: str) -> None:
    found, _ = NameSet.read([text], "x")
    MacroList.read([text], "x")
    found.find(text)
