# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's words that look at nothing but who is asking: permit, reject, defer and their kin (postconf(5))."""

from gatekeeper.checks.base.check_types import Judge
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Verdict, defer_if_permit, defer_if_reject, permit, reject
from gatekeeper.pipeline.context import Context


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


async def permit_inet_interfaces(request: Request, context: Context) -> Verdict:
    """Permit a client at one of this machine's addresses. Of these Postfix tells the one that the client has connected
    to, which is what a connection from the machine to itself comes from; any other is not known here.
    """
    address = request.client.address
    return permit("inet_interfaces") if address is not None and address == request.server_address else PASS


async def permit_sasl_authenticated(request: Request, context: Context) -> Verdict:
    """Permit a client that has logged in."""
    return permit("sasl") if request.sasl_user else PASS


async def reject_plaintext_session(request: Request, context: Context) -> Verdict:
    """450 4.7.1 without TLS: `plaintext_reject_code`, and the first digit of the enhanced code follows it."""
    if request.encryption_protocol:
        return PASS
    return reject("plaintext", "450", "4.7.1", "Session encryption is required")


async def reject_multi_recipient_bounce(request: Request, context: Context) -> Verdict:
    """550 5.5.3 for the null sender with several recipients: at DATA and at the end of the message by their number; at
    RCPT by the queue id, which a message has from its first accepted recipient on.
    """
    several = request.recipient_count > 1 or (request.stage is Stage.RCPT and bool(request.queue_id))
    if request.sender != "" or not several:
        return PASS
    return reject("multi_recipient_bounce", "550", "5.5.3", "Multi-recipient bounce")
