# SPDX-License-Identifier: GPL-3.0-or-later
"""Restriction lists as main.cf and TOML write them, cut into single restrictions with their arguments.

Two spellings: a list of strings, one restriction each; or one string exactly as in main.cf, where white space and
commas separate and only the word itself tells whether an argument follows (smtpd_check.c, generic_checks()). Knows the
shape alone: what a word means is for the checks.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator

_TAKES_ARGUMENT = re.compile(
    r"check_(?!relay_domains|recipient_maps)\w+|(reject|permit)_(rbl|rhsbl|dnswl|rhswl)_\w+|reject_rbl|sleep",
    re.IGNORECASE,
)
"""Words of Postfix that are followed by one argument."""

_WRAPS = frozenset({"warn_if_reject"})
"""Words that stand before a whole other restriction."""

_WORD = re.compile(r"(?:\{[^}]*\}|[^\s,])+")


@dataclass(frozen=True, slots=True)
class Restriction:
    """One restriction with its arguments, and where it stands: its index in the list that it was written in, or how
    many line ends before it in a string of several lines."""

    words: tuple[str, ...]
    index: int | None = field(default=None, compare=False)
    lines_below: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return " ".join(self.words)


def split(text: str) -> list[Restriction]:
    """The restrictions of one string as in main.cf. A missing argument stays missing: the check says so."""
    found: list[Restriction] = []
    words: list[str] = []
    first = 0
    for match in _WORD.finditer(text):
        if not words:
            first = text.count("\n", 0, match.start())
        words.append(match[0])
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
        rows = ((index, item.strip().rstrip(",").split()) for index, item in enumerate(value))
        return tuple(Restriction(tuple(words), index) for index, words in rows if words)
    raise ValueError(
        "is no restriction list; allowed: a list of strings, one restriction each, or one string as in main.cf"
    )


Restrictions = Annotated[tuple[Restriction, ...], BeforeValidator(_read)]
"""A restriction list in either spelling."""
