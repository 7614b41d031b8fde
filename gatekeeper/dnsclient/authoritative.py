# SPDX-License-Identifier: GPL-3.0-or-later
"""Query every authoritative server of a name, at each of its addresses, to see if a record is visible everywhere.

A cache holds the answer that one server gave some time ago; a secondary server may lag behind for hours. So each server
is queried directly. The zone is found through a resolver, which is never asked about the name in question: its "no such
name" would stay in its cache. Delegations are followed, and CNAMEs, through which providers have their customers
publish keys.

Known limits: of servers that share one address (anycast), only the nearest is queried. Where nothing answers over IPv6,
servers are queried over IPv4 only.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.NS
import dns.rrset
from dns.rdatatype import RdataType

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.names import to_name, to_text
from gatekeeper.dnsclient.resolver import Answer, DNSError, DNSFailure, Resolver, to_records

_MAX_STEPS = 8
"""Delegations and CNAMEs to follow."""
_TRIES = 2


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """The answer of one server at one address: TXT records, or in `trouble` why there is none."""

    server: str
    address: str = ""
    records: tuple[bytes, ...] = ()
    trouble: str = ""

    def __str__(self) -> str:
        name = printable(self.server)
        return f"{name} ({self.address})" if self.address else name


class Authorities(Protocol):
    """The authoritative servers, which decide what records a name has."""

    async def texts(self, name: str) -> tuple[ServerAnswer, ...]:
        """Return the TXT records that each server has at `name`. Raises DNSError if the servers cannot be found."""
        ...


class TableAuthorities:
    """A single server that answers what `resolver` does: for `--dns`."""

    def __init__(self, resolver: Resolver, name: str) -> None:
        self._resolver = resolver
        self._name = name

    async def texts(self, name: str) -> tuple[ServerAnswer, ...]:
        try:
            return (ServerAnswer(self._name, records=_texts(await self._resolver.query(name, "TXT"))),)
        except DNSError as error:
            return (ServerAnswer(self._name, trouble=str(error)),)


@dataclass(frozen=True, slots=True)
class _Reply:
    """The response of one server, and where it refers us: to the servers of a child zone, or to another name."""

    answer: ServerAnswer
    alias: str = ""
    zone: str = ""
    servers: tuple[str, ...] = ()
    timed_out: bool = False


class LiveAuthorities:
    """Queries the servers directly. `resolver` finds names and addresses; `timeout` is in seconds, for each try."""

    def __init__(self, resolver: Resolver, *, port: int = 53, timeout: float = 3.0) -> None:
        self._resolver = resolver
        self._port = port
        self._timeout = timeout
        self._backend = dns.asyncbackend.get_backend("asyncio")

    async def texts(self, name: str) -> tuple[ServerAnswer, ...]:
        lagging: list[ServerAnswer] = []
        zone, servers = await self._zone_of(name)
        for _ in range(_MAX_STEPS):
            replies = await self._all(servers, name, zone)
            referral = next((reply for reply in replies if reply.alias or reply.servers), None)
            if referral is None:
                return (*lagging, *(reply.answer for reply in replies))
            # A server without this referral is lagging behind.
            lagging += [
                reply.answer for reply in replies if (reply.alias, reply.zone) != (referral.alias, referral.zone)
            ]
            if referral.alias:
                name = referral.alias
                zone, servers = await self._zone_of(name)
            else:
                zone, servers = referral.zone, referral.servers
        raise DNSFailure(f"TXT {printable(name)}: too many delegations and CNAMEs")

    async def _zone_of(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Return a zone that contains `name`, itself or below a delegation, and the servers of that zone."""
        zone = name.partition("._domainkey.")[2] or name.partition(".")[2]
        while zone:
            # A name with a CNAME is not a zone, though a resolver would return the servers of its target.
            if not (await self._resolver.query(zone, "CNAME")).records:
                found = (await self._resolver.query(zone, "NS")).records
                if servers := tuple(sorted(record for record in found if isinstance(record, str))):
                    return zone, servers
            zone = zone.partition(".")[2]
        raise DNSFailure(f"NS {printable(name)}: no zone has this name")

    async def _all(self, servers: Iterable[str], name: str, zone: str) -> list[_Reply]:
        queries = [self._ask(server, name, zone) for host in servers async for server in self._addresses(host)]
        return _without_unreachable_ipv6(await asyncio.gather(*queries))

    async def _addresses(self, host: str) -> AsyncIterator[ServerAnswer]:
        trouble = "has no address"
        found = False
        for type in ("A", "AAAA"):
            try:
                for address in (await self._resolver.query(host, type)).records:
                    found = True
                    yield ServerAnswer(host, str(address))
            except DNSError as error:
                trouble = f"its address cannot be found: {error}"
        if not found:
            yield ServerAnswer(host, trouble=trouble)

    async def _ask(self, server: ServerAnswer, name: str, zone: str) -> _Reply:
        if not server.address:
            return _Reply(server)
        if reason := _why_unreachable(server.address):
            return _Reply(ServerAnswer(server.server, server.address, trouble=reason), timed_out=True)
        timed_out = False
        try:
            return _read(server, await self._response(server.address, name), name, zone)
        except (dns.exception.Timeout, TimeoutError):
            trouble, timed_out = "does not answer", True
        except Exception as error:  # noqa: BLE001 (hostile packets let all kinds of exceptions escape dnspython)
            trouble = f"answers badly ({type(error).__name__})"
        return _Reply(ServerAnswer(server.server, server.address, trouble=trouble), timed_out=timed_out)

    async def _response(self, address: str, name: str) -> dns.message.Message:
        qname = to_name(name)
        if qname is None:
            raise DNSFailure("not a valid DNS name")
        query = dns.message.make_query(qname, RdataType.TXT, use_edns=0, payload=1232, flags=0)
        for last in [False] * (_TRIES - 1) + [True]:
            try:
                response, _ = await dns.asyncquery.udp_with_fallback(
                    query, address, self._timeout, self._port, ignore_unexpected=True, backend=self._backend
                )
            except dns.exception.Timeout:
                if last:
                    raise
            else:
                return response
        raise AssertionError


