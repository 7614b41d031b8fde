# SPDX-License-Identifier: GPL-3.0-or-later
"""Why is it not signing? An answer from the decision lines of a log.

Counts what was signed, what looked like ours and was not, and what kept it from being signed, most frequent first.
What a service in observe mode would have signed left unsigned, and is counted apart.

Known limit: mail of strangers who use nothing of ours is verified and never counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gatekeeper.core.log import WHY, read_decision
from gatekeeper.core.request import domain_of

SIGNED = ("sign.ok", "sign.already", "sign.previous_key")
OBSERVED = "sign.observed"
INTENTIONAL = ("sign.recipient", "sign.exempt", "sign.peer", "sign.external", "sign.no_match")
"""Not signed because the configuration says so, or because it is not ours: from a stranger who uses a domain of ours,
or from us with somebody else's domain. In the last case, mail from a local domain counts as missed all the same."""
_LOCAL = "is a domain of ours"
_MAX_SHOWN = 10


@dataclass(slots=True)
class UnsignedMail:
    """The messages in a log by what became of their signature.

    `reasons` counts all by reason code, `missed` those that should have a signature and have none, `causes` those
    without one by reason code, domain of the sender and cause. `example` has the queue id of the last message of each.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    causes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    example: dict[tuple[str, str, str], str] = field(default_factory=dict)

    @property
    def signed(self) -> int:
        """The number of messages that left with a signature of ours."""
        return sum(self.reasons[reason] for reason in SIGNED)

    @property
    def would_sign(self) -> int:
        """The number of messages that left unsigned because they were only observed."""
        return self.reasons[OBSERVED]


def read_unsigned_mail(lines: Iterable[str]) -> UnsignedMail:
    """Sum up the lines of a log; lines of other programs are skipped."""
    found = UnsignedMail()
    for line in lines:
        if "sign." not in line or (decision := read_decision(line)) is None or decision.get("side") != "milter":
            continue
        reason = next((word for word in decision.get("reasons", "").split(",") if word.startswith("sign.")), "")
        if not reason:
            continue
        found.reasons[reason] += 1
        if reason not in SIGNED or reason == "sign.previous_key":
            why = decision.get(WHY, "")
            found.missed += reason not in (*SIGNED, *INTENTIONAL, OBSERVED) or why.endswith(_LOCAL)
            cause = (reason, domain_of(decision.get("sender", "")[1:-1]), why)
            found.causes[cause] += 1
            found.example[cause] = decision.get("queue_id", "")
    return found


def sentences(found: UnsignedMail) -> Iterator[str]:
    """Yield the report for people, line by line. What came from outside is escaped as in the log."""
    yield f"signed: {found.signed}; looked like ours and not signed: {found.missed}"
    if found.would_sign:
        yield f'only observed (mode = "observe"), and would have been signed: {found.would_sign}'
    for reason, count in found.reasons.most_common():
        yield f"  {count} {reason}"
    if found.causes:
        yield "the causes, most frequent first (docs/signing.md explains the reasons):"
    for (reason, domain, why), count in found.causes.most_common(_MAX_SHOWN):
        queue_id = found.example[reason, domain, why]
        last = f", last in {queue_id}" if queue_id else ""
        yield _printable(f"  {count} {reason} from {domain or '<>'}{last}: {why or 'no cause in the log'}")
    if more := len(found.causes) - _MAX_SHOWN:
        yield from [f"  and {more} more"] if more > 0 else ()


def as_json(found: UnsignedMail) -> dict[str, object]:
    """Return the report for programs."""
    return {
        "signed": found.signed,
        "missed": found.missed,
        "would_sign": found.would_sign,
        "reasons": dict(found.reasons.most_common()),
        "causes": [
            {
                "reason": reason,
                "domain": domain,
                "why": why,
                "count": count,
                "example": found.example[reason, domain, why],
            }
            for (reason, domain, why), count in found.causes.most_common()
        ],
    }


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
