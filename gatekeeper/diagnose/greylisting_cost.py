# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of greylisting, from the decision lines of a log.

Counts how many wanted mails waited, how long and from whom, and how many never came back. A mail is wanted if it was
asked to wait, came back and passed: nothing else can be known from a log. It is counted by sender and recipient as
greylisting distinguishes them, so a mail to two recipients is two. What has not come back by the end of the log may
still do so; what was asked to wait before the log begins is not known.

Greylisting that is only observed delays nobody. What it would have asked to wait is counted apart, each mail that came,
and by its sender; nobody can know who of them would have come back.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from gatekeeper.checks.greylisting.verp import normal_sender
from gatekeeper.core.log import WAITED, read_decision
from gatekeeper.core.request import UNKNOWN, domain_of
from gatekeeper.core.units import parse_duration

_BUCKETS = ((600.0, "up to 10 minutes"), (1800.0, "up to half an hour"), (3600.0, "up to an hour"))
_LONGER = "longer"
_MAX_SHOWN = 10
_DEFERRED = ("DEFER_IF_PERMIT", "4")
"""What was answered to a mail that has to wait; older logs have the reply."""
MAX_WAITING = 500_000
"""How many mails are remembered because they may come back; beyond that, the oldest count as not come back."""


@dataclass(slots=True)
class GreylistingCost:
    """What greylisting cost. `waits` are the delays of wanted mails in seconds, in the order of the log."""

    waits: list[float] = field(default_factory=list)
    by_sender: Counter[str] = field(default_factory=Counter)
    """Delayed wanted mails by the sender's domain and the client."""
    not_retried: int = 0
    """Mails that were asked to wait and have not come back."""
    passed_at_once: int = 0
    """Recipients that greylisting looked at and let through without delay."""
    would_wait: int = 0
    """Mails that would have been asked to wait, where it is only observed."""
    would_pass: int = 0
    """Recipients that it would have let through there."""
    observed_by_sender: Counter[str] = field(default_factory=Counter)
    """Mails that would have been asked to wait, by the sender's domain and the client."""

    @property
    def deferred(self) -> int:
        """The number of mails that were asked to wait."""
        return self.not_retried + len(self.waits)


def read_greylisting_cost(lines: Iterable[str]) -> GreylistingCost:
    """Sum up the lines of a log in chronological order; lines of other programs are skipped."""
    cost = GreylistingCost()
    waiting: dict[tuple[str, str], None] = {}
    for line in lines:
        if "greylist." not in line or (decision := read_decision(line)) is None:
            continue
        reasons = decision.get("reasons", "").split(",")
        if _is_observed(decision):
            _observe(decision, reasons, cost)
            continue
        mail = (normal_sender(decision.get("sender", "")[1:-1]), decision.get("recipient", "").lower())
        if "greylist.early" in reasons:
            if WAITED in decision and decision.get("action", "").startswith(_DEFERRED):
                _remember(mail, waiting, cost)
        elif mail in waiting and WAITED in decision:
            del waiting[mail]
            cost.waits.append(_seconds(decision[WAITED]))
            cost.by_sender[_sender(decision)] += 1
        elif any(reason.startswith("greylist.") for reason in reasons):
            waiting.pop(mail, None)
            cost.passed_at_once += 1
    cost.not_retried += len(waiting)
    return cost


def _is_observed(decision: dict[str, str]) -> bool:
    """Return whether greylisting did not count: of the whole service, older lines say only what was judged."""
    if "observed" in decision or "judged" not in decision:
        return any(reason.startswith("greylist.") for reason in decision.get("observed", "").split(","))
    return True


def _observe(decision: dict[str, str], reasons: Sequence[str], cost: GreylistingCost) -> None:
    if "greylist.early" in reasons:
        cost.would_wait += 1
        cost.observed_by_sender[_sender(decision)] += 1
    else:
        cost.would_pass += 1


def _remember(mail: tuple[str, str], waiting: dict[tuple[str, str], None], cost: GreylistingCost) -> None:
    if mail not in waiting and len(waiting) == MAX_WAITING:
        del waiting[next(iter(waiting))]
        cost.not_retried += 1
    waiting[mail] = None


def sentences(cost: GreylistingCost) -> Iterator[str]:
    """Yield the report for people, line by line."""
    if cost.would_wait or cost.would_pass:
        yield from _observed_sentences(cost)
        if not (cost.deferred or cost.passed_at_once):
            return
    waits = sorted(cost.waits)
    yield f"{cost.deferred} mails were asked to wait; {cost.passed_at_once} more were checked and did not have to"
    yield f"{cost.not_retried} have not come back: their senders do not retry, or still may"
    if not waits:
        yield "no wanted mail waited"
        return
    yield f"{len(waits)} wanted mails came back and passed, after a median of {_minutes(median(waits))}"
    yield from (f"  {count} {words}" for words, count in _histogram(waits) if count)
    yield f"  the longest took {_minutes(waits[-1])}"
    yield "where they came from, most frequent first (gatekeeper.toml: allow_clients, allow_recipients):"
    yield from (f"  {count} {who}" for who, count in cost.by_sender.most_common(_MAX_SHOWN))


def _observed_sentences(cost: GreylistingCost) -> Iterator[str]:
    yield (
        f'only observed (mode = "observe"): {cost.would_wait} mails would have been asked to wait, and '
        f"{cost.would_pass} more were checked and would not; none waited"
    )
    if cost.would_wait:
        yield "whose they were, most frequent first (gatekeeper.toml: allow_clients, allow_recipients):"
        yield from (f"  {count} {who}" for who, count in cost.observed_by_sender.most_common(_MAX_SHOWN))


def as_json(cost: GreylistingCost) -> dict[str, object]:
    """Return the report for programs; times in seconds."""
    waits = sorted(cost.waits)
    return {
        "asked_to_wait": cost.deferred,
        "not_come_back": cost.not_retried,
        "passed_at_once": cost.passed_at_once,
        "wanted_that_waited": len(waits),
        "median_wait": median(waits) if waits else None,
        "longest_wait": waits[-1] if waits else None,
        "waits": dict(_histogram(waits)),
        "whose": dict(cost.by_sender.most_common()),
        "would_wait": cost.would_wait,
        "would_pass_at_once": cost.would_pass,
        "whose_would_wait": dict(cost.observed_by_sender.most_common()),
    }


def _histogram(waits: Iterable[float]) -> list[tuple[str, int]]:
    count = Counter(next((words for most, words in _BUCKETS if wait <= most), _LONGER) for wait in waits)
    return [(words, count[words]) for words in (*(words for _, words in _BUCKETS), _LONGER)]


def _sender(decision: dict[str, str]) -> str:
    sender, name = decision.get("sender", "")[1:-1], decision.get("name", UNKNOWN)
    client = decision.get("client", UNKNOWN) if name == UNKNOWN else name
    return f"{domain_of(sender) or sender or '<>'} from {client}"


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        return 0.0


def _minutes(wait: float) -> str:
    return f"{wait / 60:.0f} minutes" if wait < 7200 else f"{wait / 3600:.1f} hours"
