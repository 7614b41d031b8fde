# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's words that look at nothing but who is asking: permit, reject, defer and their kin (postconf(5))."""

from dataclasses import dataclass

from gatekeeper.checks.opinion import Judge
from gatekeeper.pipeline import Announcing, Check, Context
from gatekeeper.request import Request, Stage
from gatekeeper.store import Wants
from gatekeeper.verdict import PASS, Mode, Outcome, Verdict, defer_if_permit, defer_if_reject, permit, reject


def always(verdict: Verdict) -> Judge:
    """A judge with one answer."""

    async def judge(request: Request, context: Context) -> Verdict:
        return verdict

    return judge


PERMIT = always(permit("permit"))
REJECT = always(reject("reject", "554", "5.7.1", "Access denied"))
DEFER = always(reject("defer", "450", "4.3.2", "Try again later"))
DEFER_IF_PERMIT = always(defer_if_permit("defer_if_permit", "4.7.0", "defer_if_permit requested"))
DEFER_IF_REJECT = always(defer_if_reject("defer_if_reject", "4.7.0", "defer_if_reject requested"))


async def permit_mynetworks(request: Request, context: Context) -> Verdict:
    """Permit a client in mynetworks."""
    return permit("mynetworks") if context.site.is_internal(request.client.address) else PASS


async def permit_sasl_authenticated(request: Request, context: Context) -> Verdict:
    """Permit a client that has logged in."""
    return permit("sasl") if request.sasl_user else PASS


async def reject_plaintext_session(request: Request, context: Context) -> Verdict:
    """450 4.7.1 without TLS: `plaintext_reject_code`, and the first digit of the enhanced code follows it."""
    if request.encryption_protocol:
        return PASS
    return reject("plaintext", "450", "4.7.1", "Session encryption is required")


async def reject_multi_recipient_bounce(request: Request, context: Context) -> Verdict:
    """550 5.5.3 for the null sender with several recipients: known at DATA and at the end of the message."""
    if request.stage not in (Stage.DATA, Stage.END_OF_MESSAGE) or request.sender != "" or request.recipient_count < 2:
        return PASS
    return reject("multi_recipient_bounce", "550", "5.5.3", "Multi-recipient bounce")


@dataclass(frozen=True, slots=True)
class WarnIfReject:
    """`warn_if_reject` before a restriction: what it would refuse is written down and let pass.

    As in Postfix a permit still permits, and a kept `defer_if_reject` still tempers what comes after.
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

    def wants(self, request: Request, context: Context) -> Wants | None:
        """What the inner check announces."""
        return self.inner.wants(request, context) if isinstance(self.inner, Announcing) else None

    async def check(self, request: Request, context: Context) -> Verdict:
        """The inner verdict, unless it refuses."""
        verdict = await self.inner.check(request, context)
        if not verdict.refuses:
            return verdict
        context.note("would refuse", verdict.reply)
        return Verdict(Outcome.PASS, f"warn_if_reject.{verdict.reason}")
