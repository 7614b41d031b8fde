# SPDX-License-Identifier: GPL-3.0-or-later
"""Who connects: Postfix's reject_unknown_client_hostname and reject_unknown_reverse_client_hostname.

Postfix says only `unknown`, which means "no name" as well as "DNS failed": to choose between a permanent and a
temporary answer the name is looked up again, once for the session (facts.iprev).
"""

from gatekeeper.auth.iprev import IprevResult
from gatekeeper.core.request import UNKNOWN, Request
from gatekeeper.core.verdict import PASS, Verdict, reject
from gatekeeper.pipeline.context import Context


async def reject_unknown_client_hostname(request: Request, context: Context) -> Verdict:
    """`unknown_client_reject_code` 4.7.25 without a name that leads back to the address; 450 if DNS failed."""
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
    """`unknown_client_reject_code` 4.7.1 without any PTR; 450 if DNS failed."""
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
