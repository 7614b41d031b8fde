# SPDX-License-Identifier: GPL-3.0-or-later
"""What greylisting cost, read from the decision lines of a log: how many wanted mails waited, how long, whose they
were, and how much never came back.

A mail is wanted if it was asked to wait, came back and passed: nothing else can be known from here. It is counted by
sender and recipient as greylisting tells them apart, so a mail to two recipients is two. What has not come back by the
end of the log may still do so; what was asked before the log begins is not known. Observed greylisting delays nobody,
so it does not count.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from gatekeeper.checks.greylisting.verp import normal_sender
from gatekeeper.core.log import WAITED, read_decision
from gatekeeper.core.request import UNKNOWN, domain_of
from gatekeeper.core.units import parse_duration

_STEPS = ((600.0, "up to 10 minutes"), (1800.0, "up to half an hour"), (3600.0, "up to an hour"))
_LONGER = "longer"
_SHOWN = 10
MAX_WAITING = 500_000
"""Mails that are remembered because they may come back; beyond that the oldest are taken for gone."""


@dataclass(slots=True)
class GreylistingCost:
    """The sum. Times in seconds; `whose` counts delayed wanted mail by the sender's domain and the client."""

    waits: list[float] = field(default_factory=list)
    whose: Counter[str] = field(default_factory=Counter)
    never: int = 0
    """Mails that were asked to wait and have not come back."""
    at_once: int = 0
    """Recipients that greylisting was asked about and let through without a wait."""

    @property
    def asked(self) -> int:
        """Mails that were asked to wait."""
        return self.never + len(self.waits)


def read_greylisting_cost(lines: Iterable[str]) -> GreylistingCost:
    """The sum over the lines of a log, in order; lines of other programs are passed over."""
    delays = GreylistingCost()
    waiting: dict[tuple[str, str], None] = {}
    for line in lines:
        if "greylist." not in line or (told := read_decision(line)) is None:
            continue
        reasons = told.get("reasons", "").split(",")
        mail = (normal_sender(told.get("sender", "")[1:-1]), told.get("recipient", "").lower())
        if "greylist.early" in reasons:
            if WAITED in told and told.get("action", "").startswith("4"):
                _keep(mail, waiting, delays)
        elif mail in waiting and WAITED in told:
            del waiting[mail]
            delays.waits.append(_seconds(told[WAITED]))
            delays.whose[_who(told)] += 1
        elif any(reason.startswith("greylist.") for reason in reasons):
            waiting.pop(mail, None)
            delays.at_once += 1
    delays.never += len(waiting)
    return delays


def _keep(mail: tuple[str, str], waiting: dict[tuple[str, str], None], delays: GreylistingCost) -> None:
    if mail not in waiting and len(waiting) == MAX_WAITING:
        del waiting[next(iter(waiting))]
        delays.never += 1
    waiting[mail] = None


def sentences(delays: GreylistingCost) -> Iterator[str]:
    """For a person."""
    waits = sorted(delays.waits)
    yield f"{delays.asked} mails were asked to wait; {delays.at_once} more were looked at and did not have to"
    yield f"{delays.never} have not come back: software that does not retry, or mail that still may"
    if not waits:
        yield "no wanted mail waited"
        return
    yield f"{len(waits)} wanted mails came back and passed, after {_minutes(median(waits))} in the middle"
    yield from (f"  {count} {words}" for words, count in _steps(waits) if count)
    yield f"  the longest took {_minutes(waits[-1])}"
    yield "whose they were, the most first (gatekeeper.toml: allow_clients, allow_recipients):"
    yield from (f"  {count} {who}" for who, count in delays.whose.most_common(_SHOWN))


def as_json(delays: GreylistingCost) -> dict[str, object]:
    """For a program; times in seconds."""
    waits = sorted(delays.waits)
    return {
        "asked_to_wait": delays.asked,
        "not_come_back": delays.never,
        "passed_at_once": delays.at_once,
        "wanted_that_waited": len(waits),
        "median_wait": median(waits) if waits else None,
        "longest_wait": waits[-1] if waits else None,
        "waits": dict(_steps(waits)),
        "whose": dict(delays.whose.most_common()),
    }


def _steps(waits: Iterable[float]) -> list[tuple[str, int]]:
    count = Counter(next((words for most, words in _STEPS if wait <= most), _LONGER) for wait in waits)
    return [(words, count[words]) for words in (*(words for _, words in _STEPS), _LONGER)]


def _who(told: dict[str, str]) -> str:
    sender, name = told.get("sender", "")[1:-1], told.get("name", UNKNOWN)
    client = told.get("client", UNKNOWN) if name == UNKNOWN else name
    return f"{domain_of(sender) or sender or '<>'} from {client}"


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        return 0.0


def _minutes(wait: float) -> str:
    return f"{wait / 60:.0f} minutes" if wait < 7200 else f"{wait / 3600:.1f} hours"
