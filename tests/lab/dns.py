# SPDX-License-Identifier: GPL-3.0-or-later
"""A recursive DNS server on loopback that answers from a Zone, over UDP and TCP on one port.

Faults are real: `!TIMEOUT` is silence, `!SERVFAIL` and `!NXDOMAIN` are response codes. An answer too long for the
asker's UDP is truncated, so it has to come back over TCP. `zone` may be replaced while it runs, in threads of its own;
`delays` are the seconds that answers over UDP about a domain, and all below it, take.
"""

import socketserver
import struct
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.rcode

from gatekeeper.dnsclient.zone import Fault, Zone
from tests.lab.ports import free_port

_RCODES = {Fault.SERVFAIL: dns.rcode.SERVFAIL, Fault.NXDOMAIN: dns.rcode.NXDOMAIN}


def answer(zone: Zone, wire: bytes, *, udp: bool) -> bytes | None:
    """The response to one query, or None if silence is the answer or this is no query."""
    try:
        query = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return None
    if len(query.question) != 1 or query.flags & dns.flags.QR:
        return None
    question = query.question[0]
    found = zone.lookup(question.name, question.rdtype)
    if found.fault is Fault.TIMEOUT:
        return None
    response = dns.message.make_response(query, recursion_available=True)
    response.answer.extend(found.rrsets)
    if found.fault in _RCODES:
        response.set_rcode(_RCODES[found.fault])
    try:
        return response.to_wire(max_size=max(query.payload, 512) if udp else 65535)
    except dns.exception.TooBig:
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()


def _delay(delays: Mapping[str, float], wire: bytes) -> float:
    """The seconds that the answer to a query takes."""
    if not delays:
        return 0
    name = dns.message.from_wire(wire).question[0].name.to_text(omit_final_dot=True).lower()
    return max((delay for domain, delay in delays.items() if f".{name}".endswith(f".{domain}")), default=0)


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True
    zone: Zone
    delays: Mapping[str, float]
    closed: threading.Event


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    zone: Zone


class _UdpQuery(socketserver.BaseRequestHandler):
    server: _Udp

    def handle(self) -> None:
        wire, socket = self.request
        if self.server.closed.wait(_delay(self.server.delays, wire)):
            return
        if response := answer(self.server.zone, wire, udp=True):
            socket.sendto(response, self.client_address)


class _TcpQueries(socketserver.StreamRequestHandler):
    server: _Tcp
    timeout = 5.0

    def handle(self) -> None:
        try:
            while len(size := self.rfile.read(2)) == 2:
                if response := answer(self.server.zone, self.rfile.read(*struct.unpack("!H", size)), udp=False):
                    self.wfile.write(struct.pack("!H", len(response)) + response)
        except OSError:
            pass  # the asker went away, or asked nothing for five seconds


class DnsServer:
    """Serves from when it is made until `close`; `address` is what `dns.nameservers` of gatekeeper.toml wants. By
    default at a free port; `host` and `port` are for programs that know no other port than 53."""

    def __init__(
        self, zone: Zone, host: str = "127.0.0.1", port: int = 0, delays: Mapping[str, float] | None = None
    ) -> None:
        self._tcp = _Tcp((host, port or free_port(host)), _TcpQueries)
        try:
            self._udp = _Udp(self._tcp.server_address, _UdpQuery)
        except OSError:
            self._tcp.server_close()
            raise
        self.zone = zone
        self._udp.delays = delays or {}
        self._udp.closed = threading.Event()
        for server in (self._udp, self._tcp):
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def zone(self) -> Zone:
        """What is answered from now on."""
        return self._udp.zone

    @zone.setter
    def zone(self, zone: Zone) -> None:
        self._udp.zone = self._tcp.zone = zone

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return "{}:{}".format(*self._tcp.server_address)

    def close(self) -> None:
        """Stop serving."""
        self._udp.closed.set()
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
