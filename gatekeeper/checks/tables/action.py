# SPDX-License-Identifier: GPL-3.0-or-later
"""Actions, the right-hand sides of access tables (access(5)).

Replies are what Postfix makes of them: default codes, an enhanced code at the beginning of the text, and the mapping of
x.1.y codes to the thing that is refused (smtpd_dsn_fix.c). Restriction names on the right-hand side become checks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from gatekeeper.checks.base.nested import SERVER_ERROR, may_ask_spf, may_permit, run_checks
from gatekeeper.checks.tables.sender_proof import ASKING_SPF, CONDITIONS, is_proven
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import MAX_ACTION, PASS, Outcome, Verdict, printable
from gatekeeper.pipeline.check import Check
from gatekeeper.pipeline.context import Context

_ENHANCED = re.compile(r"([245](?:\.\d{1,3}){2})(?:\s+|$)", re.ASCII)
_CODE = re.compile(r"[45]\d\d", re.ASCII)
_HEADER = re.compile(r"[!-9;-~]+[ \t]*:.*", re.ASCII)
_IF = re.compile(r"if=(\S*)", re.ASCII)

_REPLIES = {
    "REJECT": (Outcome.REJECT, "554", "5.7.1", "Access denied"),
    "DEFER": (Outcome.REJECT, "450", "4.7.1", "Access denied"),
    "DEFER_IF_PERMIT": (Outcome.DEFER_IF_PERMIT, "450", "4.7.1", "Service unavailable"),
    "DEFER_IF_REJECT": (Outcome.DEFER_IF_REJECT, "450", "4.7.1", "Service unavailable"),
}
_MAILBOX = re.compile(r"[^\x00-\x20\x7f]*@[^\x00-\x20\x7f]+")
_ARGUMENT = {
    "BCC": (_MAILBOX, "an address, user@domain"),
    "DISCARD": (re.compile(".*"), ""),
    "FILTER": (re.compile(r"[^:\x00-\x20\x7f]+:[^\x00-\x20\x7f]*"), "transport:destination"),
    "HOLD": (re.compile(".*"), ""),
    "INFO": (re.compile(".*"), ""),
    "PREPEND": (_HEADER, "a header field, Name: value"),
    "REDIRECT": (_MAILBOX, "an address, user@domain"),
    "WARN": (re.compile(".*"), ""),
}
"""Actions that Postfix itself carries out, and the argument that each needs."""
_TEXTS = ("DISCARD", "HOLD", "INFO", "PREPEND", "WARN")
"""Those whose argument is a text that may be cut; of a mailbox or a destination, a part is another one."""

_OKS = ("OK", "RELAY")
_UNPROVEN = Verdict(Outcome.PASS, "access.unproven")
ACTIONS = (*_OKS, "DUNNO", *_REPLIES, *_ARGUMENT)
"""The words that an entry may begin with, besides codes and restrictions."""

ALLOWED = (
    "allowed: OK, DUNNO, REJECT, DEFER, 4xx or 5xx with a text, DEFER_IF_PERMIT, DEFER_IF_REJECT, HOLD, DISCARD, "
    "REDIRECT, BCC, FILTER, PREPEND, INFO, WARN, or restrictions"
)


@dataclass(frozen=True, slots=True)
class TableAction:
    """The action of an entry.

    `verdict` lacks only the name of the thing that is refused; `checks`, if any, run instead of it. `condition` is what
    an allow entry requires (sender_proof.py): if it is not met, the entry does not count.
    """

    verdict: Verdict
    checks: tuple[Check, ...] = ()
    condition: str = ""

    @property
    def allows(self) -> bool:
        """Whether the action is OK, which ends the list in favour of the client."""
        return self.verdict.outcome is Outcome.PERMIT

    @property
    def asks_spf(self) -> bool:
        """Whether SPF of the sender may be asked for."""
        return self.condition in ASKING_SPF or may_ask_spf(self.checks)


RestrictionBuilder = Callable[[str], tuple[Check, ...]]
"""Builds the checks for a list of restrictions. Raises ValueError with what is wrong."""


def parse_action(text: str, restrictions: RestrictionBuilder) -> TableAction:
    """Parse a right-hand side. Raises ValueError with what is allowed."""
    word, rest = [*text.split(None, 1), "", ""][:2]
    rest = rest.strip()
    upper = word.upper()
    if not word:
        raise ValueError(f"the entry has no action; {ALLOWED}")
    if upper in _REPLIES:
        return TableAction(_reply(upper.lower(), *_REPLIES[upper], rest))
    if upper in _OKS:
        return _allow(rest)
    if text.strip().isascii() and text.strip().isdigit():
        return _allow("")
    if upper == "DUNNO":
        return TableAction(replace(PASS, reason="access.dunno"))
    if _CODE.fullmatch(word):
        return TableAction(_reply(word, Outcome.REJECT, word, f"{word[0]}.7.1", "Access denied", rest))
    if upper in _ARGUMENT:
        pattern, needed = _ARGUMENT[upper]
        if not pattern.fullmatch(rest):
            raise ValueError(f"{upper} needs {needed} after it")
        return TableAction(Verdict(Outcome.ACTION, f"access.{upper.lower()}", text=f"{upper} {rest}".strip()))
    if ":" in text:
        raise ValueError(f"{text!r}: a table cannot name another table; {ALLOWED}")
    return TableAction(PASS, restrictions(text))


def text_action(text: str) -> TableAction:
    """Wrap a right-hand side that is not an action but a text, such as the owners of an address: the verdict's text."""
    return TableAction(replace(PASS, text=text))