def _without_unreachable_ipv6(replies: list[_Reply]) -> list[_Reply]:
    """Drop the replies over IPv6 of servers that also have IPv4, where IPv6 does not work at all.

    If nothing answers over IPv6, it is this host that has no connectivity, which says nothing about those servers.
    """
    ipv6 = [reply for reply in replies if ":" in reply.answer.address]
    if not all(reply.timed_out for reply in ipv6):
        return replies
    with_ipv4 = {reply.answer.server for reply in replies if reply not in ipv6}
    return [reply for reply in replies if reply not in ipv6 or reply.answer.server not in with_ipv4]


def _read(server: ServerAnswer, response: dns.message.Message, name: str, zone: str) -> _Reply:
    """Interpret the response of a server of `zone` about the TXT records at `name`."""

    def trouble(what: str) -> _Reply:
        return _Reply(ServerAnswer(server.server, server.address, trouble=what))

    rcode = response.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return trouble(f"says {dns.rcode.to_text(rcode)}")
    if not response.flags & dns.flags.AA:
        return _delegation(server, response.authority, name, zone) or trouble(f"does not serve {zone}")
    for rrset in response.answer:
        if to_text(rrset.name).lower() != name.lower():
            continue
        if rrset.rdtype == RdataType.TXT:
            records = tuple(record for record in to_records(rrset) if isinstance(record, bytes))
            return _Reply(ServerAnswer(server.server, server.address, records))
        if isinstance(rrset[0], dns.rdtypes.ANY.CNAME.CNAME):
            return _Reply(server, alias=to_text(rrset[0].target).lower())
    return _Reply(server)


def _delegation(server: ServerAnswer, authority: list[dns.rrset.RRset], name: str, zone: str) -> _Reply | None:
    for rrset in authority:
        child = to_text(rrset.name).lower()
        inside = name.lower().endswith(f".{child}") or name.lower() == child
        if rrset.rdtype == RdataType.NS and inside and child.endswith(f".{zone}"):
            servers = [to_text(data.target) for data in rrset if isinstance(data, dns.rdtypes.ANY.NS.NS)]
            return _Reply(server, zone=child, servers=tuple(sorted(servers)))
    return None


def _why_unreachable(address: str) -> str:
    """Return why nothing can be sent to `address`; empty if it can. Connecting a datagram socket sends nothing."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 53))
    except OSError as error:
        return f"cannot be queried from here: {error.strerror}"
    return ""


def _texts(answer: Answer) -> tuple[bytes, ...]:
    return tuple(record for record in answer.records if isinstance(record, bytes))
