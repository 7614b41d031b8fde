# SPDX-License-Identifier: GPL-3.0-or-later
"""A parser of opendkim.conf that reads it as OpenDKIM does (its config.c), and locates every mistake.

A line is `NAME VALUE`: names are case-insensitive; `#` ends a line anywhere, and so does a carriage return; spaces and
tabs around the value are dropped; there are no continuation lines. The last setting of a name counts. Only the first
letter of a boolean counts. An integer is written as in C, so that `UMask 022` is octal. `Include` nests five deep, and
its paths are relative to the working directory. Knows the names of options, and nothing of what they mean. OpenDKIM
stops at the first mistake; here all are reported.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.core.problem import Problem
from gatekeeper.core.text_files import without_bom
from gatekeeper.core.verdict import printable
from gatekeeper.opendkim.options import OPTIONS, ConfOption, OptionKind, suggestion

MAX_INCLUDE_DEPTH = 5
COMMAND_LINE = "the command line"
"""The file name in problems of settings that come from the command line."""

_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)")


@dataclass(frozen=True, slots=True)
class ConfSetting:
    """One option as it is set; `line` is 0 if that is on the command line. `value` is never empty."""

    option: ConfOption
    value: str
    file: str
    line: int

    @property
    def flag(self) -> bool:
        """The value of a boolean."""
        return self.value[0] in "tTyY1"

    @property
    def number(self) -> int:
        """The value of an integer."""
        return parse_c_integer(self.value)

    def problem(self, what: str, *, warning: bool = False) -> Problem:
        """Return a Problem of this option, with its file and line."""
        return Problem(self.file, self.line, f"{self.option.name}: {what}", warning)


def read(path: Path) -> tuple[list[ConfSetting], list[Problem]]:
    """Return every setting, a later one overriding an earlier one of the same name, and every mistake.

    Raises nothing: a file that cannot be read is a mistake too.
    """
    return _read(path, None, 0)


def parse(data: bytes, name: str = "opendkim.conf") -> tuple[list[ConfSetting], list[Problem]]:
    """Return the settings and mistakes in `data`, the contents of a file called `name`; see read()."""
    return _parse(data, name, 0)


def _read(path: Path, include: ConfSetting | None, depth: int) -> tuple[list[ConfSetting], list[Problem]]:
    try:
        return _parse(path.read_bytes(), str(path), depth)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        what = f"cannot read {path}: {reason}"
        return [], [include.problem(what) if include else Problem(str(path), 0, f"cannot be read: {reason}")]


def _parse(data: bytes, name: str, depth: int) -> tuple[list[ConfSetting], list[Problem]]:
    settings: list[ConfSetting] = []
    problems: list[Problem] = []
    for number, line in enumerate(without_bom(data).decode("utf-8", "surrogateescape").split("\n"), 1):
        words = re.split(r"[ \t]+", re.split("[#\r\0]", line, maxsplit=1)[0].strip(" \t"), maxsplit=1)
        if not words[0]:
            continue
        found = _setting(words, name, number)
        if isinstance(found, Problem):
            problems.append(found)
        elif found.option.kind is not OptionKind.INCLUDE:
            settings.append(found)
        elif depth == MAX_INCLUDE_DEPTH:
            problems.append(found.problem(f"files include each other more than {MAX_INCLUDE_DEPTH} deep"))
        else:
            included_settings, included_problems = _read(Path(found.value), found, depth + 1)
            settings += included_settings
            problems += included_problems
    return settings, problems


def _setting(words: list[str], name: str, number: int) -> ConfSetting | Problem:
    shown = printable(words[0], 60)
    option = OPTIONS.get(words[0].lower())
    if option is None and len(words) == 1:
        return Problem(
            name, number, f"stray word {shown!r}; write NAME VALUE, or # before a comment; {suggestion(words[0])}"
        )
    if option is None:
        return Problem(name, number, f"unknown option {shown!r}; {suggestion(words[0])}")
    if len(words) < 2:
        return Problem(name, number, f"{option.name} has no value; write {option.name} VALUE on one line")
    setting = ConfSetting(option, words[1], name, number)
    if option.kind is OptionKind.BOOLEAN and words[1][0] not in "tTyY1fFnN0":
        return setting.problem(
            f"{printable(words[1], 60)!r} is neither yes nor no; allowed: yes, true, 1, no, false, 0"
        )
    if option.kind is OptionKind.INTEGER and not _NUMBER.fullmatch(words[1]):
        return setting.problem(
            f"{printable(words[1], 60)!r} is not a number; allowed: digits, with a leading 0 for octal"
        )
    if option.kind is OptionKind.INTEGER and not _is_c_integer(words[1]):
        return setting.problem(
            f"{printable(words[1], 60)!r}: a number that starts with 0 is octal, with digits up to 7"
        )
    return setting


def command_line_setting(name: str, value: str) -> ConfSetting | Problem:
    """Return the setting that a command-line flag stands for, or what is wrong with it."""
    return _setting([name, value] if value else [name], COMMAND_LINE, 0)


def parse_c_integer(text: str) -> int:
    """Parse `text` as strtol(3) does with base 0. Raises ValueError."""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits[:2].lower() == "0x":
        return sign * int(digits, 16)
    return sign * int(digits, 8 if digits.startswith("0") else 10)


def _is_c_integer(text: str) -> bool:
    try:
        parse_c_integer(text)
    except ValueError:
        return False
    return True
