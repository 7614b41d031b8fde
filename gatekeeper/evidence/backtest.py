# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatekeeper backtest`: what a configuration would have done to the mail of a log, as a difference to what was done.

Each recipient of each mail is asked about as Postfix's smtpd would ask the policy daemon, in the order and at the time
of the log, so greylisting, limits and learning run through it as they would have run. Only what a policy daemon decides
is compared: a recipient that does not exist, a relay that is refused and what milters say stay as they were.

What a log does not tell is not guessed. HELO checks are not judged where Postfix logged no HELO (for mail that it
accepted, unless another program did); the message is not there, so DKIM and DMARC are not; DNS is that of today, or of
a zone file. What fails only for want of a DNS answer counts as unknown.
"""

import asyncio
import heapq
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice
from typing import Any, NamedTuple

from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import Plan
from gatekeeper.core.request import UNKNOWN, Client, Request, Stage, domain_of, parse_address
from gatekeeper.core.verdict import Verdict, printable
from gatekeeper.dnsclient.resolver import Answer, DNSFailure, Resolver
from gatekeeper.evidence.refusals import reason_of
from gatekeeper.evidence.tops import Tops
from gatekeeper.maillog.envelope import envelope_recipients, envelope_sender
from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.fates import is_temporary, refusals
from gatekeeper.maillog.stories import LINGER, Story
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.migration import migrate
from gatekeeper.stores.store import Clock, Store

EXAMPLES = 3
_STAY = frozenset(
    ("relay access denied", "no such recipient", "mailbox full", "message too large", "server configuration problem")
)
"""Refusals of Postfix's own that no policy daemon takes back."""
_REORDER = 2 * LINGER
_AHEAD = 100
"""How many recipients' DNS answers are fetched at once."""


class LogClock:
    """A clock that shows the time of the log, in seconds since the epoch."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class NoDns:
    """A resolver for whoever wants no question asked: every question fails for now."""

    async def query(self, name: str, type: str) -> Answer:
        """Fail."""
        raise DNSFailure(f"{type} {name} was not asked")

    async def close(self) -> None:
        """Do nothing."""


class Was(StrEnum):
    """What was answered to a recipient, and what would be."""

    ACCEPTED = "accepted"
    DEFERRED = "refused for now"
    REFUSED = "refused for good"
    KEPT = "refused by something else"
    """By what stays whatever a policy daemon says."""
    UNKNOWN = "not known"
    """Would be refused for now only because a DNS answer is missing."""


class Asked(NamedTuple):
    """One recipient of one mail, as the log tells it."""

    at: float
    request: Request
    was: Was
    by: str
    """Who refused it, and why; empty if nobody did."""
    shown_by: str
    """What finds it in the log: gatekeeper why …"""


@dataclass(slots=True)
class Change:
    """A difference: what was, what would be, by which rule."""

    count: int = 0
    senders: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)
    examples: list[Asked] = field(default_factory=list)


class Backtest:
    """Plays stories through an app whose clock is `clock`, and counts what would have been otherwise."""

    def __init__(self, app: App, clock: LogClock) -> None:
        self._app = app
        self._clock = clock
        self.asked = 0
        self.same = 0
        self.kept = 0
        self.unknown: Tops[str] = Tops()
        """Recipients about which nothing can be said, by the reason code that wanted a DNS answer."""
        self.no_helo = 0
        """Recipients whose client's HELO the log does not tell."""
        self.changes: dict[tuple[Was, Was, str], Change] = {}
        """By what was, what would be, and the rule."""

    async def play(self, asked: Asked) -> None:
        """Ask the app about one recipient, as it would have been asked then, and compare."""
        self._clock.now = max(self._clock.now, asked.at)
        self.asked += 1
        self.no_helo += asked.request.helo is None
        decision, context = await self._app.decide(asked.request)
        await context.settle(decision)
        # What only observes is passed over, unless nothing does anything else.
        observing = self._app.plan.config.mode == "observe"
        would, rule = _would(decision.judged if observing else decision.verdict)
        if asked.was is Was.KEPT:
            self.kept += 1
        elif would is Was.UNKNOWN:
            self.unknown.add(rule)
        elif would is asked.was:
            self.same += 1
        else:
            change = self.changes.setdefault((asked.was, would, rule or asked.by), Change())
            change.count += 1
            change.senders[domain_of(asked.request.sender or "").lower() or "<>"] += 1
            change.clients[str(asked.request.client.address)] += 1
            if len(change.examples) < EXAMPLES:
                change.examples.append(asked)

    async def play_all(self, asked: Iterable[Asked], rehearsal: App | None = None) -> None:
        """Play them one after the other.

        `rehearsal` is asked some of them ahead and at once, so that DNS answers are there when they are wanted; it
        shares the resolver, and has a store that nobody looks into.
        """
        questions = iter(asked)
        while some := list(islice(questions, _AHEAD)):
            if rehearsal is not None:
                await asyncio.gather(*(rehearsal.decide(one.request) for one in some))
            for one in some:
                await self.play(one)

    @property
    def hurt(self) -> int:
        """How many recipients of accepted mail would have been refused, or made to wait."""
        return sum(change.count for (was, _, _), change in self.changes.items() if was is Was.ACCEPTED)


