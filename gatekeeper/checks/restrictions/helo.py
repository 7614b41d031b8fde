# SPDX-License-Identifier: GPL-3.0-or-later
"""The HELO name: Postfix's reject_{invalid,non_fqdn,unknown}_helo_hostname and permit_naked_ip_address.

All three reject_ restrictions check only the syntax of an address literal.
"""

from gatekeeper.checks.base.dns_lookups import Lookups, can_be_asked, is_null_mx
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Verdict, defer_if_permit, permit, printable, reject
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.hostname_syntax import is_address, is_hostname, is_literal, without_final_dot


def _text(helo: str, why: str) -> str:
    return f"<{printable(helo, 255)}>: Helo command rejected: {why}"


def _judge_literal(helo: str) -> Verdict:
    if is_literal(helo[1:-1] if len(helo) > 2 and helo[-1] == "]" else helo):
        return PASS
    return reject("helo.invalid", "501", "5.5.2", _text(helo, "invalid ip address"))


async def reject_invalid_helo_hostname(request: Request, _context: Context) -> Verdict:
    """Refuse a HELO name with bad syntax with 501 5.5.2; a bare IP address passes, as it always did in Postfix."""
    helo = request.helo or ""
    if not helo or helo[0] == "[":
        return _judge_literal(helo) if helo else PASS
    name = without_final_dot(helo)
    if is_hostname(name) or is_address(name):
        return PASS
    return reject("helo.invalid", "501", "5.5.2", _text(helo, "Invalid name"))


async def reject_non_fqdn_helo_hostname(request: Request, _context: Context) -> Verdict:
    """Refuse a HELO name that has no dot, or is not a host name (a bare IP address, too), with 504 5.5.2."""
    helo = request.helo or ""
    if not helo or helo[0] == "[":
        return _judge_literal(helo) if helo else PASS
    name = without_final_dot(helo)
    if is_hostname(name) and "." in name:
        return PASS
    return reject("helo.non_fqdn", "504", "5.5.2", _text(helo, "need fully-qualified hostname"))


async def reject_unknown_helo_hostname(request: Request, context: Context) -> Verdict:
    """Refuse a HELO name with neither A, AAAA nor MX; a null MX is an MX here.

    The reply is `unknown_hostname_reject_code` 4.7.1, the first digit of the enhanced code following the reply code.
    DNS trouble defers and never rejects.
    """
    helo = request.helo or ""
    if not helo or helo[0] == "[":
        return _judge_literal(helo) if helo else PASS
    found: bool | None = False
    if can_be_asked(context, helo):
        questions = (helo, "A"), (helo, "AAAA"), (helo, "MX")
        with Lookups(context, *questions) as lookups:
            found = await lookups.any_exist(*questions)
            if found is False:  # a null MX counts as an MX here, unless an address might exist
                mx = await lookups.answer(helo, "MX")
                found = mx is not None and is_null_mx(mx)
    if found:
        return PASS
    text = _text(helo, "Host not found")
    if found is None:
        return defer_if_permit("helo.unknown_temporary", "4.7.1", text)
    code = context.site.unknown_hostname_reject_code
    return reject("helo.unknown", code, f"{code[0]}.7.1", text)


async def permit_naked_ip_address(request: Request, _context: Context) -> Verdict:
    """Permit a client whose HELO is a bare address, as Postfix still does with a warning; a bad one is 501 5.5.2."""
    helo = request.helo or ""
    if not helo or helo.strip("0123456789.:"):
        return PASS
    verdict = _judge_literal(helo)
    return permit("helo.naked_address") if verdict is PASS else verdict
