# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS asked for real, through dnspython's asynchronous resolver, under asyncio and uvloop.

We are a stub: the nameservers are recursive and follow CNAMEs. Names are absolute, so no search domain is ever added.
The first nameserver that is there is asked the short way (datagram.py); where that brings no usual answer, all are
asked by UDP with EDNS and, where the answer is truncated, by TCP. Whatever goes wrong becomes a DNSError.

Known limit: /etc/resolv.conf is read once.
"""

import asyncio
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdata
import dns.resolver

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.datagram import Datagrams
from gatekeeper.dnsclient.names import to_name
from gatekeeper.dnsclient.resolver import Answer, DNSFailure, DNSTimeout, to_records

_EDNS_SIZE = 1232
"""Bytes that pass every network unfragmented (DNS flag day 2020)."""


def parse_nameserver(text: str) -> tuple[str, int]:
    """(address, port) of `HOST:PORT`, `[HOST]:PORT` or an address alone; the host is an IP address.

    Raises ValueError with what is allowed.
    """
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
        if not bracket or (rest and not rest.startswith(":")):
            host = ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ip_address(host)
    except ValueError:
        host = ""
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!a} is not a name server: write 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353")
    return host, int(port)


class LiveResolver:
    """Asks `nameservers` (see parse_nameserver; without any, those of /etc/resolv.conf) in their order.

    `timeout` is in seconds and holds for a whole question, with all its retries. Raises ValueError for a name server
    that is not written as it should be.
    """

    def __init__(self, nameservers: Sequence[str] = (), timeout: float = 5.0) -> None:
        self._resolver = _resolver_for([parse_nameserver(text) for text in nameservers])
        self._timeout = self._resolver.lifetime = timeout
        self._resolver.timeout = timeout / 3  # one try: a lost datagram leaves time for two more
        self._datagrams = [Datagrams(*place, _EDNS_SIZE) for place in _places(self._resolver)]
        self._resolver.use_edns(0, 0, _EDNS_SIZE)
        self._resolver.set_flags(dns.flags.RD | dns.flags.AD)  # AD: tell whether it is validated (RFC 6840 section 5.7)
        self._backend = dns.asyncbackend.get_backend("asyncio")

    async def query(self, name: str, type: str) -> Answer:
        """See resolver.Resolver.query."""
        name = name.lower().removesuffix(".")
        asked = to_name(name)
        if asked is None:
            return Answer(name, type, exists=False)
        clock = asyncio.get_running_loop().time
        began = clock()
        for datagrams in self._datagrams:
            try:
                answer = await datagrams.ask(asked, name, type, self._timeout / 3)
            except OSError:  # nobody listens there
                continue
            if answer is None:
                break
            return answer
        try:
            # dnspython's own limit forgets its pauses between tries
            async with asyncio.timeout_at(began + self._timeout):
                return await self._ask(name, type, asked)
        except (dns.exception.Timeout, TimeoutError):
            raise DNSTimeout(f"{type} {printable(name)}: no answer in time") from None
        except Exception as error:
            # dnspython lets more than its own exceptions escape (OSError, EOFError, ValueError of hostile packets).
            raise DNSFailure(f"{type} {printable(name)}: {_reason(error)}") from None

    async def _ask(self, name: str, type: str, asked: dns.name.Name) -> Answer:
        try:
            found = await self._resolver.resolve(
                asked, type, raise_on_no_answer=False, search=False, backend=self._backend
            )
        except dns.resolver.NXDOMAIN as nothing:
            return Answer(name, type, exists=False, ttl=_negative_ttl(nothing, asked))
        if found.response.flags & dns.flags.TC:
            # Over TCP: dnspython would take it for an answer without records.
            raise dns.message.Truncated
        result = found.chaining_result
        secure = bool(found.response.flags & dns.flags.AD)
        return Answer(name, type, to_records(result.answer or ()), ttl=float(result.minimum_ttl), secure=secure)

    async def close(self) -> None:
        """Nothing to let go of: sockets live as long as a question."""


def _resolver_for(nameservers: list[tuple[str, int]]) -> dns.asyncresolver.Resolver:
    if not nameservers:
        try:
            return dns.asyncresolver.Resolver()
        except dns.resolver.NoResolverConfiguration:
            nameservers = [("127.0.0.1", 53)]  # resolv.conf(5): without a file, the name server on this machine
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in nameservers]
    return resolver


def _places(resolver: dns.asyncresolver.Resolver) -> Iterator[tuple[str, int]]:
    """Addresses and ports of the name servers, in the order in which they are asked."""
    for server in resolver.nameservers:
        if isinstance(server, dns.nameserver.AddressAndPortNameserver):
            yield server.address, server.port
        else:
            yield str(server), resolver.nameserver_ports.get(str(server), resolver.port)


def _negative_ttl(nothing: dns.resolver.NXDOMAIN, asked: dns.name.Name) -> float:
    """How long the name may be taken not to exist: the SOA's minimum (RFC 2308 section 5), or a short default."""
    response = nothing.response(asked)  # type: ignore[no-untyped-call]  # dnspython's annotations stop short
    assert isinstance(response, dns.message.QueryMessage)
    return float(response.resolve_chaining().minimum_ttl)


def _reason(error: Exception) -> str:
    """What went wrong, without names and addresses out of the answer."""
    if isinstance(error, dns.resolver.NoNameservers):
        tries = error.kwargs.get("errors") or ()
        why = dict.fromkeys(e if isinstance(e, str) else type(e).__name__ for *_, e, _ in tries)
        return printable(", ".join(why) or "no name server to ask")
    return type(error).__name__


def preload() -> None:
    """Import now what dnspython would import when an answer needs it.

    A worker that gave up its privileges may not be able to read code any more, and a stranger's answer would choose
    what is read. Types that are not known after this are handled as opaque data.
    """
    import dns.update  # an answer may pretend to be one

    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]  # dnspython's annotations stop short of it
    dns.asyncbackend.get_backend("asyncio")
    to_name("b\u00fccher.\U0001f600.example")  # both generations of IDNA, with their tables
