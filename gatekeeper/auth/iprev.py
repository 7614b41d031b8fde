# SPDX-License-Identifier: GPL-3.0-or-later
"""iprev (RFC 8601 section 3): does the client's address have a name, and does that name lead back to it?

By Postfix's rules (smtpd_peer.c, valid_hostname.c), so that both say the same of a client: only the first PTR record
counts, a numeric or malformed name counts as none, and an IPv4 client needs an A record, an IPv6 client an AAAA.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address

from gatekeeper.core.request import Address
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import DNSError, Resolver

_HOSTNAME = re.compile(r"(?=.{1,255}\Z)(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)\Z", re.IGNORECASE)


class IprevResult(StrEnum):
    """RFC 8601 section 2.7.3: `fail` if the name does not lead back, `permerror` if there is no name."""

    PASS = "pass"
    FAIL = "fail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class IprevFinding:
    """What came out. `name` is set only if it is confirmed; `reverse` is what the first PTR record says, if usable;
    `address` is the client as text.
    """

    result: IprevResult
    name: str = ""
    reverse: str = ""
    reason: str = ""
    address: str = ""


async def check_iprev(resolver: Resolver, address: Address | None) -> IprevFinding:
    """Look the client up, there and back. DNS trouble is `temperror`; nothing is raised."""
    if address is None:
        return IprevFinding(IprevResult.PERMERROR, reason="the client's address is not known")
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or IPv6Address(int(address))  # without a zone index
    client = str(address)
    try:
        pointers = (await resolver.query(address.reverse_pointer, "PTR")).records
    except DNSError:
        return IprevFinding(IprevResult.TEMPERROR, "", "", f"the name of {client} could not be looked up", client)
    name = str(pointers[0]) if pointers else ""
    if not is_hostname(name):
        why = f"{printable(name, 80)} is no host name" if name else "it has no PTR record"
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
    """True if Postfix takes `name` for a host name: letters, digits, hyphens and underscores, and not all numeric."""
    return _HOSTNAME.match(name) is not None and not name.replace(".", "").isdigit()


def _address(record: object) -> Address | None:
    try:
        return ip_address(str(record))
    except ValueError:
        return None
