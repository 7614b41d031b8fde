# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolver that sends real DNS queries, through dnspython's asynchronous resolver, under asyncio and uvloop.

It is a stub resolver: the nameservers are recursive and follow CNAMEs. Names are absolute, so no search domain is ever
added. The first nameserver is queried by the fast path (datagram.py), at a third of the time the next one or the same
once more, and the first answer counts, also a late one. Where it is not a common one, all are queried through
dnspython, by UDP with EDNS and, where the answer is truncated, by TCP. Whatever goes wrong becomes a DNSError. That
nobody listens is known at once.

A name server that is dead must not cost each question a third of its time. But that a question stays unanswered does
not show it: a stranger chooses the name, and may see to it that no answer comes in time. So a server that let one pass
is asked for the name servers of the root, which every resolver has at hand; while it does not answer that either, the
others are asked before it.

Known limit: /etc/resolv.conf is read once.
"""

import asyncio
import itertools
import logging
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
from gatekeeper.dnsclient.datagram import Exchange, ServerAddress, read
from gatekeeper.dnsclient.names import to_name
from gatekeeper.dnsclient.resolver import Answer, DNSFailure, DNSTimeout, to_records

logger = logging.getLogger(__name__)

_EDNS_SIZE = 1232
"""Bytes that pass every network unfragmented (DNS flag day 2020)."""
_TRIES = 3
"""Datagrams for one question, at least: a lost one leaves time for two more."""
_PROBE_TIMEOUT = 1.0
"""Seconds that a server has to answer about the root."""
_PROBE_INTERVAL = 5.0
"""Seconds between two such questions to a server that is silent."""


def parse_nameserver(text: str) -> tuple[str, int]:
    """Return (address, port) for `HOST:PORT`, `[HOST]:PORT` or an address alone; the host is an IP address.

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
    """Queries `nameservers` (see parse_nameserver; without any, those of /etc/resolv.conf) in their order.

    `timeout` is in seconds, for a whole query with all its retries. Raises ValueError for a name server that
    parse_nameserver does not accept.
    """

    def __init__(self, nameservers: Sequence[str] = (), timeout: float = 5.0) -> None:
        self._resolver = _resolver_for([parse_nameserver(text) for text in nameservers])
        self._timeout = self._resolver.lifetime = timeout
        self._resolver.timeout = timeout / _TRIES
        self._in_order = list(zip(_server_addresses(self._resolver), self._resolver.nameservers, strict=True))
        self._servers = [address for address, _ in self._in_order]  # those first that are not known to be silent
        self._silent: set[ServerAddress] = set()
        self._probes: dict[ServerAddress, asyncio.Task[None]] = {}
        self._resolver.use_edns(0, 0, _EDNS_SIZE)
        self._resolver.set_flags(dns.flags.RD | dns.flags.AD)  # AD: ask for validation (RFC 6840 section 5.7)
        self._backend = dns.asyncbackend.get_backend("asyncio")

    async def query(self, name: str, type: str) -> Answer:
        name = name.lower().removesuffix(".")
        qname = to_name(name)
        if qname is None:
            return Answer(name, type, exists=False)
        end = asyncio.get_running_loop().time() + self._timeout
        try:
            with Exchange(qname, type, _EDNS_SIZE) as exchange:
                data = await self._exchange(exchange, end)
                answer = read(data, len(exchange.question), name, type)
            if answer is not None:
                return answer
            # dnspython's own limit does not count its pauses between tries
            async with asyncio.timeout_at(end):
                return await self._ask(name, type, qname)
        except (dns.exception.Timeout, TimeoutError):
            raise DNSTimeout(f"{type} {printable(name)}: no answer in time") from None
        except Exception as error:  # noqa: BLE001 (see below)
            # dnspython lets more than its own exceptions escape (for hostile packets OSError, EOFError, ValueError).
            raise DNSFailure(f"{type} {printable(name)}: {_reason(error)}") from None

    async def _exchange(self, exchange: Exchange, end: float) -> bytes:
        """Return the datagram that answers. Raises TimeoutError, and OSError where no server can be asked."""
        clock = asyncio.get_running_loop().time
        tries = max(_TRIES, len(self._servers))
        for server in itertools.islice(itertools.cycle(self._servers), tries):
            if server in exchange.refused:
                continue
            exchange.send(server)
            data = await exchange.answer(min(self._timeout / tries, end - clock()))
            if data is not None:
                return data
            if server not in exchange.refused:
                self._suspect(server)
        while exchange.is_open and (left := end - clock()) > 0:
            data = await exchange.answer(left)
            if data is not None:
                return data
        if exchange.is_open:
            raise TimeoutError
        raise ConnectionRefusedError

    def _suspect(self, server: ServerAddress) -> None:
        """Find out whether `server`, which let a question pass, is silent altogether; for one of several."""
        if len(self._servers) > 1 and server not in self._probes:
            task = self._probes[server] = asyncio.create_task(self._probe(server), name="silent name server")
            task.add_done_callback(lambda _: self._probes.pop(server, None))

    async def _probe(self, server: ServerAddress) -> None:
        """Ask `server` about the root until it answers, or refuses, which costs no time either."""
        try:
            while await self._is_silent(server):
                if server not in self._silent:
                    logger.warning("name server %s does not answer; the others are asked first", server[0])
                    self._silent.add(server)
                    self._sort()
                await asyncio.sleep(_PROBE_INTERVAL)
        except OSError as error:  # no socket left: the next question that it lets pass begins anew
            logger.warning("name server %s cannot be tested: %s", server[0], error.strerror)
        if server in self._silent:
            logger.warning("name server %s is asked again in its turn", server[0])
            self._silent.discard(server)
            self._sort()

    async def _is_silent(self, server: ServerAddress) -> bool:
        with Exchange(dns.name.root, "NS", _EDNS_SIZE) as exchange:
            exchange.send(server)
            return await exchange.answer(_PROBE_TIMEOUT) is None and server not in exchange.refused

    def _sort(self) -> None:
        """Put the servers that are silent behind the others."""
        order = sorted(self._in_order, key=lambda item: item[0] in self._silent)
        self._servers = [address for address, _ in order]
        self._resolver.nameservers = [nameserver for _, nameserver in order]

    async def _ask(self, name: str, type: str, qname: dns.name.Name) -> Answer:
        try:
            found = await self._resolver.resolve(
                qname, type, raise_on_no_answer=False, search=False, backend=self._backend
            )
        except dns.resolver.NXDOMAIN as nxdomain:
            return Answer(name, type, exists=False, ttl=_negative_ttl(nxdomain, qname))
        if found.response.flags & dns.flags.TC:
            # Over TCP: dnspython would treat it as an answer without records.
            raise dns.message.Truncated
        result = found.chaining_result
        secure = bool(found.response.flags & dns.flags.AD)
        return Answer(name, type, to_records(result.answer or ()), ttl=float(result.minimum_ttl), secure=secure)

    async def close(self) -> None:
        """Ask silent servers no more; sockets live only as long as a query."""
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)


