# SPDX-License-Identifier: GPL-3.0-or-later
"""What the milter asks Postfix to do with one message, as values; callbacks.py says them in libmilter's words.

The order matters and is fixed here: removals run back to front, because each one shifts the indices behind it (a
fault in OpenDKIM that lets forged fields survive), and before insertions, which shift them too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gatekeeper.auth.forged_results import claims_to_be_ours, mentions_method
from gatekeeper.core.message import Header
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Decision, Outcome, Verdict, printable

_RESULTS = b"authentication-results"


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the `index`-th field (from 1) called `name`."""

    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Insert:
    """Put a field at the top. `value` begins with its leading space; folds are LF and white space."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What is done at the end of a message: removals, then insertions (each above the one before), then the answer.

    `reply` refuses the message; `discard` takes it and throws it away; `quarantine` asks Postfix to hold it, with this
    reason. `decision` says why all this; None if nothing was to be decided. `judged`: the message was judged as a
    stranger's.
    """

    removals: tuple[Remove, ...] = ()
    insertions: tuple[Insert, ...] = ()
    reply: Verdict | None = None
    discard: bool = False
    quarantine: str = ""
    decision: Decision | None = None
    judged: bool = False


def edits_of(decision: Decision, removals: tuple[Remove, ...] = (), insertions: tuple[Insert, ...] = ()) -> Edits:
    """Return what a decision asks of Postfix, with the removals and insertions of a message that is not refused."""
    verdict = decision.verdict
    if verdict.refuses:
        return Edits(reply=verdict, decision=decision)
    quarantine = ""
    if verdict.outcome is Outcome.ACTION:
        if verdict.text.startswith("DISCARD"):
            return Edits(discard=True, decision=decision)
        if verdict.text.startswith("HOLD"):
            quarantine = verdict.text.removeprefix("HOLD")[1:] or verdict.reason
        if verdict.text.startswith("PREPEND "):
            name, _, value = verdict.text.removeprefix("PREPEND ").partition(":")
            insertions = (Insert(name, printable(value)), *insertions)  # below what we found out, which stays on top
    return Edits(removals=removals, insertions=insertions, quarantine=quarantine, decision=decision)


def answer(verdict: Verdict, _request: Request | None = None) -> str:
    """Return in words what `edits_of` makes of a verdict: a reply, HOLD, DISCARD, a field to PREPEND, else DUNNO."""
    if verdict.refuses:
        return f"{verdict.code} {verdict.enhanced} {printable(verdict.text)}"
    done = verdict.outcome is Outcome.ACTION and verdict.text.startswith(("HOLD", "DISCARD", "PREPEND "))
    return verdict.text if done else "DUNNO"


def forged_results(
    headers: Sequence[Header], authserv_ids: Collection[str], methods: Collection[str] | None = None
) -> tuple[Remove, ...]:
    """Return removals, back to front, of every Authentication-Results field that claims to be ours.

    It claims so (RFC 8601 section 5) by one of `authserv_ids`. With `methods`, only fields that tell one of these are
    removed.
    """
    removals = []
    index = 0
    for field in headers:
        if field.name.lower() == _RESULTS:
            index += 1
            ours = any(claims_to_be_ours(field, authserv_id) for authserv_id in authserv_ids)
            if ours and (methods is None or any(mentions_method(field, method) for method in methods)):
                removals.append(Remove("Authentication-Results", index))
    return tuple(reversed(removals))


def every(headers: Sequence[Header], name: str) -> tuple[Remove, ...]:
    """Return removals, back to front, of every field called `name`."""
    count = sum(field.name.lower() == name.lower().encode() for field in headers)
    return tuple(Remove(name, index) for index in range(count, 0, -1))


def insertion(field: Header) -> Insert:
    """Return `field` in the form that a milter passes it to Postfix, which makes each LF a CRLF again."""
    return Insert(field.name.decode("ascii"), field.value.decode("ascii").replace("\r\n", "\n"))