def broken_action(text: str) -> TableAction:
    """Return what becomes of a right-hand side that cannot be understood.

    It is answered 451 4.3.5, as Postfix does; an OK with an unknown condition is never proven.
    """
    word = text.split(None, 1)[0].upper() if text.split() else ""
    return TableAction(_UNPROVEN if word in _OKS else SERVER_ERROR)


def without_trust(action: TableAction) -> TableAction:
    """Return `action` so that it permits nobody: an OK is a DUNNO, a `permit` among restrictions is left out."""
    if action.allows:
        return TableAction(replace(PASS, reason="access.dunno"))
    checks = tuple(check for check in action.checks if check.name != "permit")
    if may_permit(checks):
        return TableAction(SERVER_ERROR)
    return action if len(checks) == len(action.checks) else replace(action, checks=checks)


def with_text(action: TableAction, text: str) -> TableAction:
    """Return `action` with the text that a pattern made of a stranger's: still one action with one argument.

    Where it is not any more (`REDIRECT $1@example.com` with a space in $1, or longer than any mailbox), it is Postfix's
    answer to a table that cannot be used: leaving the action out could let mail through. A text has `?` for what must
    not be in it.
    """
    if action.verdict.outcome is Outcome.ACTION:
        word, _, rest = text.partition(" ")
        if word in _TEXTS:
            text = text.replace("\0", "?")
        elif not _ARGUMENT[word][0].fullmatch(rest) or len(text.encode("utf-8", "surrogateescape")) > MAX_ACTION:
            return TableAction(SERVER_ERROR)
    return replace(action, verdict=replace(action.verdict, text=text))


def _allow(rest: str) -> TableAction:
    """Parse an OK; any text after it is ignored, as in Postfix, except our own `if=`."""
    allowed = Verdict(Outcome.PERMIT, "access.ok")
    match = _IF.search(rest)
    if match is None:
        return TableAction(allowed)
    if match[1] not in CONDITIONS:
        raise ValueError(f"{match[0]!r} is not a condition; allowed: {', '.join(f'if={name}' for name in CONDITIONS)}")
    return TableAction(allowed, condition=match[1])


def _reply(word: str, outcome: Outcome, code: str, enhanced: str, default: str, rest: str) -> Verdict:
    if match := _ENHANCED.match(rest):
        enhanced, rest = code[0] + match[1][1:], rest[match.end() :]
    return Verdict(outcome, f"access.{word}", code, enhanced, rest or default)


@dataclass(frozen=True, slots=True)
class Subject:
    """What was looked up, and what Postfix calls it in replies: `Client host`, `Helo command`, `Sender address`, ..."""

    what: str
    label: str


async def apply(action: TableAction, subject: Subject, request: Request, context: Context) -> Verdict:
    """Return the verdict of an entry that was found for `subject`."""
    if action.condition and not await is_proven(action.condition, request, context):
        return _UNPROVEN
    if action.checks:
        return await run_checks(action.checks, request, context)
    verdict = action.verdict
    if not verdict.code:
        return verdict
    text = f"<{printable(subject.what, 320)}>: {subject.label} rejected: {printable(verdict.text)}"
    return replace(verdict, enhanced=_fix_dsn(verdict.enhanced, subject.label), text=text)


_ADDRESS_STATUS = {
    # detail of x.1.detail: for a sender, for a recipient
    "1": ("7", "1"),
    "2": ("8", "2"),
    "3": ("7", "3"),
    "4": ("7", "4"),
    "5": ("0", "5"),
    "6": ("7", "6"),
    "7": ("7", "3"),
    "8": ("8", "2"),
}


def _fix_dsn(enhanced: str, label: str) -> str:
    """Make an address status (x.1.y) fit what is refused; return any other unchanged."""
    first, _, rest = enhanced.partition(".")
    if not rest.startswith("1."):
        return enhanced
    sender, recipient = _ADDRESS_STATUS.get(rest[2:], ("0", "0"))
    if label == "Sender address":
        return f"{first}.1.{sender}"
    if label == "Recipient address":
        return f"{first}.1.{recipient}"
    return f"{first}.0.0"