def _resolver_for(nameservers: list[tuple[str, int]]) -> dns.asyncresolver.Resolver:
    if not nameservers:
        try:
            return dns.asyncresolver.Resolver()
        except dns.resolver.NoResolverConfiguration:
            nameservers = [("127.0.0.1", 53)]  # resolv.conf(5): without a file, the name server on this machine
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in nameservers]
    return resolver


def _server_addresses(resolver: dns.asyncresolver.Resolver) -> Iterator[tuple[str, int]]:
    """Yield the addresses and ports of the name servers, in the order in which they are queried."""
    for server in resolver.nameservers:
        if isinstance(server, dns.nameserver.AddressAndPortNameserver):
            yield server.address, server.port
        else:
            yield str(server), resolver.nameserver_ports.get(str(server), resolver.port)


def _negative_ttl(nxdomain: dns.resolver.NXDOMAIN, qname: dns.name.Name) -> float:
    """Return how long NXDOMAIN may be cached: the SOA's minimum (RFC 2308 section 5), or a short default."""
    response = nxdomain.response(qname)  # type: ignore[no-untyped-call]  # dnspython's annotations stop short
    assert isinstance(response, dns.message.QueryMessage)
    return float(response.resolve_chaining().minimum_ttl)


def _reason(error: Exception) -> str:
    """Return what went wrong, without names and addresses from the answer."""
    if isinstance(error, dns.resolver.NoNameservers):
        tries = error.kwargs.get("errors") or ()
        why = dict.fromkeys(e if isinstance(e, str) else type(e).__name__ for *_, e, _ in tries)
        return printable(", ".join(why) or "no name server to ask")
    if isinstance(error, ConnectionRefusedError):
        return "no name server listens"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # too many open files
    return type(error).__name__


def preload() -> None:
    """Import now what dnspython would import only when an answer needs it.

    A worker that has dropped its privileges may no longer be able to read code, and a stranger's answer would decide
    what is read. Types that are still unknown after this are handled as opaque data.
    """
    import dns.update  # an answer may pretend to be one

    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]  # dnspython's annotations stop short of it
    dns.asyncbackend.get_backend("asyncio")
    to_name("b\u00fccher.\U0001f600.example")  # both generations of IDNA, with their tables
