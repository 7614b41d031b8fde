# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse restriction lists, as main.cf or TOML has them, into single restrictions with their arguments.

Two forms: a list of strings; or one string exactly as in main.cf, where white space and commas separate words, braces
group what they enclose, lines that start with `#` are comments, and only the word itself tells whether an argument
follows (smtpd_check.c, generic_checks(); mystrtokq(3)). Knows the syntax only: what a word means is up to the checks.
Does not know main.cf's other parameters: `$name` is kept as written, and the checks refuse it.
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
"""Postfix's words that take one argument."""

_PREFIXES = frozenset({"warn_if_reject"})
"""Words that are followed by another complete restriction."""

_SEPARATORS = re.compile(r"[\s,]+")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Restriction:
    """One restriction with its arguments, and where it was written.

    `index` is its place in a list of strings; `line_offset` is its line, from 0, in one string of several lines.
    """

    words: tuple[str, ...]
    index: int | None = field(default=None, compare=False)
    line_offset: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return " ".join(self.words)


def split_words(text: str) -> Iterator[tuple[int, str]]:
    """Yield the words of `text` with their offsets; white space and commas separate them, except within braces."""
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


def strip_braces(text: str) -> str | None:
    """Return what the braces around `text` enclose; None if one pair of braces does not enclose all of it."""
    text = text.strip()
    words = [word for _, word in split_words(text)]
    if len(words) != 1 or not (text.startswith("{") and text.endswith("}")):
        return None
    return text[1:-1].strip()


def parse_restrictions(text: str) -> list[Restriction]:
    """Parse one string as in main.cf. A missing argument is left missing: the check reports it."""
    text = _COMMENT.sub(lambda comment: " " * len(comment[0]), text)
    found: list[Restriction] = []
    words: list[str] = []
    rest: list[str] = []  # without prefixes
    first = 0
    for at, word in split_words(text):
        if not words:
            first = text.count("\n", 0, at)
        words.append(word)
        if word.lower() not in _PREFIXES:
            rest.append(word)
        if not _takes_more(rest):
            found.append(Restriction(tuple(words), line_offset=first))
            words, rest = [], []
    if words:
        found.append(Restriction(tuple(words), line_offset=first))
    return found


def _takes_more(rest: list[str]) -> bool:
    """Return True if these words, without prefixes, are not a complete restriction yet."""
    return not rest or (len(rest) == 1 and _TAKES_ARGUMENT.fullmatch(rest[0]) is not None)


def _read(value: Any) -> tuple[Restriction, ...]:
    if isinstance(value, str):
        return tuple(parse_restrictions(value))
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(
            replace(found, index=index) for index, item in enumerate(value) for found in parse_restrictions(item)
        )
    raise ValueError(
        "is not a restriction list; allowed: a list of strings, one restriction each, or one string as in main.cf"
    )


Restrictions = Annotated[tuple[Restriction, ...], BeforeValidator(_read)]
"""A restriction list in either form."""


def split_if_string(value: Any) -> Any:
    """Split a string at white space and commas; return anything else as it is."""
    return tuple(word for _, word in split_words(value)) if isinstance(value, str) else value


def _table_names(value: Any) -> tuple[str, ...]:
    names = split_if_string(value)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise ValueError('is not a list of tables; allowed: "hash:/etc/postfix/access", or several of them')


TableNames = Annotated[tuple[str, ...], PlainValidator(_table_names)]
"""Lookup tables as main.cf names them, TYPE:FILE."""
