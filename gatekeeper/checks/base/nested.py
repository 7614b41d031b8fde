# SPDX-License-Identifier: GPL-3.0-or-later
"""Restrictions inside a restriction: those that a table entry names, and classes of them (RESTRICTION_CLASS_README).

They run as if they stood in the list themselves (smtpd_check.c, generic_checks(), which calls itself): a soft failure
or an action is kept and the next restriction runs, a permit ends the calling list, a refusal ends everything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Mode, Outcome, Verdict, reject
from gatekeeper.pipeline.check import Announcing, Check, asks_spf
from gatekeeper.pipeline.context import Context
from gatekeeper.stores.store import ReadAhead

SERVER_ERROR = reject("access.not_allowed", "451", "4.3.5", "Server configuration error")
"""Postfix's answer to an OK that may not permit (forbid_allowlist()). `warn_if_reject` does not soften it."""


def soften(verdict: Verdict, context: Context) -> Verdict:
    """Turn a refusal into a noted PASS, as `warn_if_reject` does; return any other verdict unchanged."""
    if not verdict.refuses or verdict.reason == SERVER_ERROR.reason:
        return verdict
    context.note("would refuse", verdict.reply)
    return Verdict(Outcome.PASS, f"warn_if_reject.{verdict.reason}", earlier=verdict.earlier)


def may_permit(checks: Iterable[Check]) -> bool:
    """Return whether a `permit` stands among these restrictions, or in a class that they name."""
    left, seen = [*checks], set[int]()
    while left:
        check = left.pop()
        if isinstance(check, WarnIfReject):
            left.append(check.inner)
        elif isinstance(check, RestrictionClass):
            left += () if id(check) in seen else check.checks  # classes that name classes: each is looked into once
            seen.add(id(check))
        elif check.name == "permit":
            return True
    return False


def may_ask_spf(checks: Iterable[Check]) -> bool:
    """Return whether one of these restrictions, as `run_checks` runs them, may ask for SPF of the sender."""
    return any(check.mode is Mode.ENFORCE and asks_spf(check) for check in checks)


async def run_checks(checks: Sequence[Check], request: Request, context: Context) -> Verdict:
    """Return the first verdict that decides, else PASS, with the soft failures and actions kept on the way.

    A check in observe mode is observed only where it stands in a list itself; here it is skipped.
    """
    kept: list[Verdict] = []
    passed = PASS
    for check in checks:
        if check.mode is not Mode.ENFORCE or any(getattr(request, need) is None for need in check.needs):
            continue
        verdict = await check.check(request, context)
        if context.warn_only:
            verdict = soften(verdict, context)
        context.note(f"within: {check.name}", verdict.reason or verdict.outcome)
        kept += verdict.earlier
        match verdict.outcome:
            case Outcome.PASS:
                passed = replace(verdict, earlier=()) if verdict.reason else passed
            case Outcome.DEFER_IF_PERMIT | Outcome.DEFER_IF_REJECT:
                kept.append(verdict)
            case Outcome.ACTION if not verdict.text.startswith("DISCARD"):
                kept.append(verdict)
            case _:
                return replace(verdict, earlier=tuple(kept))
        if {Outcome.DEFER_IF_PERMIT, Outcome.DEFER_IF_REJECT} <= {verdict.outcome for verdict in kept}:
            break
    return replace(passed, earlier=tuple(kept)) if kept else passed


@dataclass(frozen=True, slots=True)
class RestrictionClass:
    """A list of restrictions under a name of its own (`smtpd_restriction_classes`)."""

    name: str
    checks: tuple[Check, ...]
    mode: Mode = Mode.ENFORCE
    needs: tuple[str, ...] = ()
    asks_spf: bool = field(init=False)

    def __post_init__(self) -> None:
        # Kept, because classes name classes: each is looked into once.
        object.__setattr__(self, "asks_spf", may_ask_spf(self.checks))

    async def check(self, request: Request, context: Context) -> Verdict:
        return await run_checks(self.checks, request, context)


@dataclass(frozen=True, slots=True)
class WarnIfReject:
    """`warn_if_reject` before a restriction: what it would refuse is logged and passes.

    As in Postfix a permit still permits, a kept `defer_if_reject` still makes later refusals temporary, and in a class
    or in a table entry that names restrictions each of them is softened on its own.
    """

    inner: Check

    @property
    def name(self) -> str:
        return f"warn_if_reject {self.inner.name}"

    @property
    def mode(self) -> Mode:
        return self.inner.mode

    @property
    def needs(self) -> tuple[str, ...]:
        return self.inner.needs

    @property
    def asks_spf(self) -> bool:
        return asks_spf(self.inner)

    def announce(self, request: Request, context: Context) -> ReadAhead | None:
        return self.inner.announce(request, context) if isinstance(self.inner, Announcing) else None

    async def check(self, request: Request, context: Context) -> Verdict:
        """Return the inner verdict, or let pass what it would refuse."""
        return soften(await self.inner.check(request, context._replace(warn_only=True)), context)
