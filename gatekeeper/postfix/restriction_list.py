# SPDX-License-Identifier: GPL-3.0-or-later
"""Restriction lists as main.cf and TOML write them, cut into single restrictions with their arguments.

Two spellings: a list of strings; or one string exactly as in main.cf, where white space and commas separate, braces
hold together what is between them, lines that start with `#` are comments, and only the word itself tells whether an
argument follows (smtpd_check.c, generic_checks(); mystrtokq(3)). Knows the shape alone: what a word means is for the
checks. Does not know main.cf's other parameters: `$name` stays as it is written, and the checks refuse it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator

_TAKES_ARGUMENT = re.compile(
    r"check_(?!relay_domains|recipient_maps)\w+|(reject|permit)_(rbl|rhsbl|dnswl|rhswl)_\w+|reject_rbl|sleep",
    re.IGNORECASE,
)
"""Words of Postfix that are followed by one argument."""

_WRAPS = frozenset({"warn_if_reject"})
"""Words that stand before a whole other restriction."""

_SEPARATORS = re.compile(r"[\s,]+")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Restriction:
    """One restriction with its arguments, and where it stands: its index in the list that it was written in, or how
    many line ends before it in a string of several lines.
    """

    words: tuple[str, ...]
    index: int | None = field(default=None, compare=False)
    lines_below: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return " ".join(self.words)


def cut(text: str) -> Iterator[tuple[int, str]]:
    """The words of `text` with where they begin: white space and commas separate, but not between braces."""
    at = 0
    while True:
        gap = _SEPARATORS.match(text, at)
        at = start = gap.end() if gap else at
        if at >= len(text):
            return
        depth = 0
        while at < len(text) and (depth or not _SEPARATORS.match(text, at)):
            depth = max(0, depth + {"{": 1, "}": -1}.get(text[at], 0))
            at += 1
        yield start, text[start:at]


def unbraced(text: str) -> str | None:
    """What stands between the braces that `text` begins and ends with; None if it does not."""
    text = text.strip()
    words = [word for _, word in cut(text)]
    if len(words) != 1 or not (text.startswith("{") and text.endswith("}")):
        return None
    return text[1:-1].strip()


def split(text: str) -> list[Restriction]:
    """The restrictions of one string as in main.cf. A missing argument stays missing: the check says so."""
    text = _COMMENT.sub(lambda comment: " " * len(comment[0]), text)
    found: list[Restriction] = []
    words: list[str] = []
    first = 0
    for at, word in cut(text):
        if not words:
            first = text.count("\n", 0, at)
        words.append(word)
        if not _takes_more(words):
            found.append(Restriction(tuple(words), lines_below=first))
            words = []
    if words:
        found.append(Restriction(tuple(words), lines_below=first))
    return found


def _takes_more(words: list[str]) -> bool:
    """Whether `words` cannot be a whole restriction yet."""
    rest = [word for word in words if word.lower() not in _WRAPS]
    return not rest or (len(rest) == 1 and _TAKES_ARGUMENT.fullmatch(rest[0]) is not None)


def _read(value: Any) -> tuple[Restriction, ...]:
    if isinstance(value, str):
        return tuple(split(value))
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(replace(found, index=index) for index, item in enumerate(value) for found in split(item))
    raise ValueError(
        "is no restriction list; allowed: a list of strings, one restriction each, or one string as in main.cf"
    )


Restrictions = Annotated[tuple[Restriction, ...], BeforeValidator(_read)]
"""A restriction list in either spelling."""


def listed(value: Any) -> Any:
    """A list, or what one string has with white space or commas between."""
    return tuple(word for _, word in cut(value)) if isinstance(value, str) else value


def _table_names(value: Any) -> tuple[str, ...]:
    names = listed(value)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise ValueError('is no list of tables; allowed: "hash:/etc/postfix/access", or several of them')


TableNames = Annotated[tuple[str, ...], PlainValidator(_table_names)]
"""Lookup tables as main.cf names them, TYPE:FILE."""
