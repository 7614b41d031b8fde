# SPDX-License-Identifier: GPL-3.0-or-later
"""The seam: every front door asks `Pipeline.decide(request, context)`, and nothing else decides.

The lattice is Postfix's (smtpd_check.c, SMTPD_ACCESS_README). Lists run in Postfix's order. PERMIT ends its own
list, REJECT ends all. The first `defer_if_permit` of all lists and the first `defer_if_reject` of each list are kept:
a 5xx that comes after a kept `defer_if_reject` in its list becomes that 4xx; both together end the list, because
nothing that comes can change more than the words. At the end a kept `defer_if_permit` is answered, else an action,
else the last list's `defer_if_reject` (so that it also tempers a refusal of Postfix's own further down its list), else
DUNNO. The action DISCARD ends everything, as in Postfix.

What is only observed, one check or all, goes through the same lattice beside it: `Decision.judged` is what would be
answered if it counted, as far as was asked: no check is asked only because something observed would have permitted.

Checks that announce what they will read from the store (`Announcing`) share one round trip: the first question of any
check takes along what all of them announced. A check that crashes abstains, loudly, and what was kept before stays
kept. A decision that is cut off tells what it had come to (`CutOff`). Side effects wait for the decision:
`Context.after`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Decision, Mode, Outcome, Step, Verdict
from gatekeeper.pipeline.check import Announcing, Check, asks_spf
from gatekeeper.pipeline.context import Context
from gatekeeper.stores.read_ahead import ReadAheadStore
from gatekeeper.stores.store import Keys, ReadAhead

logger = logging.getLogger(__name__)

CLIENT, HELO, SENDER, RECIPIENT, ETRN, DATA, END_OF_DATA = LISTS = (
    "client",
    "helo",
    "sender",
    "recipient",
    "etrn",
    "data",
    "end_of_data",
)
OBSERVED = "observe:"
"""The prefix of the store keys of what is only observed."""

_EARLY = (CLIENT, HELO, SENDER, RECIPIENT)
_LISTS_AT = {
    Stage.CONNECT: _EARLY,
    Stage.HELO: _EARLY,
    Stage.MAIL: _EARLY,
    Stage.RCPT: _EARLY,
    Stage.VRFY: _EARLY,
    Stage.ETRN: (CLIENT, HELO, ETRN),
    Stage.DATA: (DATA,),
    Stage.END_OF_MESSAGE: (END_OF_DATA,),
}
"""Which lists run when. Checks whose attributes do not exist yet abstain, so one table serves Postfix with and
without `smtpd_delay_reject`."""


class CutOff(asyncio.CancelledError):
    """A decision was cancelled: `decision` is what had been decided by then, with the kept deferral if there is one.

    Whoever cancelled it may answer that, and settle what `context` has in hand.
    """

    def __init__(self, decision: Decision, context: Context) -> None:
        super().__init__()
        self.decision = decision
        self.context = context


@dataclass(slots=True)
class _Course:
    """How far the lattice has come with the verdicts that count."""

    if_permit: Verdict | None = None
    if_reject: Verdict | None = None
    action: Verdict | None = None
    end: Verdict | None = None
    """What has ended everything."""
    list_ended: bool = False

    @property
    def verdict(self) -> Verdict:
        """What is answered if nothing more comes."""
        return self.end or self.if_permit or self.action or self.if_reject or PASS

    def begin_list(self) -> None:
        """Go on with the next list, unless everything has ended."""
        if self.end is None:
            self.if_reject, self.list_ended = None, False

    def take(self, verdict: Verdict) -> None:
        """Go on with the verdict of the next check, which stands for nothing if its list has ended."""
        if self.list_ended:
            return
        for earlier in verdict.earlier:
            self._keep(earlier)
        if not (verdict.earlier and self.if_permit and self.if_reject):
            match verdict.outcome:
                case Outcome.PASS:
                    return
                case Outcome.PERMIT:
                    self.list_ended = True
                case Outcome.ACCEPT:
                    self.end = self.if_permit or verdict
                case Outcome.REJECT if self.if_reject and verdict.code.startswith("5"):
                    self.end = replace(self.if_reject, outcome=Outcome.REJECT)
                case Outcome.REJECT:
                    self.end = verdict
                case Outcome.ACTION if verdict.text.startswith("DISCARD"):
                    self.end = self.if_permit or verdict
                case _:
                    self._keep(verdict)
        if self.end or (self.if_permit and self.if_reject):
            self.list_ended = True

    def _keep(self, verdict: Verdict) -> None:
        """Keep a soft failure or an action, unless there is one before it."""
        match verdict.outcome:
            case Outcome.DEFER_IF_PERMIT:
                self.if_permit = self.if_permit or verdict
            case Outcome.DEFER_IF_REJECT:
                self.if_reject = self.if_reject or verdict
            case _:
                self.action = self.action or verdict


class _Entry(NamedTuple):
    """One check of a list, with what need not be computed for each request."""

    check: Callable[[Request, Context], Awaitable[Verdict]]
    name: str
    needs: tuple[str, ...]
    enforced: bool
    announce: Callable[[Request, Context], ReadAhead | None] | None
    passed: Step
    """The step of most requests: the check passed and found nothing out."""
    cut_off: Verdict
    """It did not come to its end."""

    @classmethod
    def of(cls, check: Check, list_name: str, *, observe: bool) -> Self:
        announce = check.announce if isinstance(check, Announcing) else None
        passed = Step(list_name, check.name, PASS, applied=not observe)
        cut_off = Verdict(Outcome.PASS, f"{check.name}.cut_off")
        return cls(check.check, check.name, check.needs, check.mode is Mode.ENFORCE, announce, passed, cut_off)

    def abstains(self, request: Request) -> bool:
        """Return True if an attribute that the check needs does not exist at this stage."""
        for need in self.needs:  # noqa: SIM110 (any() takes four times as long, and this is asked 15 times)
            if getattr(request, need) is None:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The checks by list name (`LISTS`), in order. With `observe`, the answer is DUNNO whatever they say."""

    lists: Mapping[str, tuple[Check, ...]]
    observe: bool = False
    _entries: Mapping[Stage, tuple[tuple[str, tuple[_Entry, ...]], ...]] = field(init=False, repr=False, compare=False)
    _asking_spf: frozenset[Stage] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        on = {
            name: tuple(
                _Entry.of(check, name, observe=self.observe)
                for check in self.lists.get(name, ())
                if check.mode is not Mode.OFF
            )
            for name in LISTS
        }
        object.__setattr__(
            self, "_entries", {stage: tuple((name, on[name]) for name in names) for stage, names in _LISTS_AT.items()}
        )
        asking = {
            name
            for name, checks in self.lists.items()
            if any(check.mode is not Mode.OFF and asks_spf(check) for check in checks)
        }
        object.__setattr__(
            self, "_asking_spf", frozenset(stage for stage, names in _LISTS_AT.items() if asking.intersection(names))
        )

    def checks_at(self, stage: Stage) -> bool:
        """Return whether any check stands in the lists of a stage."""
        return any(entries for _, entries in self._entries[stage])

    def asks_spf_at(self, stage: Stage) -> bool:
        """Return whether a check in the lists of a stage may ask for SPF of the sender."""
        return stage in self._asking_spf

    async def decide(self, request: Request, context: Context) -> Decision:
        """Ask the lists of `request.stage` and combine their verdicts. Raises nothing but CutOff, if it is cancelled.

        The side effects are the caller's to run, with `context.settle(decision)`, once the answer is on its way.
        """
        if request.stage is Stage.RCPT and (request.recipient or "").lower() == "postmaster":
            return Decision(request, PASS, (), PASS)  # Postfix accepts it unasked (RFC 5321 section 4.5.1)
        course, judged, steps = _Course(), _Course(), list[Step]()
        store = ReadAheadStore(context.store, lambda: self._announced(request, context), context.clock)
        try:
            await self._combine(request, context._replace(store=store), course, judged, steps)
        except asyncio.CancelledError:
            raise CutOff(self._decision(request, course, judged, steps), context) from None
        finally:
            store.end()
            context.journal.memo.clear()
        return self._decision(request, course, judged, steps)

    def _decision(self, request: Request, course: _Course, judged: _Course, steps: list[Step]) -> Decision:
        answer, wanted = course.verdict, judged.verdict
        if wanted is not answer and wanted == answer:
            wanted = answer
        return Decision(request, PASS if self.observe else answer, tuple(steps), wanted)

    async def _combine(
        self, request: Request, context: Context, course: _Course, judged: _Course, steps: list[Step]
    ) -> None:
        """Ask until `course` has ended. `judged` also takes what is only observed, and may end before."""
        take_notes, applied = context.journal.take_notes, not self.observe
        for name, entries in self._entries[request.stage]:
            course.begin_list()
            judged.begin_list()
            for entry in entries:
                if entry.needs and entry.abstains(request):
                    continue
                if not entry.enforced:
                    steps.append(await _observe(entry, name, request, context))
                    judged.take(steps[-1].verdict)
                    continue
                try:
                    verdict = await entry.check(request, context)
                except Exception as error:  # noqa: BLE001 (whatever is wrong with one check, the others still decide)
                    verdict = _crashed(entry, error, context)
                except asyncio.CancelledError as error:
                    if _is_cancelled():
                        steps.append(Step(name, entry.name, entry.cut_off, take_notes(), applied))
                        raise
                    verdict = _crashed(entry, error, context)  # not we are cancelled, but what it waited for
                notes = take_notes()
                if verdict is PASS:
                    steps.append(entry.passed if not notes else Step(name, entry.name, PASS, notes, applied))
                    continue
                steps.append(Step(name, entry.name, verdict, notes, applied))
                course.take(verdict)
                judged.take(verdict)
                if course.list_ended:
                    break
            if course.end is not None:
                return

    def _announced(self, request: Request, context: Context) -> list[ReadAhead]:
        """Return what the checks of this stage announce. One that crashes announces nothing."""
        found = []
        for _, entries in self._entries[request.stage]:
            for entry in entries:
                if entry.announce is None or entry.abstains(request):
                    continue
                try:
                    ahead = entry.announce(request, context if entry.enforced else _observing(context))
                except Exception:
                    logger.exception("check %s cannot announce what it will read", entry.name)
                else:
                    if ahead is not None:
                        found.append(ahead)
        return found


def _observing(context: Context) -> Context:
    """Return the view of a check that is only observed: its state is kept apart."""
    return context._replace(keys=Keys(context.keys.secret, OBSERVED))


def _is_cancelled() -> bool:
    """Return whether the task that decides is being cancelled."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _crashed(entry: _Entry, error: BaseException, context: Context) -> Verdict:
    """Abstain, loudly. To be called where the error is handled."""
    logger.exception("check %s failed and abstains", entry.name)
    context.note("internal error", type(error).__name__)
    return Verdict(Outcome.PASS, f"{entry.name}.error")


async def _observe(entry: _Entry, list_name: str, request: Request, context: Context) -> Step:
    """Return the step of a check in observe mode, which is only written down."""
    context = _observing(context)
    try:
        verdict = await entry.check(request, context)
    except Exception as error:  # noqa: BLE001 (as in _combine)
        verdict = _crashed(entry, error, context)
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        verdict = _crashed(entry, error, context)
    return Step(list_name, entry.name, verdict, context.journal.take_notes(), applied=False)
