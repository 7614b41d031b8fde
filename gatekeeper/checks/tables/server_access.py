# SPDX-License-Identifier: GPL-3.0-or-later
"""Access by a name's servers: Postfix's check_{client,reverse_client_hostname,helo,sender,recipient}_{a,mx,ns}_access.

`a`: the addresses of the name; `mx`: its mail exchangers, each by name and then by address, or the name itself if it
has none; `ns`: its name servers likewise, or those of the nearest parent domain if it has none. The first entry found
decides. An OK may not permit: whoever owns a name chooses its servers (forbid_allowlist()).

As in Postfix (smtpd_check.c, check_server_access()) DNS trouble and a null MX decide nothing here. Known difference: of
several addresses the IPv4 ones are looked up first; Postfix has them in the order of RFC 6724.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from gatekeeper.checks.base.dns_lookups import Lookups, a_label, is_null_mx, query_dns, server_names
from gatekeeper.checks.base.nested import SERVER_ERROR
from gatekeeper.checks.tables.access import domain_keys
from gatekeeper.checks.tables.action import Subject, TableAction, apply
from gatekeeper.checks.tables.table import Table
from gatekeeper.core.request import UNKNOWN, Address, Request, parse_address
from gatekeeper.core.verdict import PASS, Outcome, Verdict
from gatekeeper.dnsclient.resolver import Answer
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.hostname_syntax import is_address, is_hostname, is_literal

_HOSTS_AT_ONCE = 10
"""Servers whose addresses are looked up together if they are slow to come."""
MAX_ADDRESSES = 100
"""Server addresses that are looked up for one name (`dns_rr_list_limit` of newer Postfix versions)."""

NameSource = Callable[[Request], tuple[str, Subject]]
"""Returns the name whose servers are looked up, and what is refused because of them."""


def of_client(request: Request) -> tuple[str, Subject]:
    """Return the confirmed name of the client."""
    name = request.client.name
    return "" if name.lower() == UNKNOWN else name, Subject(
        f"{name}[{request.client.address or UNKNOWN}]", "Client host"
    )


def of_reverse_client(request: Request) -> tuple[str, Subject]:
    """Return the client's PTR, confirmed or not."""
    name = request.client.reverse_name
    return "" if name.lower() == UNKNOWN else name, Subject(name, "Unverified Client host")


def of_helo(request: Request) -> tuple[str, Subject]:
    """Return the HELO name."""
    return request.helo or "", Subject(request.helo or "", "Helo command")


def of_sender(request: Request) -> tuple[str, Subject]:
    """Return the sender, whose domain is looked up."""
    return request.sender or "", Subject(request.sender or "", "Sender address")


def of_recipient(request: Request) -> tuple[str, Subject]:
    """Return the recipient, whose domain is looked up."""
    return request.recipient or "", Subject(request.recipient or "", "Recipient address")


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """One table, searched for the servers of one name; `type` is A, MX or NS."""

    name_of: NameSource
    type: str
    table: Table

    @property
    def asks_spf(self) -> bool:
        """Whether an entry may ask for SPF of the sender."""
        return self.table.asks_spf

    async def __call__(self, request: Request, context: Context) -> Verdict:
        name, subject = self.name_of(request)
        action = await self._find(name.rpartition("@")[2], context) if name else None
        if action is None:
            return PASS
        verdict = await apply(action, subject, request, context)
        if verdict.outcome is Outcome.PERMIT:
            return replace(SERVER_ERROR, earlier=verdict.earlier)
        return verdict

    async def _find(self, domain: str, context: Context) -> TableAction | None:
        if domain.startswith("["):
            # a literal is its own mail exchanger, and has no name servers
            inner = domain[1:-1] if domain.endswith("]") and self.type != "NS" else ""
            address = parse_address(inner[5:] if inner[:5].lower() == "ipv6:" else inner) if is_literal(inner) else None
            return None if address is None else self._noted(self.table.search_address(address), str(address), context)
        async with aclosing(self._servers(a_label(domain) if domain else "", context)) as servers:
            async for server in servers:
                if is_address(server):
                    address = parse_address(server)
                    action = None if address is None else self.table.search_address(address)
                else:
                    action = self.table.search(domain_keys(server)) if self.type != "A" else None
                if action is not None:
                    return self._noted(action, server, context)
        return None

    @staticmethod
    def _noted(action: TableAction | None, server: str, context: Context) -> TableAction | None:
        if action is not None:
            context.note(f"server {server}", "is in the table")
        return action

    async def _servers(self, domain: str, context: Context) -> AsyncGenerator[str, None]:
        """Yield each server's name, then its addresses as text."""
        left = MAX_ADDRESSES
        hosts = await self._hosts(domain, context)
        for first in range(0, len(hosts), _HOSTS_AT_ONCE):
            together = hosts[first : first + _HOSTS_AT_ONCE]
            names = dict.fromkeys(host for host in together if is_hostname(host))
            with Lookups(context, *((name, type) for name in names for type in ("A", "AAAA"))) as lookups:
                for host in together:
                    yield host
                    for address in await _addresses(host, lookups) if host in names else ():
                        if not left:
                            return
                        left -= 1
                        yield str(address)

    async def _hosts(self, domain: str, context: Context) -> tuple[str, ...]:
        """Return the names of the servers; none if DNS gives no answer."""
        if self.type == "A":
            return (domain,)
        if self.type == "MX":
            answer = await _ask(context, domain, "MX")
            if answer is None or is_null_mx(answer):
                return ()
            return server_names(answer) or (() if answer.records else (domain,))
        while True:
            answer = await _ask(context, domain, "NS")
            if answer is None or answer.records:
                return () if answer is None else server_names(answer)
            domain = domain.partition(".")[2]
            if not domain:
                return ()


async def _ask(context: Context, name: str, type: str) -> Answer | None:
    """Return the answer; anything that is not a host name does not exist and is not looked up (dns_lookup(3))."""
    return await query_dns(context, name, type) if is_hostname(name) else Answer(name, type, exists=False)


async def _addresses(host: str, lookups: Lookups) -> list[Address]:
    """Return the A and AAAA records of a server; a query that fails counts as having none."""
    found: list[Address] = []
    for type in ("A", "AAAA"):
        answer = await lookups.answer(host, type)
        records = answer.records if answer else ()
        found += [address for record in records if (address := parse_address(str(record))) is not None]
    return found
