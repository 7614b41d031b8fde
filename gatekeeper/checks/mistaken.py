# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a restriction as it is written, in a sentence that says what is allowed."""

import difflib
import re
from collections.abc import Iterable, Sequence

from gatekeeper.checks.opinions import OPINIONS
from gatekeeper.checks.words import LIST_WORDS, MAP_WORDS, PLAIN_WORDS, REFUSED, TABLE_WORDS

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


def why_not(word: str, classes: Iterable[str] = ()) -> str:
    """Why a word is not to be had, with the nearest that is."""
    name = word.lower()
    if name in REFUSED:
        return f"{word} cannot be checked here: {REFUSED[name]}"
    if ":" in word:
        return f"{word!r} stands without a word before it; allowed: check_client_access {word}, and so on"
    if "=" in word or name.startswith("smtpd_"):
        return f"{word!r} is no restriction; write only what stands behind the = in main.cf"
    known = [*known_words(), *classes]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"unknown restriction {word!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
    )
