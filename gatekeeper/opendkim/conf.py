# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads opendkim.conf as OpenDKIM reads it (its config.c), and says of every mistake where it is.

A line is `NAME VALUE`: names have no case; `#` ends a line anywhere, and so does a carriage return; blanks and tabs
around the value go; there is no continuation. The last setting of a name counts. A boolean goes by its first letter. An
integer is written as in C, so that `UMask 022` is octal. `Include` nests five deep, and its paths start at the working
directory. Knows the names of options, and nothing of what they mean. OpenDKIM stops at the first mistake; here all are
told.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.core.problem import Problem
from gatekeeper.core.verdict import printable
from gatekeeper.opendkim.options import OPTIONS, ConfOption, OptionKind, unknown

DEEPEST = 5
"""How deep `Include` nests."""
COMMAND_LINE = "the command line"

_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)")


@dataclass(frozen=True, slots=True)
class ConfSetting:
    """One option as it is written; `line` is 0 for one of the command line. `value` is never empty."""

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
        return c_integer(self.value)

    def problem(self, what: str, *, warning: bool = False) -> Problem:
        """A Problem at this place, about this option."""
        return Problem(self.file, self.line, f"{self.option.name}: {what}", warning)


def read(path: Path) -> tuple[list[ConfSetting], list[Problem]]:
    """Every setting in the order in which it counts, and every mistake. Raises nothing: a file that cannot be read is a
    mistake too.
    """
    return _read(path, None, 0)


def parse(data: bytes, name: str = "opendkim.conf") -> tuple[list[ConfSetting], list[Problem]]:
    """The same for the contents of a file called `name`."""
    return _parse(data, name, 0)


def _read(path: Path, by: ConfSetting | None, depth: int) -> tuple[list[ConfSetting], list[Problem]]:
    try:
        return _parse(path.read_bytes(), str(path), depth)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        what = f"cannot read {path}: {reason}"
        return [], [by.problem(what) if by else Problem(str(path), 0, f"cannot be read: {reason}")]


def _parse(data: bytes, name: str, depth: int) -> tuple[list[ConfSetting], list[Problem]]:
    settings: list[ConfSetting] = []
    problems: list[Problem] = []
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        words = re.split(r"[ \t]+", re.split("[#\r\0]", line, maxsplit=1)[0].strip(" \t"), maxsplit=1)
        if not words[0]:
            continue
        found = _setting(words, name, number)
        if isinstance(found, Problem):
            problems.append(found)
        elif found.option.kind is not OptionKind.INCLUDE:
            settings.append(found)
        elif depth == DEEPEST:
            problems.append(found.problem(f"files include each other more than {DEEPEST} deep"))
        else:
            more, wrong = _read(Path(found.value), found, depth + 1)
            settings += more
            problems += wrong
    return settings, problems


def _setting(words: list[str], name: str, number: int) -> ConfSetting | Problem:
    shown = printable(words[0], 60)
    option = OPTIONS.get(words[0].lower())
    if option is None and len(words) == 1:
        return Problem(
            name, number, f"stray word {shown!r}; write NAME VALUE, or # before a comment; {unknown(words[0])}"
        )
    if option is None:
        return Problem(name, number, f"unknown option {shown!r}; {unknown(words[0])}")
    if len(words) < 2:
        return Problem(name, number, f"{option.name} has no value; write {option.name} VALUE on one line")
    setting = ConfSetting(option, words[1], name, number)
    if option.kind is OptionKind.BOOLEAN and words[1][0] not in "tTyY1fFnN0":
        return setting.problem(
            f"{printable(words[1], 60)!r} is neither yes nor no; allowed: yes, true, 1, no, false, 0"
        )
    if option.kind is OptionKind.INTEGER and not _NUMBER.fullmatch(words[1]):
        return setting.problem(f"{printable(words[1], 60)!r} is no number; allowed: digits, 0 before them for octal")
    if option.kind is OptionKind.INTEGER and not _is_c_integer(words[1]):
        return setting.problem(
            f"{printable(words[1], 60)!r}: a number that starts with 0 is octal, with digits up to 7"
        )
    return setting


def of_command_line(name: str, value: str) -> ConfSetting | Problem:
    """The setting that a flag of the command line stands for."""
    return _setting([name, value] if value else [name], COMMAND_LINE, 0)


def c_integer(text: str) -> int:
    """The number that strtol(3) makes of `text` with base 0. Raises ValueError."""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits[:2].lower() == "0x":
        return sign * int(digits, 16)
    return sign * int(digits, 8 if digits.startswith("0") else 10)


def _is_c_integer(text: str) -> bool:
    try:
        c_integer(text)
    except ValueError:
        return False
    return True
