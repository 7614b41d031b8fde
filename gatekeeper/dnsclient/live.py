# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolver that sends real DNS queries, under asyncio and uvloop.

It is a stub resolver: the nameservers are recursive and follow CNAMEs. Names are absolute, so no search domain is ever
added. The first nameserver is asked by UDP with EDNS, at a third of the time the next one or the same once more, and
the first answer counts, also a late one. Where an answer is truncated, or perhaps forged (exchange.py), its server is
asked again by TCP. One whose answer is of no use (SERVFAIL, REFUSED, malformed) is not asked this question again, and
the next one is asked at once. Whatever goes wrong becomes a DNSError. That nobody listens is known at once.

A name server that is dead must not cost each question a third of its time. But that a question stays unanswered does
not show it: a stranger chooses the name, and may see to it that no answer comes in time. So a server that let one pass
is asked for the name servers of the root, which every resolver has at hand; while it does not answer that either, the
others are asked before it.

Why not a library: c-ares asks all questions from one port, its packages in Debian tell neither the AD flag nor how long
there is nothing, and reading answers here takes no longer (benchmarks/README.md); dnspython takes eight times the CPU.

Known limit: /etc/resolv.conf is read once.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.exchange import Exchange, Heard, ServerAddress, why_not
from gatekeeper.dnsclient.names import to_name, to_wire
from gatekeeper.dnsclient.resolver import Answer, DNSFailure, DNSTimeout
from gatekeeper.dnsclient.wire import Truncated, Unusable, read

logger = logging.getLogger(__name__)