def _would(verdict: Verdict) -> tuple[Was, str]:
    if not verdict.refuses:
        return Was.ACCEPTED, ""
    if verdict.reason.endswith(("temporary", "temperror")):
        return Was.UNKNOWN, verdict.reason
    return (Was.DEFERRED if verdict.code.startswith("4") else Was.REFUSED), verdict.reason


def in_order(stories: Iterable[Story]) -> Iterator[Asked]:
    """Yield what was asked in `stories`, which come as they end, in the order in which it was asked.

    They are as `MailLog.stories` gives them with `received`. Beyond some minutes the order of the log is kept.
    """
    waiting: list[tuple[float, int, Asked]] = []
    number, newest = 0, float("-inf")
    for story in stories:
        for asked in recipients_of(story):
            number += 1
            heapq.heappush(waiting, (asked.at, number, asked))
            newest = max(newest, asked.at)
        while waiting and waiting[0][0] < newest - _REORDER:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def recipients_of(story: Story) -> Iterator[Asked]:
    """Yield each recipient of a story that a client sent, with what was answered to it."""
    begin = next((event for event in story.events if event.kind in (Kind.ACCEPTED, Kind.REFUSED)), None)
    if begin is None or (client := begin.fields.get("client")) is None or parse_address(client) is None:
        return
    refused = {event.fields.get("recipient", "").lower(): event for event in refusals(story)}
    for recipient in envelope_recipients(story):
        refusal = refused.get(recipient.lower())
        if refusal is None and not story.queue_ids:
            continue  # a session in which a policy daemon was asked, and nothing came of it
        was, by = _was(refusal, story.events)
        yield Asked(
            at=(refusal or begin).at,
            request=_request(story, begin, recipient),
            was=was,
            by=by,
            shown_by=story.queue_ids[0] if story.queue_ids else client,
        )


def _was(refusal: Event | None, events: Sequence[Event]) -> tuple[Was, str]:
    if refusal is None:
        return Was.ACCEPTED, ""
    by, why = reason_of(refusal, events)
    if by not in ("gatekeeper", "postgrey", "policyd-spf", "postfix") or why in _STAY or "milter" in refusal.fields:
        return Was.KEPT, f"{by}: {why}"
    return (Was.DEFERRED if is_temporary(refusal) else Was.REFUSED), f"{by}: {why}"


