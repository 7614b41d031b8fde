# SPDX-License-Identifier: GPL-3.0-or-later
"""What one check says (Verdict), what was done on the way (Step), and what comes out (Decision).

Outcomes are Postfix's lattice: see pipeline/pipeline.py for how they combine. Knows no wire format; `printable()` is
the one place that makes a stranger's text safe to stand in a reply, a header comment or a log line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from gatekeeper.core.request import Request


class Outcome(StrEnum):
    """One check's opinion."""

    PASS = "pass"
    """No opinion: the next check is asked."""
    PERMIT = "permit"
    """Ends its own list; at the end of all lists the answer is DUNNO."""
    ACCEPT = "accept"
    """Ends everything and answers OK: only where the configuration says so in as many words."""
    REJECT = "reject"
    """Ends everything with a 4xx or 5xx reply."""
    DEFER_IF_PERMIT = "defer_if_permit"
    """A soft failure: kept, and answered if nothing rejects for good."""
    DEFER_IF_REJECT = "defer_if_reject"
    """A soft failure of something that might have permitted: turns a later 5xx into this 4xx."""
    ACTION = "action"
    """Another access(5) action (HOLD, PREPEND, REDIRECT, ...): kept, answered if nothing else is."""


class Mode(StrEnum):
    """Whether a check's verdict counts (`enforce`), is only written down (`observe`), or is not asked for (`off`)."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome and, where it refuses, the reply.

    `reason` is the stable code that logs, metrics and fixtures name (`greylist.early`). `code` is the SMTP reply code
    ("450"), `enhanced` the enhanced status code ("4.7.1", RFC 3463), `text` the words for the remote postmaster.
    For `ACTION`, `text` is the whole access(5) action. `kept` are the soft failures and actions of restrictions that
    this one asked in its stead, in order: they count as if they stood before it in its list.
    """

    outcome: Outcome
    reason: str = ""
    code: str = ""
    enhanced: str = ""
    text: str = ""
    kept: tuple["Verdict", ...] = ()

    @property
    def reply(self) -> str:
        """The SMTP reply as one line: `450 4.7.1 text`; empty if this verdict refuses nothing."""
        return f"{self.code} {self.enhanced} {self.text}" if self.code else ""

    @property
    def refuses(self) -> bool:
        """True if this outcome, left alone, ends in a 4xx or 5xx reply."""
        return self.outcome in (Outcome.REJECT, Outcome.DEFER_IF_PERMIT)


PASS = Verdict(Outcome.PASS)


def permit(reason: str) -> Verdict:
    """Ends the list that the check stands in."""
    return Verdict(Outcome.PERMIT, reason)


def reject(reason: str, code: str, enhanced: str, text: str) -> Verdict:
    """A refusal with its reply, permanent (5xx) or not (4xx), that ends everything."""
    return Verdict(Outcome.REJECT, reason, code, enhanced, text)


def defer_if_permit(reason: str, enhanced: str, text: str, code: str = "450") -> Verdict:
    """A soft failure: deferred unless something rejects for good."""
    return Verdict(Outcome.DEFER_IF_PERMIT, reason, code, enhanced, text)


def defer_if_reject(reason: str, enhanced: str, text: str, code: str = "450") -> Verdict:
    """A soft failure that only matters if something rejects: that is then temporary."""
    return Verdict(Outcome.DEFER_IF_REJECT, reason, code, enhanced, text)


class Note(NamedTuple):
    """Something found out on the way: `what` in a word or two (`PTR 192.0.2.1`), and what came of it."""

    what: str
    found: str


Later = Callable[[], tuple[str, str]]
"""A note that is put into words when somebody reads it: most are never read."""


class Step(NamedTuple):
    """One check that was asked. `applied` is False for a check in observe mode: its verdict is only written down.

    A tuple, because a frozen dataclass takes five times as long to make, and a request has some 15 of them.
    """

    list: str
    check: str
    verdict: Verdict
    noted: tuple[Note | Later, ...] = ()
    applied: bool = True

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was found out on the way."""
        return tuple(note if isinstance(note, Note) else Note(*note()) for note in self.noted)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer and everything that led to it, in order.

    `verdict` is what the asker is told; `judged` is what the checks came to, which differs only in observe mode.
    """

    request: Request
    verdict: Verdict
    steps: tuple[Step, ...]
    judged: Verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reason codes of all steps that had an opinion, in order, each once."""
        said: dict[str, None] = {}
        for step in self.steps:
            if step.verdict is not PASS:
                for verdict in (*step.verdict.kept, step.verdict):
                    if verdict.reason:
                        said[verdict.reason] = None
        return tuple(said)


def printable(text: str, limit: int = 400) -> str:
    """`text` as printable ASCII on one line, at most `limit` characters, anything else replaced by `?`.

    An outsider's bytes must not end a reply line, add a header or colour a terminal.
    """
    # str.isprintable is False for every control character; the ASCII test comes first as most text is ASCII.
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else "?" for c in text)