_RESOLV_CONF = Path("/etc/resolv.conf")
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
        self._servers = [parse_nameserver(text) for text in nameservers] or _read_resolv_conf()
        self._tries = max(_TRIES, len(self._servers))
        self._timeout = timeout
        self._patience = timeout / self._tries
        self._silent: set[ServerAddress] = set()
        self._probes: dict[ServerAddress, asyncio.Task[None]] = {}
        self._doubtful: set[ServerAddress] = set()  # whose last answer seems to have been forged
        self._changing_case: set[ServerAddress] = set()
        self._set_turns()

    async def query(self, name: str, type: str) -> Answer:
        name = name.lower().removesuffix(".")
        qname = to_wire(name)
        if qname is None:
            return Answer(name, type, exists=False)
        end = asyncio.get_running_loop().time() + self._timeout
        try:
            with Exchange(name, type, qname, end) as exchange:
                answer = await self._ask_in_turn(exchange)
                is_late = exchange.is_open
        except OSError as error:
            raise DNSFailure(f"{type} {printable(name)}: {error.strerror}") from None
        if answer is not None:
            return answer
        if is_late:
            raise DNSTimeout(f"{type} {printable(name)}: no answer in time")
        raise DNSFailure(f"{type} {printable(name)}: {', '.join(dict.fromkeys(exchange.refused.values()))}")

    async def _ask_in_turn(self, exchange: Exchange) -> Answer | None:
        """Return the first answer, if there is one in time. Raises OSError if we have no socket left."""
        for server in self._turns:
            if server in exchange.refused:
                continue
            exchange.send(server, mixed=server not in self._changing_case)
            answer = await self._listen(exchange, self._patience, server)
            if answer is not None:
                return answer
            if server not in exchange.refused:
                self._suspect(server)
        return await self._listen(exchange, self._timeout)

    async def _listen(self, exchange: Exchange, seconds: float, asked: ServerAddress | None = None) -> Answer | None:
        """Return the first answer; None after `seconds`, once it is too late, or once `asked` has refused."""
        clock = asyncio.get_running_loop().time
        until = min(clock() + seconds, exchange.end)
        while exchange.is_open and asked not in exchange.refused and (left := until - clock()) > 0:
            heard = await exchange.hear(left)
            if heard is None:
                continue
            try:
                answer = await self._read(exchange, heard)
            except Unusable as why:
                exchange.refuse(heard.server, str(why))
            else:
                if answer is not None:
                    return answer
        return None

    async def _read(self, exchange: Exchange, heard: Heard) -> Answer | None:
        """Return the answer in what was heard; None if it is asked for once more. Raises Unusable."""
        if heard.is_certain:
            self._doubtful.discard(heard.server)
            try:
                return read(heard.data, heard.question, exchange.name, exchange.type)
            except Truncated:
                again: Heard | None = await self._ask_by_stream(exchange, heard.server)
        else:
            again = await self._ask_for_certain(exchange, heard.server)
        return again and read(again.data, again.question, exchange.name, exchange.type)

    async def _ask_for_certain(self, exchange: Exchange, server: ServerAddress) -> Heard | None:
        """Ask `server`, in whose name came an answer with letters of another case, where nobody can forge one.

        If it does not keep the letters there either, or cannot be asked there, it is asked in lower case from now on.
        So it is if two answers in a row seem forged: nobody guesses that well, but something on the way may change
        datagrams. Returns None if the answer is still to come. Raises Unusable.
        """
        if server in self._changing_case:
            raise Unusable("answer to another question")
        again: Heard | None = None
        with suppress(Unusable):
            again = await self._ask_by_stream(exchange, server, in_a_hurry=True)
        if again is not None and again.is_certain and server not in self._doubtful:
            self._doubtful.add(server)
            logger.warning("an answer in the name of name server %s was forged, and is not believed", server[0])
        elif server not in self._changing_case:
            self._changing_case.add(server)
            logger.warning("name server %s changes upper and lower case: its answers are easier to forge", server[0])
        if again is None:
            exchange.send(server, mixed=False)
        return again

    async def _ask_by_stream(self, exchange: Exchange, server: ServerAddress, *, in_a_hurry: bool = False) -> Heard:
        """Return the answer of `server` over TCP. Raises Unusable, also if it does not come in time.

        In a hurry, or where others could be asked, it has no more time than for a datagram.
        """
        if in_a_hurry or any(other != server and other not in exchange.refused for other in self._servers):
            end = min(asyncio.get_running_loop().time() + self._patience, exchange.end)
        else:
            end = exchange.end
        try:
            async with asyncio.timeout_at(end):
                return await exchange.ask_by_stream(server, mixed=server not in self._changing_case)
        except TimeoutError:
            raise Unusable("no answer in time over TCP") from None
        except OSError as error:
            raise Unusable(f"over TCP: {why_not(error)}") from None

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
                    self._set_turns()
                await asyncio.sleep(_PROBE_INTERVAL)
        except OSError as error:  # no socket left: the next question that it lets pass begins anew
            logger.warning("name server %s cannot be tested: %s", server[0], error.strerror)
        if server in self._silent:
            logger.warning("name server %s is asked again in its turn", server[0])
            self._silent.discard(server)
            self._set_turns()

    async def _is_silent(self, server: ServerAddress) -> bool:
        end = asyncio.get_running_loop().time() + _PROBE_TIMEOUT
        with Exchange("", "NS", b"\0", end) as exchange:
            exchange.send(server)
            return await exchange.hear(_PROBE_TIMEOUT) is None and server not in exchange.refused

    def _set_turns(self) -> None:
        """Determine who is asked first, second and so on: the servers that are silent come behind the others."""
        servers = sorted(self._servers, key=self._silent.__contains__)
        self._turns = tuple(itertools.islice(itertools.cycle(servers), self._tries))

    async def close(self) -> None:
        """Ask silent servers no more; sockets live only as long as a query."""
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)


def _read_resolv_conf() -> list[ServerAddress]:
    """Return the name servers of resolv.conf(5); without any, the one on this machine."""
    try:
        lines = _RESOLV_CONF.read_text("utf-8", "replace").split("\n")
    except OSError:
        lines = []
    found = [words[1] for line in lines if (words := line.split())[:1] == ["nameserver"] and len(words) > 1]
    return [(address, 53) for address in found if _is_address(address)] or [("127.0.0.1", 53)]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def preload() -> None:
    """Import now what a name would import only when it is asked for.

    A worker that has dropped its privileges may no longer be able to read code, and a stranger's mail would decide what
    is read.
    """
    to_name("b\u00fccher.\U0001f600.example")  # both generations of IDNA, with their tables
