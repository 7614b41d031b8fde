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


_MEANT = {
    **dict.fromkeys(("ok", "accept", "accepted", "allow", "allowed", "pass", "whitelist", "relay"), ("OK", "permit")),
    **dict.fromkeys(("deny", "denied", "block", "blocked", "blacklist", "drop", "refuse"), ("REJECT", "reject")),
    **dict.fromkeys(("tempfail", "4xx", "greylisted"), ("DEFER", "defer")),
    **dict.fromkeys(("none", "ignore", "skip", "continue", "next"), ("DUNNO", "")),
    "quarantine": ("HOLD", ""),
}
"""What other programs say, and what is said in its place: as an action, and as a restriction."""


def refuse_parameters(words: Sequence[str]) -> None:
    """Raise ValueError if one of `words` names a parameter of main.cf, whose value is not known here."""
    for word in words:
        if match := _PARAMETER.search(word):
            name = match[0].strip("${}()")
            if name.isdigit():
                raise ValueError(f"{match[0]} cannot stand in a list; put the rule into a file, TYPE:FILE")
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


def explain_unknown(word: str, classes: Iterable[str] = (), *, in_table: bool = False, first: bool = False) -> str:
    """Return why a word is not supported, with the one that was probably meant and would be taken in its place.

    `in_table` says that it stands on the right-hand side of an access table; there an action may come `first`, and no
    table can be named.
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
    may_act = in_table and first
    known = {known.lower(): known for known in (*known_words(), *classes) if not (in_table and known in TABLE_WORDS)}
    what, allowed = f"unknown restriction {word!r}", "allowed: Postfix's restrictions and ours, docs/restrictions.md"
    if may_act:
        what, allowed = f"unknown action {word!r}", ALLOWED
        known |= {action.lower(): action for action in ACTIONS}
    elif in_table:
        what += " after another in a table"
    meant = _MEANT.get(name, ("", ""))[0 if may_act else 1]
    if not meant:
        # A class is told apart by case, so the nearest may be the word itself in another case.
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        meant = known[near[0]] if near else ""
    return f"{what}; did you mean {meant!r}?" if meant and meant != word else f"{what}; {allowed}"