def _request(story: Story, begin: Event, recipient: str) -> Request:
    name = begin.fields.get("name") or UNKNOWN
    user = story.first("sasl_user", Kind.ACCEPTED, Kind.REFUSED) or ""
    return Request(
        stage=Stage.RCPT,
        client=Client(address=parse_address(begin.fields["client"]), name=name, reverse_name=name),
        helo=story.first("helo", Kind.REFUSED, Kind.DECIDED, Kind.SPF),
        sender=envelope_sender(story),
        recipient=recipient,
        sasl_user=user,
        sasl_method="PLAIN" if user else "",
        policy_context=story.first("context", Kind.DECIDED) or "",
        instance=f"{begin.at:.6f}.{begin.pid}.{story.queue_ids[0] if story.queue_ids else ''}",
    )


def explain_command(asked: Asked, config: str) -> str:
    """Return the command that explains what would be answered to a recipient, ready to be pasted into a shell."""
    request = asked.request
    words = ["gatekeeper", *(["--config", config] if config else []), "explain"]
    client = str(request.client.address)
    words += ["--client", client if request.client.name == UNKNOWN else f"{client},{request.client.name}"]
    if request.helo is not None:
        words += ["--helo", request.helo]
    if request.sender is not None:
        words += ["--from", request.sender or "<>"]
    words += ["--to", request.recipient or ""]
    if request.sasl_user:
        words += ["--sasl-user", request.sasl_user]
    return shlex.join(printable(word, 320) for word in words)


async def run(
    plan: Plan,
    stories: Iterable[Story],
    resolver: Resolver,
    *,
    live: bool,
    state: Callable[[Clock], Coroutine[Any, Any, Store]] | None = None,
) -> Backtest:
    """Play `stories`, as `in_order` wants them, through `plan` on `resolver`, which is closed at the end.

    With `live` it asks the real DNS: many questions at once, and the DNS lists are tested first. `state` opens a store
    whose state the log meets at its beginning; without one it begins with nothing.
    """
    clock = LogClock()
    asked = in_order(stories)
    first = list(islice(asked, 1))
    clock.now = first[0].at if first else 0.0  # before the state is read: what it holds lasts from then on
    store = MemoryStore(clock)
    app = await open_app(plan, resolver=resolver, store=store, clock=clock)
    try:
        if state is not None:
            source = await state(clock)
            try:
                await migrate(source, store)
            finally:
                await source.close()
        if live:
            await app.lists.probe()
        test = Backtest(app, clock)
        await test.play_all(chain(first, asked), App(plan, resolver, MemoryStore(clock), clock) if live else None)
        return test
    finally:
        await app.close()


_BLOCKED = re.compile(
    r"127\.255\.255\.\d+|open resolver|query refused|not authori[sz]ed|public resolver", re.IGNORECASE
)
_NO_ANSWER = re.compile(
    r"temporary lookup failure|name service error|host not found, try again|domain not found.*try", re.I
)


