# SPDX-License-Identifier: GPL-3.0-or-later
"""`reject_helo_ours`, an addition to Postfix's restrictions: strangers that use our own name or address in HELO.

Spammers do that; correct senders have no reason to.

Ours are: our host name, each of `local_domains` (but not the names below an entry such as `.example.com`), and our
addresses, bare or as a `[literal]`: the one that the client has connected to, and those that our host name has in the
DNS.

Allowed nevertheless: mynetworks, authenticated users, a client at one of our own addresses, a client whose address the
name has in the DNS (a customer's server may be named like the customer's domain; several relays may share a name), and
a client that the SPF record of the name allows. `localhost` and names below it belong to everybody. DNS trouble defers.
"""

from collections.abc import Sequence

from gatekeeper.auth.spf import SpfResult
from gatekeeper.checks.base.dns_lookups import query_dns
from gatekeeper.core.request import Address, Request, domain_of, parse_address
from gatekeeper.core.verdict import PASS, Verdict, defer_if_permit, printable, reject
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.hostname_syntax import is_address, is_hostname, is_literal


async def reject_helo_ours(request: Request, context: Context) -> Verdict:
    """Refuse a stranger whose HELO is our own name or address with 554 5.7.1."""
    helo, client, site = request.helo or "", request.client.address, context.site
    if not helo or client is None or client == request.server_address:
        return PASS
    if request.sasl_user or site.is_internal(request.client):
        return PASS
    claimed = _address(helo)
    if claimed is not None:
        return await _judge_address(claimed, client, request, context)
    name = domain_of(f"@{helo}")
    if not is_hostname(name) or not (name == site.hostname.lower() or name in site.local_domains) or _is_unowned(name):
        return PASS
    addresses = await _addresses(context, name, client.version)
    if addresses is not None and client in addresses:
        return PASS
    spf = await context.facts.helo_spf()
    context.note(f"SPF of {name}", spf.result)
    if spf.authenticates:
        return PASS
    if addresses is None or spf.result is SpfResult.TEMPERROR:
        return defer_if_permit("helo.ours_temporary", "4.7.1", _text(helo, f"cannot find out whether you are {name}"))
    return reject("helo.ours", "554", "5.7.1", _text(helo, "this name is ours; say your own"))


async def _judge_address(claimed: Address, client: Address, request: Request, context: Context) -> Verdict:
    if claimed == client:
        return PASS
    if claimed != request.server_address:
        ours = await _addresses(context, context.site.hostname, claimed.version)
        if not ours or claimed not in ours:
            return PASS  # not ours as far as we know; whether it is the client's own is for other checks
    return reject("helo.ours", "554", "5.7.1", _text(request.helo or "", "this address is ours; say your own name"))


def _address(helo: str) -> Address | None:
    """Return the address in a HELO name, bare or as a literal; None if it is not an address."""
    if helo.startswith("[") and helo.endswith("]") and is_literal(inner := helo[1:-1]):
        return parse_address(inner[5:] if inner[:5].lower() == "ipv6:" else inner)
    return parse_address(helo) if is_address(helo) else None


def _is_unowned(name: str) -> bool:
    return "." not in name or name.startswith("localhost.")


async def _addresses(context: Context, name: str, version: int) -> Sequence[Address] | None:
    """Return the addresses of `name` of one IP version; None if DNS gives no answer."""
    if not is_hostname(name) or _is_unowned(name.lower()):
        return ()
    answer = await query_dns(context, name, "A" if version == 4 else "AAAA")
    if answer is None:
        return None
    return [found for record in answer.records if (found := parse_address(str(record))) is not None]


def _text(helo: str, why: str) -> str:
    return f"<{printable(helo, 255)}>: Helo command rejected: {why}"
