# SPDX-License-Identifier: GPL-3.0-or-later
"""The client's host name: Postfix's reject_unknown_client_hostname and reject_unknown_reverse_client_hostname.

Postfix reports only `unknown`, which may mean "no name" or "DNS failed": to choose between a permanent and a temporary
reply the name is looked up again, once per session (facts.iprev).
"""

from gatekeeper.auth.iprev import IprevResult
from gatekeeper.core.request import UNKNOWN, Request
from gatekeeper.core.verdict import PASS, Verdict, reject
from gatekeeper.pipeline.context import Context


async def reject_unknown_client_hostname(request: Request, context: Context) -> Verdict:
    """Refuse a client without a name that resolves back to its address.

    The reply is `unknown_client_reject_code` 4.7.25, the first digit of the enhanced code following the reply code;
    450 if DNS failed.
    """
    if request.client.name != UNKNOWN or request.client.address is None:
        return PASS
    iprev = await context.facts.iprev()
    context.note(f"iprev {request.client.address}", iprev.reason)
    if iprev.result is IprevResult.PASS:
        return PASS
    temporary = iprev.result is IprevResult.TEMPERROR
    code = "450" if temporary else context.site.unknown_client_reject_code
    reason = "client.unknown_name_temporary" if temporary else "client.unknown_name"
    text = f"Client host rejected: cannot find your hostname, [{request.client.address}]"
    return reject(reason, code, f"{code[0]}.7.25", text)


async def reject_unknown_reverse_client_hostname(request: Request, context: Context) -> Verdict:
    """Refuse a client without any PTR.

    The reply is `unknown_client_reject_code` 4.7.1, the first digit of the enhanced code following the reply code;
    450 if DNS failed.
    """
    if request.client.reverse_name != UNKNOWN or request.client.address is None:
        return PASS
    iprev = await context.facts.iprev()
    context.note(f"PTR {request.client.address}", iprev.reverse or iprev.reason)
    if iprev.reverse:
        return PASS
    temporary = iprev.result is IprevResult.TEMPERROR
    code = "450" if temporary else context.site.unknown_client_reject_code
    reason = "client.unknown_reverse_name_temporary" if temporary else "client.unknown_reverse_name"
    text = f"Client host rejected: cannot find your reverse hostname, [{request.client.address}]"
    return reject(reason, code, f"{code[0]}.7.1", text)