class Wrong:
    """What a log shows to be wrong already, whatever the configuration: counted, each with an example."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def watch(self, stories: Iterable[Story]) -> Iterator[Story]:
        """Look at each story as it passes."""
        for story in stories:
            self._look(story)
            yield story

    def _look(self, story: Story) -> None:
        for refusal in refusals(story):
            text = refusal.fields.get("text", "")
            by, why = reason_of(refusal, story.events)
            listed = why.removeprefix("listed by ") if why.startswith("listed by ") else ""
            if listed and _BLOCKED.search(text):
                self._note(f"{listed} refuses this relay's resolver, and its error was taken for a listing", text)
            if "sasl_user" in refusal.fields or story.first("sasl_user", Kind.ACCEPTED):
                self._note(f"own users were refused by {by}: {why}", text)
            if _NO_ANSWER.search(text):
                self._note("mail was refused for now because a name server did not answer", text)
            if by == "a milter that fails":
                self._note("mail was refused because a milter did not answer", text)

    def hear(self, event: Event) -> None:
        """Look at an event: some troubles belong to no mail."""
        if event.kind is Kind.TROUBLE:
            text = event.fields["text"]
            if "problem talking to server" in text or "connect to Milter service" in text:
                self._note("Postfix could not reach a policy daemon or milter", text)
            elif "SASL" not in text and "dnsblog" in event.program:
                self._note("postscreen's DNS lists did not answer", text)

    def _note(self, what: str, example: str) -> None:
        count, first = self.found.get(what, (0, example))
        self.found[what] = (count + 1, first)


def sentences(test: Backtest, wrong: Wrong, config: str) -> Iterator[str]:
    """Yield the result for people, line by line."""
    yield f"{test.asked} recipients were asked about again, in the order and at the time of the log."
    yield f"{test.same} would have been answered as they were; {test.kept} were refused by what stays as it is."
    groups = (
        ("Accepted mail that would be refused", Was.ACCEPTED, (Was.REFUSED,)),
        ("Accepted mail that would have to come back", Was.ACCEPTED, (Was.DEFERRED,)),
        ("Refused mail that would pass", None, (Was.ACCEPTED,)),
        ("Refused for now, and would be for good", Was.DEFERRED, (Was.REFUSED,)),
        ("Refused for good, and would be for now", Was.REFUSED, (Was.DEFERRED,)),
    )
    for title, was, would in groups:
        changes = [
            (rule, change)
            for (before, after, rule), change in test.changes.items()
            if after in would and (before is was or (was is None and before is not Was.ACCEPTED))
        ]
        if changes:
            yield from ("", f"{title}: {sum(change.count for _, change in changes)} recipients")
            for rule, change in sorted(changes, key=lambda one: -one[1].count):
                yield from _change_lines(rule, change, config)
    yield from _unknown_lines(test)
    if wrong.found:
        yield from ("", "What the log shows to be wrong already")
        for what, (count, example) in sorted(wrong.found.items(), key=lambda one: -one[1][0]):
            yield f"  {count} times: {printable(what, 160)}"
            yield f"      {printable(example, 200)}"


def _change_lines(rule: str, change: Change, config: str) -> Iterator[str]:
    yield f"  {printable(rule, 80)}: {change.count}"
    yield f"      from {_most(change.senders)}"
    yield f"      by {_most(change.clients)}"
    for asked in change.examples:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(asked.at))
        yield f"      {when}, {printable(asked.shown_by, 64)}: {explain_command(asked, config)}"


def _unknown_lines(test: Backtest) -> Iterator[str]:
    if not (test.unknown.total or test.no_helo):
        return
    yield from ("", "What could not be known")
    for rule, count in test.unknown.most_common():
        yield f"  {count} recipients: {printable(rule, 80)} wanted a DNS answer that did not come"
    if test.no_helo:
        yield f"  {test.no_helo} recipients: the log does not tell the client's HELO, so it was not judged"


def _most(counts: Counter[str]) -> str:
    shown = [f"{printable(name, 80)} ({count})" for name, count in counts.most_common(3)]
    more = [f"{len(counts) - 3} more"] if len(counts) > 3 else []
    return ", ".join([*shown, *more])


def as_json(test: Backtest, wrong: Wrong, config: str) -> dict[str, Any]:
    """Return the result for programs."""
    return {
        "asked": test.asked,
        "same": test.same,
        "kept": test.kept,
        "hurt": test.hurt,
        "no_helo": test.no_helo,
        "unknown": dict(test.unknown.most_common()),
        "changes": [
            {
                "was": str(was),
                "would": str(would),
                "rule": rule,
                "count": change.count,
                "senders": dict(change.senders.most_common(20)),
                "clients": dict(change.clients.most_common(20)),
                "examples": [
                    {"at": one.at, "by": one.by, "why": one.shown_by, "explain": explain_command(one, config)}
                    for one in change.examples
                ],
            }
            for (was, would, rule), change in sorted(test.changes.items(), key=lambda one: -one[1].count)
        ],
        "wrong": [{"what": what, "count": count, "example": text} for what, (count, text) in wrong.found.items()],
    }
