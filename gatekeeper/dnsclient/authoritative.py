# SPDX-License-Identifier: GPL-3.0-or-later
"""One question to every authoritative server of a name, at each of its addresses: does all the world see a record?

A cache knows one server's answer of some time ago; a secondary server may lag behind for hours. So each is asked
itself. The zone is found through a resolver, which is never asked for the name in question: its "no such name" would
stay in its cache. What an authoritative server says is followed: delegations, and CNAMEs, by which providers have
their customers publish keys.

Known limits: servers that answer at one address from several places (anycast) are asked at the nearest. Where nothing
answers over IPv6, servers are asked over IPv4 alone.
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

_MOST_STEPS = 8
"""Delegations and CNAMEs that are followed."""
_TRIES = 2


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """What one server says at one address: TXT records, or why it said nothing."""

    server: str
    address: str = ""
    records: tuple[bytes, ...] = ()
    trouble: str = ""

    def __str__(self) -> str:
        name = printable(self.server)
        return f"{name} ({self.address})" if self.address else name


class Authorities(Protocol):
    """Those who decide what a name has."""

    async def texts(self, name: str) -> tuple[ServerAnswer, ...]:
        """What each of them has at `name`. Raises DNSError if it cannot be found out who they are."""
        ...


class TableAuthorities:
    """One server that says what `resolver` does: for `--dns`."""

    def __init__(self, resolver: Resolver, name: str) -> None:
        self._resolver = resolver
        self._name = name

    async def texts(self, name: str) -> tuple[ServerAnswer, ...]:
        """See Authorities."""
        try:
            return (ServerAnswer(self._name, records=_texts(await self._resolver.query(name, "TXT"))),)
        except DNSError as error:
            return (ServerAnswer(self._name, trouble=str(error)),)


@dataclass(frozen=True, slots=True)
class _Reply:
    """What one server said, and where it sent us: to the servers of a zone below, or to another name."""

    voice: ServerAnswer
    alias: str = ""
    zone: str = ""
    servers: tuple[str, ...] = ()
    silent: bool = False


class LiveAuthorities:
    """Asks the servers themselves. `resolver` tells who and where they are; `timeout` is in seconds, for one try."""

    def __init__(self, resolver: Resolver, *, port: int = 53, timeout: float = 3.0) -> None:
        self._resolver = resolver
        self._port = port
        self._timeout = timeout
        self._backend = dns.asyncbackend.get_backend("asyncio")

    async def texts(self, name: str) -> tuple[ServerAnswer, ...]:
        """See Authorities."""
        behind: list[ServerAnswer] = []
        zone, servers = await self._zone_of(name)
        for _ in range(_MOST_STEPS):
            replies = await self._all(servers, name, zone)
            onward = next((reply for reply in replies if reply.alias or reply.servers), None)
            if onward is None:
                return (*behind, *(reply.voice for reply in replies))
            # Who does not know yet that it goes on from here, lags.
            behind += [reply.voice for reply in replies if (reply.alias, reply.zone) != (onward.alias, onward.zone)]
            if onward.alias:
                name = onward.alias
                zone, servers = await self._zone_of(name)
            else:
                zone, servers = onward.zone, onward.servers
        raise DNSFailure(f"TXT {printable(name)}: too many delegations and CNAMEs")

    async def _zone_of(self, name: str) -> tuple[str, tuple[str, ...]]:
        """A zone that `name` lies in, or below a delegation of, and its servers."""
        zone = name.partition("._domainkey.")[2] or name.partition(".")[2]
        while zone:
            # A name with a CNAME is no zone, though a resolver would tell the servers of where it leads to.
            if not (await self._resolver.query(zone, "CNAME")).records:
                found = (await self._resolver.query(zone, "NS")).records
                if servers := tuple(sorted(record for record in found if isinstance(record, str))):
                    return zone, servers
            zone = zone.partition(".")[2]
        raise DNSFailure(f"NS {printable(name)}: no zone has this name")

    async def _all(self, servers: Iterable[str], name: str, zone: str) -> list[_Reply]:
        asked = [self._ask(voice, name, zone) for server in servers async for voice in self._addresses(server)]
        return _heard(await asyncio.gather(*asked))

    async def _addresses(self, server: str) -> AsyncIterator[ServerAnswer]:
        trouble = "has no address"
        found = False
        for type in ("A", "AAAA"):
            try:
                for address in (await self._resolver.query(server, type)).records:
                    found = True
                    yield ServerAnswer(server, str(address))
            except DNSError as error:
                trouble = f"its address cannot be found: {error}"
        if not found:
            yield ServerAnswer(server, trouble=trouble)

    async def _ask(self, voice: ServerAnswer, name: str, zone: str) -> _Reply:
        if not voice.address:
            return _Reply(voice)
        if reason := _no_way_to(voice.address):
            return _Reply(ServerAnswer(voice.server, voice.address, trouble=reason), silent=True)
        silent = False
        try:
            return _read(voice, await self._response(voice.address, name), name, zone)
        except (dns.exception.Timeout, TimeoutError):
            trouble, silent = "does not answer", True
        except Exception as error:  # dnspython lets all kinds escape, of hostile packets
            trouble = f"answers badly ({type(error).__name__})"
        return _Reply(ServerAnswer(voice.server, voice.address, trouble=trouble), silent=silent)

    async def _response(self, address: str, name: str) -> dns.message.Message:
        asked = to_name(name)
        if asked is None:
            raise DNSFailure("no name for the DNS")
        query = dns.message.make_query(asked, RdataType.TXT, use_edns=0, payload=1232, flags=0)
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


def _heard(replies: list[_Reply]) -> list[_Reply]:
    """The replies without those over IPv6 where all of that is silent: then it is this host that has no way out, which
    says nothing about servers that were heard over IPv4.
    """
    six = [reply for reply in replies if ":" in reply.voice.address]
    if not all(reply.silent for reply in six):
        return replies
    heard = {reply.voice.server for reply in replies if reply not in six}
    return [reply for reply in replies if reply not in six or reply.voice.server not in heard]


def _read(voice: ServerAnswer, response: dns.message.Message, name: str, zone: str) -> _Reply:
    """What a response says about the TXT records at `name`, from a server of `zone`."""

    def trouble(what: str) -> _Reply:
        return _Reply(ServerAnswer(voice.server, voice.address, trouble=what))

    rcode = response.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return trouble(f"says {dns.rcode.to_text(rcode)}")
    if not response.flags & dns.flags.AA:
        return _delegation(voice, response.authority, name, zone) or trouble(f"does not serve {zone}")
    for rrset in response.answer:
        if to_text(rrset.name).lower() != name.lower():
            continue
        if rrset.rdtype == RdataType.TXT:
            records = tuple(record for record in to_records(rrset) if isinstance(record, bytes))
            return _Reply(ServerAnswer(voice.server, voice.address, records))
        if isinstance(rrset[0], dns.rdtypes.ANY.CNAME.CNAME):
            return _Reply(voice, alias=to_text(rrset[0].target).lower())
    return _Reply(voice)


def _delegation(voice: ServerAnswer, authority: list[dns.rrset.RRset], name: str, zone: str) -> _Reply | None:
    for rrset in authority:
        below = to_text(rrset.name).lower()
        inside = name.lower().endswith(f".{below}") or name.lower() == below
        if rrset.rdtype == RdataType.NS and inside and below.endswith(f".{zone}"):
            servers = [to_text(data.target) for data in rrset if isinstance(data, dns.rdtypes.ANY.NS.NS)]
            return _Reply(voice, zone=below, servers=tuple(sorted(servers)))
    return None


def _no_way_to(address: str) -> str:
    """Why nothing can be sent there; empty if it can. Connecting a datagram socket sends nothing."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 53))
    except OSError as error:
        return f"cannot be asked from here: {error.strerror}"
    return ""


def _texts(answer: Answer) -> tuple[bytes, ...]:
    return tuple(record for record in answer.records if isinstance(record, bytes))
