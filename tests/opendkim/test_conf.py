# SPDX-License-Identifier: GPL-3.0-or-later
"""opendkim.conf is read as OpenDKIM reads it, and every mistake is told with its place."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.problem import Problem
from gatekeeper.opendkim import conf
from gatekeeper.opendkim.conf import parse
from gatekeeper.opendkim.options import OPTIONS, ConfOption, Fate, OptionKind
from tests.support.needs import require_program

NEVER = "OpenDKIM never had it either; opendkim.conf(5) lists all options"


def settings(text: str) -> list[tuple[str, str]]:
    found, problems = parse(text.encode())
    assert [] == problems
    return [(setting.option.name, setting.value) for setting in found]


def complaint(text: str) -> str:
    _, problems = parse(text.encode())
    (problem,) = problems
    return str(problem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mode sv", [("Mode", "sv")]),
        ("  mode\t sv \t\n", [("Mode", "sv")]),
        ("OversignHeaders From", [("OverSignHeaders", "From")]),
        ("Mode sv # and why\n#Mode v\n\n", [("Mode", "sv")]),
        ("Mode s#v", [("Mode", "s")]),
        ("Mode sv\r\n", [("Mode", "sv")]),
        ("InternalHosts 127.0.0.1, ::1", [("InternalHosts", "127.0.0.1, ::1")]),
        ("KeyTable refile:/etc/a b", [("KeyTable", "refile:/etc/a b")]),
        ("Mode s\nMode v", [("Mode", "s"), ("Mode", "v")]),
        ("Mode s\\\n", [("Mode", "s\\")]),
        ("Mode s\0v", [("Mode", "s")]),
        ("", []),
    ],
)
def test_a_line_is_read_as_opendkim_reads_it(text: str, expected: list[tuple[str, str]]) -> None:
    assert expected == settings(text)


@pytest.mark.parametrize(("value", "expected"), [("yes", True), ("Y", True), ("1", True), ("true", True), ("no", False),
                                                 ("Fine", False), ("0", False), ("N", False)])  # fmt: skip
def test_a_boolean_goes_by_its_first_letter(value: str, expected: bool) -> None:
    (setting,), _ = parse(f"Syslog {value}".encode())
    assert expected == setting.flag


@pytest.mark.parametrize(
    ("value", "expected"), [("007", 7), ("022", 18), ("0x1f", 31), ("12", 12), ("-1", -1), ("0", 0)]
)
def test_a_number_is_one_of_c(value: str, expected: int) -> None:
    (setting,), _ = parse(f"UMask {value}".encode())
    assert expected == setting.number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nSelektor mail", "opendkim.conf:2: unknown option 'Selektor'; did you mean Selector?"),
        ("mail", f"opendkim.conf:1: stray word 'mail'; write NAME VALUE, or # before a comment; {NEVER}"),
        ("Mode", "opendkim.conf:1: Mode has no value; write Mode VALUE on one line"),
        ("Mode # sv", "opendkim.conf:1: Mode has no value; write Mode VALUE on one line"),
        ("Syslog maybe", "opendkim.conf:1: Syslog: 'maybe' is neither yes nor no; allowed: yes, true, 1, no, false, 0"),
        ("UMask u=rwx", "opendkim.conf:1: UMask: 'u=rwx' is not a number; allowed: digits, with a leading 0 for octal"),
        ("UMask 098", "opendkim.conf:1: UMask: '098': a number that starts with 0 is octal, with digits up to 7"),
        ("\x1b[31m x", f"opendkim.conf:1: unknown option '?[31m'; {NEVER}"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_what_is_allowed(text: str, expected: str) -> None:
    assert expected == complaint(text)


def test_every_mistake_is_told_not_only_the_first() -> None:
    assert 3 == len(parse(b"Foo 1\nMode\nSyslog x\n")[1])


def test_files_include_each_other_five_deep(tmp_path: Path) -> None:
    for depth in range(7):
        (tmp_path / f"{depth}").write_text(f"Selector s{depth}\nInclude {tmp_path}/{depth + 1}\n")
    found, problems = conf.read(tmp_path / "0")
    assert [f"s{depth}" for depth in range(6)] == [setting.value for setting in found]
    assert [f"{tmp_path}/5:2: Include: files include each other more than 5 deep"] == list(map(str, problems))


def test_what_is_included_counts_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Mode v\n")
    (tmp_path / "conf").write_text(f"Mode s\nInclude {tmp_path}/more\nSelector x\n")
    found, _ = conf.read(tmp_path / "conf")
    assert ["s", "v", "x"] == [setting.value for setting in found]


def test_a_file_that_is_not_there_is_told_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text(f"Include {tmp_path}/gone\n")
    _, problems = conf.read(tmp_path / "conf")
    expected = f"{tmp_path}/conf:1: Include: cannot read {tmp_path}/gone: No such file or directory"
    assert [expected] == list(map(str, problems))


@given(st.binary(max_size=400))
def test_whatever_is_read_nothing_is_raised_and_each_line_is_told_once(data: bytes) -> None:
    found, problems = parse(data)
    places = [one.line for one in found] + [one.line for one in problems]
    assert len(places) == len(set(places))
    assert all(1 <= line <= data.count(b"\n") + 1 for line in places)
    assert all(str(problem).isprintable() for problem in problems)


SEPARATORS = st.sampled_from([" ", "\t", "   ", " \t"])
VALUES = st.text(st.sampled_from("abcXYZ019./:=,*@!-[] "), min_size=1).map(str.strip).filter(bool)


@given(
    st.lists(
        st.tuples(st.sampled_from([o for o in OPTIONS.values() if o.kind is OptionKind.STRING]), SEPARATORS, VALUES)
    )
)
def test_what_is_written_is_what_is_read(lines: list[tuple[ConfOption, str, str]]) -> None:
    text = "".join(f"{option.name.swapcase()}{separator}{value}\n" for option, separator, value in lines)
    assert [(option.name, value) for option, _, value in lines] == settings(text)


# Beside the real one


def theirs(folder: Path, text: str) -> int:
    (folder / "opendkim.conf").write_bytes(text.encode())
    command = [require_program("opendkim", "opendkim"), "-n", "-x", str(folder / "opendkim.conf")]
    return subprocess.run(command, capture_output=True, timeout=30).returncode


@pytest.mark.parametrize(
    "text",
    ["Mode sv", "mode sv", "Mode", "mail", "Syslog x", "UMask 98", "UMask 098", "UMask 0x9g", "UMask 022 # x", "Mode#s",
     "Mode sv\r", "Include /nonexistent", "Mode s\0x", "\x0bMode s", "X-Header yes", "SyslogSuccess 7", ""],
)  # fmt: skip
@pytest.mark.integration("opendkim")
def test_the_same_lines_are_mistakes_for_opendkim(tmp_path: Path, text: str) -> None:
    found, problems = parse(text.encode())
    del found
    assert (78 if problems else 0) == theirs(tmp_path, f"{text}\n")


SUPPORTED_BY_DEBIAN = [option for option in OPTIONS.values() if option.kind is not OptionKind.INCLUDE]


@pytest.mark.integration("opendkim")
def test_the_table_has_the_kinds_of_opendkim(tmp_path: Path) -> None:
    """An integer that is no number and a boolean that is none are mistakes for both; a build may lack some options."""
    wrong = []
    for option in SUPPORTED_BY_DEBIAN:
        if option.kind is OptionKind.STRING:
            continue
        run = subprocess.run(
            [require_program("opendkim", "opendkim"), "-n", "-x", "/dev/stdin"],
            input=f"{option.name} x\n", capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        if "unrecognized parameter" not in run.stderr and "illegal value" not in run.stderr:
            wrong.append(option.name)
    assert [] == wrong


def test_every_option_that_does_not_just_work_has_a_word() -> None:
    assert [] == [option.name for option in OPTIONS.values() if option.fate is not Fate.WORKS and not option.comment]


def test_a_setting_is_told_by_its_option() -> None:
    (setting,), _ = parse(b"\nMode x")
    assert Problem("opendkim.conf", 2, "Mode: is odd") == setting.problem("is odd")
