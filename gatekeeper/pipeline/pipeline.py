# SPDX-License-Identifier: GPL-3.0-or-later
"""The seam: every front door asks `Pipeline.decide(request, context)`, and nothing else decides.

The lattice is Postfix's (smtpd_check.c, SMTPD_ACCESS_README). Lists run in Postfix's order. PERMIT ends its own
list, REJECT ends all. The first `defer_if_permit` of all lists and the first `defer_if_reject` of each list are kept:
a 5xx that comes after a kept `defer_if_reject` in its list becomes that 4xx; both together end the list, because
nothing that comes can change more than the words. At the end a kept `defer_if_permit` is answered, else an action,
else the last list's `defer_if_reject` (so that it also tempers a refusal of Postfix's own further down its list), else
DUNNO. The action DISCARD ends everything, as in Postfix.

Checks that announce what they will read from the store (`Announcing`) share one round trip: the first question of any
check takes along what all of them announced. A check that crashes abstains, loudly. Side effects wait for the
decision: `Context.after`.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Decision, Mode, Outcome, Step, Verdict
from gatekeeper.pipeline.check import Announcing, Check
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


class _Asked(NamedTuple):
    """A check as it stands in a list, with what need not be found out for each request."""

    ask: Callable[[Request, Context], Awaitable[Verdict]]
    name: str
    needs: tuple[str, ...]
    enforced: bool
    wants: Callable[[Request, Context], ReadAhead | None] | None
    passed: Step
    """The step of most requests: it passed, and nothing was found out."""

    @classmethod
    def of(cls, check: Check, list_name: str) -> Self:
        wants = check.wants if isinstance(check, Announcing) else None
        passed = Step(list_name, check.name, PASS)
        return cls(check.check, check.name, check.needs, check.mode is Mode.ENFORCE, wants, passed)

    def abstains(self, request: Request) -> bool:
        """True if an attribute that it needs does not exist at this stage."""
        for need in self.needs:  # noqa: SIM110 (any() takes four times as long, and this is asked 15 times)
            if getattr(request, need) is None:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The checks by list name (`LISTS`), in order. With `observe`, the answer is DUNNO whatever they say."""

    lists: Mapping[str, tuple[Check, ...]]
    observe: bool = False
    _asked: Mapping[Stage, tuple[tuple[str, tuple[_Asked, ...]], ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        on = {
            name: tuple(_Asked.of(check, name) for check in self.lists.get(name, ()) if check.mode is not Mode.OFF)
            for name in LISTS
        }
        object.__setattr__(
            self, "_asked", {stage: tuple((name, on[name]) for name in names) for stage, names in _LISTS_AT.items()}
        )

    async def decide(self, request: Request, context: Context) -> Decision:
        """Ask the lists of `request.stage` and combine their verdicts. Never raises; the side effects are the caller's
        to run with `context.settle(decision)` once the answer is on its way.
        """
        steps: list[Step] = []
        if request.stage is Stage.RCPT and (request.recipient or "").lower() == "postmaster":
            return Decision(request, PASS, (), PASS)  # Postfix takes it unasked (RFC 5321 section 4.5.1)
        store = context.store
        context.store = view = ReadAheadStore(store, lambda: self._wants(request, context))
        try:
            verdict = await self._combine(request, context, steps)
        finally:
            view.end()
            context.store = store
            context.worked_out.clear()
        return Decision(request, PASS if self.observe else verdict, tuple(steps), verdict)

    async def _combine(self, request: Request, context: Context, steps: list[Step]) -> Verdict:
        if_permit: Verdict | None = None
        if_reject: Verdict | None = None
        action: Verdict | None = None
        for name, checks in self._asked[request.stage]:
            if_reject = None
            for asked in checks:
                if asked.needs and asked.abstains(request):
                    continue
                if not asked.enforced:
                    steps.append(await _observe(asked, name, request, context))
                    continue
                try:
                    verdict = await asked.ask(request, context)
                except Exception as error:
                    verdict = _crashed(asked, error, context)
                notes = context.take_notes()
                if verdict is PASS:
                    steps.append(asked.passed if not notes else Step(name, asked.name, PASS, notes))
                    continue
                steps.append(Step(name, asked.name, verdict, notes))
                for kept in verdict.earlier:
                    match kept.outcome:
                        case Outcome.DEFER_IF_PERMIT:
                            if_permit = if_permit or kept
                        case Outcome.DEFER_IF_REJECT:
                            if_reject = if_reject or kept
                        case _:
                            action = action or kept
                if verdict.earlier and if_permit and if_reject:
                    break
                match verdict.outcome:
                    case Outcome.PASS:
                        continue
                    case Outcome.PERMIT:
                        break
                    case Outcome.ACCEPT:
                        return if_permit or verdict
                    case Outcome.REJECT:
                        if if_reject and verdict.code.startswith("5"):
                            return replace(if_reject, outcome=Outcome.REJECT)
                        return verdict
                    case Outcome.DEFER_IF_PERMIT:
                        if_permit = if_permit or verdict
                    case Outcome.DEFER_IF_REJECT:
                        if_reject = if_reject or verdict
                    case Outcome.ACTION:
                        if verdict.text.startswith("DISCARD"):
                            return if_permit or verdict
                        action = action or verdict
                if if_permit and if_reject:
                    break
        return if_permit or action or if_reject or PASS

    def _wants(self, request: Request, context: Context) -> list[ReadAhead]:
        """What the checks of this stage announce. One that crashes announces nothing."""
        found = []
        keys = context.keys
        for _, checks in self._asked[request.stage]:
            for asked in checks:
                if asked.wants is None or asked.abstains(request):
                    continue
                context.keys = keys if asked.enforced else _apart(keys)
                try:
                    wants = asked.wants(request, context)
                except Exception:
                    logger.exception("check %s cannot tell what it wants", asked.name)
                else:
                    if wants is not None:
                        found.append(wants)
        context.keys = keys
        return found


def _apart(keys: Keys) -> Keys:
    """The keys of what is only observed: its state is kept apart."""
    return Keys(keys.secret, "observe:")


def _crashed(asked: _Asked, error: Exception, context: Context) -> Verdict:
    """To be called where the error is handled: abstain, loudly."""
    logger.exception("check %s failed and abstains", asked.name)
    context.note("internal error", type(error).__name__)
    return Verdict(Outcome.PASS, f"{asked.name}.error")


async def _observe(asked: _Asked, list_name: str, request: Request, context: Context) -> Step:
    """The step of a check in observe mode, which is only written down."""
    keys = context.keys
    context.keys = _apart(keys)
    try:
        verdict = await asked.ask(request, context)
    except Exception as error:
        verdict = _crashed(asked, error, context)
    finally:
        context.keys = keys
    return Step(list_name, asked.name, verdict, context.take_notes(), applied=False)
