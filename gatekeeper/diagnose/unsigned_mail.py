# SPDX-License-Identifier: GPL-3.0-or-later
"""Why is it not signing? Counted from the decision lines of a log: what was signed, what looked ours and was not, and
what kept it from being signed, the most first.

Known limit: mail of strangers who use nothing of ours is verified and never counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gatekeeper.core.log import WHY, read_decision
from gatekeeper.core.request import domain_of

SIGNED = ("sign.ok", "sign.already", "sign.previous_key")
WANTED = ("sign.recipient", "sign.exempt", "sign.peer", "sign.external", "sign.no_match")
"""Not signed because the configuration says so, or because it is not ours: a stranger who uses a domain of ours, or
mail of ours from somebody else's domain. Of the last, what is from a local domain is missed all the same."""
_LOCAL = "is a domain of ours"
_SHOWN = 10


@dataclass(slots=True)
class UnsignedMail:
    """The sum: messages by reason, how many of them `missed` a signature that they should have, and those that are not
    signed by reason, domain of the sender and cause. `example` has the queue id of the last message of each.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    causes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    example: dict[tuple[str, str, str], str] = field(default_factory=dict)

    @property
    def signed(self) -> int:
        """Messages that left with a signature of ours."""
        return sum(self.reasons[reason] for reason in SIGNED)


def read_unsigned_mail(lines: Iterable[str]) -> UnsignedMail:
    """The sum over the lines of a log; lines of other programs are passed over."""
    found = UnsignedMail()
    for line in lines:
        if "sign." not in line or (told := read_decision(line)) is None or told.get("side") != "milter":
            continue
        reason = next((word for word in told.get("reasons", "").split(",") if word.startswith("sign.")), "")
        if not reason:
            continue
        found.reasons[reason] += 1
        if reason not in SIGNED or reason == "sign.previous_key":
            why = told.get(WHY, "")
            found.missed += reason not in (*SIGNED, *WANTED) or why.endswith(_LOCAL)
            cause = (reason, domain_of(told.get("sender", "")[1:-1]), why)
            found.causes[cause] += 1
            found.example[cause] = told.get("queue_id", "")
    return found


def sentences(found: UnsignedMail) -> Iterator[str]:
    """For a person. What came from outside is escaped as in the log."""
    yield f"signed: {found.signed}; looked ours and not signed: {found.missed}"
    for reason, count in found.reasons.most_common():
        yield f"  {count} {reason}"
    if found.causes:
        yield "the causes, the most first (docs/signing.md has the reasons):"
    for (reason, domain, why), count in found.causes.most_common(_SHOWN):
        queue_id = found.example[reason, domain, why]
        last = f", last in {queue_id}" if queue_id else ""
        yield _plain(f"  {count} {reason} from {domain or '<>'}{last}: {why or 'no cause in the log'}")
    if more := len(found.causes) - _SHOWN:
        yield from [f"  and {more} more"] if more > 0 else ()


def as_json(found: UnsignedMail) -> dict[str, object]:
    """For a program."""
    return {
        "signed": found.signed,
        "missed": found.missed,
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


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
