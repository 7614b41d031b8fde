# SPDX-License-Identifier: GPL-3.0-or-later
"""Error messages for restrictions as they are written: what is wrong, and what is allowed."""

import difflib
import re
from collections.abc import Iterable, Sequence

from gatekeeper.checks.builder.own_checks import OWN_CHECKS
from gatekeeper.checks.builder.postfix_words import LIST_WORDS, MAP_WORDS, PLAIN_WORDS, TABLE_WORDS, UNSUPPORTED
from gatekeeper.checks.tables.action import ACTIONS, ALLOWED

_ENHANCED = re.compile(r"[245](?:\.\d{1,3}){2}", re.ASCII)
_PARAMETER = re.compile(r"\$(?:\w+|\{\w+\}|\(\w+\))", re.ASCII)
"""What main.cf replaces with the value of another parameter."""


def refuse_parameters(words: Sequence[str]) -> None:
    """Raise ValueError if one of `words` names a parameter of main.cf, whose value is not known here."""
    for word in words:
        if match := _PARAMETER.search(word):
            name = match[0].strip("${}()")
            raise ValueError(f"{match[0]} is not known here; write what `postconf -xh {name}` says in its place")


def expect_arguments(count: int, word: str, arguments: Sequence[str], what: str = "") -> None:
    """Raise ValueError unless `word` has `count` arguments; `what` says in words which argument it needs."""
    if len(arguments) == count:
        return
    raise ValueError(f"{word} needs {what} after it" if count else f"{word} takes no argument: {' '.join(arguments)!r}")


def known_words() -> tuple[str, ...]:
    """Return the words that a restriction may begin with."""
    ours = (*OWN_CHECKS, "access", "ratelimit", "warn_if_reject")
    return (*PLAIN_WORDS, *LIST_WORDS, *TABLE_WORDS, *MAP_WORDS, *ours)


def explain_unknown(word: str, classes: Iterable[str] = (), *, in_table: bool = False) -> str:
    """Return why a word is not supported, with the nearest one that is.

    `in_table` says that it stands on the right-hand side of an access table.
    """
    name = word.lower()
    if name in UNSUPPORTED:
        return f"{word} cannot be checked here: {UNSUPPORTED[name]}"
    if ":" in word:
        return f"{word!r} stands without a word before it; allowed: check_client_access {word}, and so on"
    if "=" in word or name.startswith("smtpd_"):
        return f"{word!r} is not a restriction; write only what comes after the = in main.cf"
    if in_table and _ENHANCED.fullmatch(word):
        return f"{word!r} needs a word before it: REJECT {word} text, DEFER {word} text, or a code, 550 {word} text"
    known = [*known_words(), *classes]
    what, allowed = f"unknown restriction {word!r}", "allowed: Postfix's restrictions and ours, docs/restrictions.md"
    if in_table:
        what, allowed = f"unknown action {word!r}", ALLOWED
        known += map(str.lower, ACTIONS)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        return f"{what}; {allowed}"
    return f"{what}; did you mean {near[0].upper() if near[0].upper() in ACTIONS else near[0]!r}?"
