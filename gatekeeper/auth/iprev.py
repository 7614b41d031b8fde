# SPDX-License-Identifier: GPL-3.0-or-later
"""iprev (RFC 8601 section 3): whether the client's address has a name, and whether that name resolves to the address.

Follows Postfix's rules (smtpd_peer.c, valid_hostname.c), so that both agree about a client: only the first PTR record
counts, a numeric or malformed name counts as none, and an IPv4 client needs an A record, an IPv6 client an AAAA.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from gatekeeper.core.request import Address, plain_address
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import DNSError, Resolver

_HOSTNAME = re.compile(r"(?=.{1,255}\Z)(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)\Z", re.IGNORECASE)


class IprevResult(StrEnum):
    """Results of iprev (RFC 8601 section 2.7.3).

    `fail`: the name does not resolve to the address; `permerror`: the address has no name.
    """

    PASS = "pass"
    FAIL = "fail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class IprevFinding:
    """The result for one client.

    `name` is set only if it is confirmed; `reverse` is the name in the first PTR record, if usable; `address` is the
    client's address as text.
    """

    result: IprevResult
    name: str = ""
    reverse: str = ""
    reason: str = ""
    address: str = ""


async def check_iprev(resolver: Resolver, address: Address | None) -> IprevFinding:
    """Look up the client's name, and the addresses of that name. A DNS error is `temperror`. Never raises."""
    if address is None:
        return IprevFinding(IprevResult.PERMERROR, reason="the client's address is not known")
    address = plain_address(address)
    client = str(address)
    try:
        pointers = (await resolver.query(address.reverse_pointer, "PTR")).records
    except DNSError:
        return IprevFinding(IprevResult.TEMPERROR, "", "", f"the name of {client} could not be looked up", client)
    name = str(pointers[0]) if pointers else ""
    if not is_hostname(name):
        why = f"{printable(name, 80)} is not a valid host name" if name else "it has no PTR record"
        return IprevFinding(IprevResult.PERMERROR, "", "", f"{client} has no name: {why}", client)
    try:
        found = (await resolver.query(name, "A" if address.version == 4 else "AAAA")).records
    except DNSError:
        return IprevFinding(IprevResult.TEMPERROR, "", name, f"{name} could not be looked up", client)
    if address in map(_address, found):
        return IprevFinding(IprevResult.PASS, name, name, f"{client} is {name}", client)
    return IprevFinding(
        IprevResult.FAIL, "", name, f"{client} is called {name}, which does not lead back to it", client
    )


def is_hostname(name: str) -> bool:
    """Return whether `name` is a host name for Postfix: letters, digits, hyphens, underscores; not all numeric."""
    return _HOSTNAME.match(name) is not None and not name.replace(".", "").isdigit()


def _address(record: object) -> Address | None:
    try:
        return ip_address(str(record))
    except ValueError:
        return None
