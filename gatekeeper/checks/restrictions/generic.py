# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's generic restrictions, which need no lookup: permit, reject, defer and their relatives (postconf(5))."""

from gatekeeper.checks.base.check_types import Judge
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Verdict, defer_if_permit, defer_if_reject, permit, reject
from gatekeeper.pipeline.context import Context


def always(verdict: Verdict) -> Judge:
    """Return a function that always gives `verdict`."""

    async def judge(_request: Request, _context: Context) -> Verdict:
        return verdict

    return judge


PERMIT = always(permit("permit"))
REJECT = always(reject("reject", "554", "5.7.1", "Access denied"))
DEFER = always(reject("defer", "450", "4.3.2", "Try again later"))
DEFER_IF_PERMIT = always(defer_if_permit("defer_if_permit", "4.7.0", "defer_if_permit requested"))
DEFER_IF_REJECT = always(defer_if_reject("defer_if_reject", "4.7.0", "defer_if_reject requested"))


async def permit_mynetworks(request: Request, context: Context) -> Verdict:
    """Permit a client in mynetworks."""
    return permit("mynetworks") if context.site.is_internal(request.client) else PASS


async def permit_inet_interfaces(request: Request, _context: Context) -> Verdict:
    """Permit a client at one of this machine's addresses.

    Postfix reports only the address that the client has connected to, which is also where a connection from the
    machine to itself comes from; its other addresses are not known here.
    """
    address = request.client.address
    return permit("inet_interfaces") if address is not None and address == request.server_address else PASS


async def permit_sasl_authenticated(request: Request, _context: Context) -> Verdict:
    """Permit a client that has authenticated."""
    return permit("sasl") if request.sasl_user else PASS


async def reject_plaintext_session(request: Request, _context: Context) -> Verdict:
    """Refuse a session without TLS with 450 4.7.1.

    450 is the default of `plaintext_reject_code`; the first digit of the enhanced code follows it.
    """
    if request.encryption_protocol:
        return PASS
    return reject("plaintext", "450", "4.7.1", "Session encryption is required")


async def reject_multi_recipient_bounce(request: Request, _context: Context) -> Verdict:
    """Refuse mail from the null sender to several recipients with 550 5.5.3.

    At DATA and at the end of the message this goes by their number; at RCPT by the queue ID, which a message has from
    its first accepted recipient on.
    """
    several = request.recipient_count > 1 or (request.stage is Stage.RCPT and bool(request.queue_id))
    if request.sender != "" or not several:
        return PASS
    return reject("multi_recipient_bounce", "550", "5.5.3", "Multi-recipient bounce")
