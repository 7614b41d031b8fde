# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of one check (Verdict), what was done to reach it (Step), and the final answer (Decision).

Outcomes are Postfix's lattice: see pipeline/pipeline.py for how they combine. Knows no wire format; `printable()` is
the one function that makes a stranger's text safe for a reply, a header comment or a log line. It is for output only: a
value that somebody goes on to use (a login, the mailbox of a REDIRECT) is never passed through it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from gatekeeper.core.request import Request


class Outcome(StrEnum):
    """One check's opinion."""

    PASS = "pass"
    """No opinion: the next check runs."""
    PERMIT = "permit"
    """Ends its own list; at the end of all lists the answer is DUNNO."""
    ACCEPT = "accept"
    """Ends everything and answers OK: only where the configuration explicitly says so."""
    REJECT = "reject"
    """Ends everything with a 4xx or 5xx reply."""
    DEFER_IF_PERMIT = "defer_if_permit"
    """A soft failure: kept, and answered if nothing rejects for good."""
    DEFER_IF_REJECT = "defer_if_reject"
    """A soft failure of a check that might have permitted: turns a later 5xx into this 4xx."""
    ACTION = "action"
    """Another access(5) action (HOLD, PREPEND, REDIRECT, ...): kept, answered if nothing else is."""


class Mode(StrEnum):
    """Whether a check's verdict counts (`enforce`), is only logged (`observe`), or the check does not run (`off`)."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome and, where it refuses, the reply.

    `reason` is the stable code that logs, metrics and fixtures use (`greylist.early`). `code` is the SMTP reply code
    ("450"), `enhanced` the enhanced status code ("4.7.1", RFC 3463), `text` the explanation for the remote
    postmaster. For `ACTION`, `text` is the whole access(5) action. `earlier` are the soft failures and actions of
    restrictions that this one evaluated in its own place, in order: they count as if they stood before it in its list.
    """

    outcome: Outcome
    reason: str = ""
    code: str = ""
    enhanced: str = ""
    text: str = ""
    earlier: tuple["Verdict", ...] = ()

    @property
    def reply(self) -> str:
        """The SMTP reply as one line, `450 4.7.1 text`; empty if this verdict does not refuse."""
        return f"{self.code} {self.enhanced} {self.text}" if self.code else ""

    @property
    def refuses(self) -> bool:
        """True if this outcome, left alone, ends in a 4xx or 5xx reply."""
        return self.outcome in (Outcome.REJECT, Outcome.DEFER_IF_PERMIT)


PASS = Verdict(Outcome.PASS)

MAX_ACTION = 998
"""Bytes of an `ACTION`: a header field that is PREPENDed may fill a line (RFC 5322 section 2.1.1)."""


def permit(reason: str) -> Verdict:
    """Return a verdict that ends the list in which the check stands."""
    return Verdict(Outcome.PERMIT, reason)


def reject(reason: str, code: str, enhanced: str, text: str) -> Verdict:
    """Return a refusal, permanent (5xx) or temporary (4xx), that ends everything."""
    return Verdict(Outcome.REJECT, reason, code, enhanced, text)


def defer_if_permit(reason: str, enhanced: str, text: str) -> Verdict:
    """Return a soft failure: the mail is deferred unless something rejects it for good.

    Its code is 450, whatever we would like: DEFER_IF_PERMIT carries none, and the client hears Postfix's own
    (`access_map_defer_code`).
    """
    return Verdict(Outcome.DEFER_IF_PERMIT, reason, "450", enhanced, text)


def defer_if_reject(reason: str, enhanced: str, text: str) -> Verdict:
    """Return a soft failure that matters only if something rejects: the rejection becomes temporary, a 450."""
    return Verdict(Outcome.DEFER_IF_REJECT, reason, "450", enhanced, text)


class Note(NamedTuple):
    """One finding of a check: `what` was looked at, in a word or two (`PTR 192.0.2.1`), and what was `found`."""

    what: str
    found: str


LazyNote = Callable[[], tuple[str, str]]
"""A note that is formatted only when somebody reads it: most are never read."""


class Step(NamedTuple):
    """One check that ran. `applied` is False for what is only observed, alone or with everything else.

    A tuple, because a frozen dataclass takes five times as long to create, and a request has some 15 of them.
    """

    list: str
    check: str
    verdict: Verdict
    lazy_notes: tuple[Note | LazyNote, ...] = ()
    applied: bool = True

    @property
    def notes(self) -> tuple[Note, ...]:
        """What the check found, formatted."""
        return tuple(note if isinstance(note, Note) else Note(*note()) for note in self.lazy_notes)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer and everything that led to it, in order.

    `verdict` is what is answered; `judged` is what would be answered if what is only observed counted too.
    """

    request: Request
    verdict: Verdict
    steps: tuple[Step, ...]
    judged: Verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reason codes of all steps that had an opinion, in order, each once."""
        return _reasons(self.steps)

    @property
    def as_judged(self) -> "Decision":
        """The decision that would have been if what is only observed counted."""
        return self if self.judged is self.verdict else replace(self, verdict=self.judged)

    @property
    def observed(self) -> tuple[str, ...]:
        """Those of the reason codes that only steps gave which do not count."""
        observed = [step for step in self.steps if not step.applied]
        if not observed:
            return ()
        counted = _reasons([step for step in self.steps if step.applied])
        return tuple(reason for reason in _reasons(observed) if reason not in counted)


def _reasons(steps: Iterable[Step]) -> tuple[str, ...]:
    codes: dict[str, None] = {}
    for step in steps:
        if step.verdict is not PASS:
            for verdict in (*step.verdict.earlier, step.verdict):
                if verdict.reason:
                    codes[verdict.reason] = None
    return tuple(codes)


def printable(text: str, limit: int = 400) -> str:
    """Return `text` as printable ASCII on one line, at most `limit` characters, anything else replaced by `?`.

    An outsider's bytes must not end a reply line, add a header or send control sequences to a terminal.
    """
    # str.isprintable is False for every control character; the ASCII test comes first as most text is ASCII.
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else "?" for c in text)
