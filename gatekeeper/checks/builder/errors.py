# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a restriction as it is written, in a sentence that says what is allowed."""

import difflib
import re
from collections.abc import Iterable, Sequence

from gatekeeper.checks.builder.own_checks import OPINIONS
from gatekeeper.checks.builder.postfix_words import LIST_WORDS, MAP_WORDS, PLAIN_WORDS, REFUSED, TABLE_WORDS
from gatekeeper.checks.tables.action import ACTIONS, ALLOWED

_ENHANCED = re.compile(r"[245](?:\.\d{1,3}){2}", re.ASCII)
_PARAMETER = re.compile(r"\$(?:\w+|\{\w+\}|\(\w+\))", re.ASCII)
"""What main.cf replaces by the value of another parameter."""


def no_parameters(words: Sequence[str]) -> None:
    """Raises ValueError if one of `words` names a parameter of main.cf: what it says is not known here."""
    for word in words:
        if match := _PARAMETER.search(word):
            name = match[0].strip("${}()")
            raise ValueError(f"{match[0]} is not known here; write what `postconf -xh {name}` says in its place")


def takes(count: int, word: str, arguments: Sequence[str], what: str = "") -> None:
    """Raises ValueError unless there are `count` arguments behind `word`, of the kind `what`."""
    if len(arguments) == count:
        return
    raise ValueError(
        f"{word} needs {what} behind it" if count else f"{word} takes no argument: {' '.join(arguments)!r}"
    )


def known_words() -> tuple[str, ...]:
    """What may stand first in a restriction."""
    ours = (*OPINIONS, "access", "ratelimit", "warn_if_reject")
    return (*PLAIN_WORDS, *LIST_WORDS, *TABLE_WORDS, *MAP_WORDS, *ours)


def why_not(word: str, classes: Iterable[str] = (), *, entry: bool = False) -> str:
    """Why a word is not to be had, with the nearest that is. `entry`: it stands on the right side of a table."""
    name = word.lower()
    if name in REFUSED:
        return f"{word} cannot be checked here: {REFUSED[name]}"
    if ":" in word:
        return f"{word!r} stands without a word before it; allowed: check_client_access {word}, and so on"
    if "=" in word or name.startswith("smtpd_"):
        return f"{word!r} is no restriction; write only what stands behind the = in main.cf"
    if entry and _ENHANCED.fullmatch(word):
        return f"{word!r} needs a word before it: REJECT {word} text, DEFER {word} text, or a code, 550 {word} text"
    known = [*known_words(), *classes]
    what, allowed = f"unknown restriction {word!r}", "allowed: Postfix's restrictions and ours, docs/restrictions.md"
    if entry:
        what, allowed = f"unknown action {word!r}", ALLOWED
        known += map(str.lower, ACTIONS)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        return f"{what}; {allowed}"
    return f"{what}; did you mean {near[0].upper() if near[0].upper() in ACTIONS else near[0]!r}?"
