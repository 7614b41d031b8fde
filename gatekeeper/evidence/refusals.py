# SPDX-License-Identifier: GPL-3.0-or-later
"""Who refused, and why, in one word: what differs from mail to mail is left out, so that refusals can be counted.

gatekeeper's refusals are known by their reason codes. Others are known by Postfix's words in the log, which are stable
over its versions (smtpd_check.c, postscreen(8)), and by the texts of postgrey and policyd-spf. A text that is not in
the table stands for itself, without addresses and numbers.
"""

import re
from collections.abc import Iterable

from gatekeeper.core.verdict import printable
from gatekeeper.maillog.events import Event, Kind

_TEXTS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (by, re.compile(pattern, re.IGNORECASE), reason)
    for by, pattern, reason in (
        ("postfix", r"relay access denied", "relay access denied"),
        (
            "",
            r"(?:client(?: host)? \[\S+\]|sender address \S+|helo \S+) blocked using (?P<list>[\w.-]+)",
            "listed by {list}",
        ),
        ("", r"blocked using (?P<list>[\w.-]+)", "listed by {list}"),
        ("postfix", r"user unknown|unknown user|recipient address rejected: undeliverable", "no such recipient"),
        ("postfix", r"helo command rejected: (?P<what>[\w -]+)", "HELO: {what}"),
        ("postfix", r"sender address rejected: (?P<what>[\w -]+)", "sender: {what}"),
        ("postfix", r"client host rejected: (?P<what>[\w -]+)", "client: {what}"),
        ("postgrey", r"greylisted|greylisting in effect", "greylisted"),
        ("policyd-spf", r"\bSPF\b.*?(?P<what>softfail|fail|permerror|temperror)", "SPF {what}"),
        ("opendmarc", r"rejected by DMARC", "DMARC"),
        ("postfix", r"server configuration (?:error|problem)", "server configuration problem"),
        ("postfix", r"too many (?:connections|errors|hops)", "too many connections or errors"),
        ("postfix", r"(?:mailbox|quota).*(?:full|exceeded)|over quota", "mailbox full"),
        ("postfix", r"message size exceeds", "message too large"),
        ("a milter that fails", r"^service unavailable - try again later", "it did not answer"),
        ("postfix", r"recipient address rejected: (?P<what>[\w -]+)", "recipient: {what}"),
    )
)
_VARIES = re.compile(r"<[^>]*>|\[[^\]]*\]|\S*[@\d]\S*")


def reason_of(refusal: Event, beside: Iterable[Event]) -> tuple[str, str]:
    """Return who refused and why. `beside` are the events of the same story: ours among them says that it was us."""
    fields = refusal.fields
    for event in beside:
        if event.kind is Kind.DECIDED and _is_answer(event, refusal):
            return "gatekeeper", our_reason(event)
    text = fields.get("text", "")
    postscreen = refusal.program.rpartition("/")[2] == "postscreen"
    for by, pattern, reason in _TEXTS:
        if found := pattern.search(text):
            return ("postscreen" if postscreen else by or "postfix"), printable(
                reason.format_map({name: value.strip().lower() for name, value in found.groupdict().items()}), 80
            )
    by = "postscreen" if postscreen else "a milter" if "milter" in fields else "postfix"
    return by, printable(" ".join(_VARIES.sub(" ", text.partition(";")[0]).split()), 80) or fields["stage"]


def _is_answer(decision: Event, refusal: Event) -> bool:
    """Tell whether a decision of ours is what Postfix passed on."""
    action = decision.fields.get("action", "")
    if action[:1] not in "45" and not action.startswith(("DEFER", "REJECT")):
        return False
    if (decision.fields.get("side") == "milter") != ("milter" in refusal.fields):
        return False
    ours, theirs = decision.fields.get("recipient"), refusal.fields.get("recipient")
    return ours is None or theirs is None or ours.lower() == theirs.lower()


def our_reason(decision: Event) -> str:
    """Return the reason code of what gatekeeper answered: the last that counted."""
    observed = decision.fields.get("observed", "").split(",")
    counted = [code for code in decision.fields.get("reasons", "").split(",") if code not in observed]
    return counted[-1] if counted and counted[-1] else "refused"
