# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS as everything else here sees it: one method, typed answers, and accidents told apart.

NXDOMAIN and NODATA are answers; trouble is an exception (DNSError), because DMARC, DKIM and Postfix's own
restrictions treat the two differently. Names go in and come out without a final dot, in lower case, as A-labels
(see dnsclient/names.py for odd ones).

Most questions about mail were asked before. A resolver that remembers may say so without waiting, by a method `known`;
`Recalling` and `at_once` make of that findings without an event loop, in any thread.
"""

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import dns.rdata
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.names import to_text
from gatekeeper.dnsclient.zone import Fault, Zone

T = TypeVar("T")


class DNSError(Exception):
    """DNS did not answer: temporary, and never to be taken for "there is no such record"."""


class DNSTimeout(DNSError):
    """No server answered in time."""


class DNSFailure(DNSError):
    """A server answered that it cannot (SERVFAIL, REFUSED), the answer was malformed, or CNAMEs went in a loop."""


class MX(NamedTuple):
    """One mail exchanger; `host` is empty for the null MX of RFC 7505."""

    preference: int
    host: str


Record = str | bytes | MX
"""A, AAAA, PTR, NS, CNAME, SOA (its mname): str. TXT: bytes, the strings of one record joined. MX: MX."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The records of one type at one name. `exists` is False for NXDOMAIN; no records with `exists` is NODATA.

    `name` and `type` are the question, the name in lower case without a final dot. A name that can never be in the
    DNS (a label over 63 bytes, an empty label) is answered as NXDOMAIN, unasked. `ttl` is in seconds.
    `secure` says that the name server has validated the answer (AD, RFC 4035); as trustworthy as the way to it.
    """

    name: str
    type: str
    records: tuple[Record, ...] = ()
    exists: bool = True
    ttl: float = 0.0
    secure: bool = False


class Resolver(Protocol):
    """Where answers come from: live, cached, or a table."""

    async def query(self, name: str, type: str) -> Answer:
        """The answer for `name` and `type` (A AAAA CNAME MX NS PTR SOA TXT), CNAMEs followed.

        Raises DNSError.
        """
        ...

    async def close(self) -> None:
        """Let go of sockets and tasks."""
        ...


@runtime_checkable
class RememberingResolver(Resolver, Protocol):
    """A resolver that may know an answer without asking."""

    def known(self, name: str, type: str) -> Answer | DNSError | None:
        """What `query` would answer or raise without waiting, in any thread; None if it would have to ask."""
        ...


async def query_or_error(resolver: Resolver, name: str, type: str) -> Answer | DNSError:
    """The answer, or the trouble that there is in its stead."""
    try:
        return await resolver.query(name, type)
    except DNSError as error:
        return error


def known_answer(resolver: Resolver, name: str, type: str) -> Answer | DNSError | None:
    """What `resolver` remembers, in any thread; None if it has to be asked."""
    known = getattr(resolver, "known", None)  # not every resolver is Remembering, and isinstance() takes 2 µs
    return None if known is None else known(name, type)


def _nothing(name: str, type: str) -> None:
    """What a resolver without memory remembers."""


class WouldWait(BaseException):
    """Something has to be waited for where nobody can wait. Nobody's to catch but who called `at_once`."""


class RememberedOnly:
    """Answers what `inner` remembers, in any thread; raises Waiting for the rest."""

    def __init__(self, inner: Resolver) -> None:
        self._known = getattr(inner, "known", _nothing)

    def known(self, name: str, type: str) -> Answer | DNSError:
        """The answer, or the trouble that is remembered in its stead. Raises Waiting."""
        found: Answer | DNSError | None = self._known(name, type)
        if found is None:
            raise WouldWait
        return found

    async def query(self, name: str, type: str) -> Answer:
        """See Resolver.query. Raises Waiting."""
        found = self.known(name, type)
        if isinstance(found, DNSError):
            raise found.__class__(*found.args)
        return found

    async def close(self) -> None:
        """Nothing to let go of."""


def run_without_waiting(coroutine: Coroutine[Any, Any, T]) -> T:
    """What `coroutine` comes to, run to its end here and now, with or without an event loop. Raises Waiting where it
    would have to wait; it is over then.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        found: T = done.value
        return found
    finally:
        coroutine.close()
    raise WouldWait


def to_records(data: Iterable[dns.rdata.Rdata]) -> tuple[Record, ...]:
    """The records of one set as Answer has them, in the order of the set."""
    return tuple(_to_record(item) for item in data)


def _to_record(data: dns.rdata.Rdata) -> Record:
    match data:
        case dns.rdtypes.ANY.TXT.TXT():
            return b"".join(data.strings)
        case dns.rdtypes.ANY.MX.MX():
            return MX(data.preference, to_text(data.exchange))
        case dns.rdtypes.ANY.PTR.PTR() | dns.rdtypes.ANY.NS.NS() | dns.rdtypes.ANY.CNAME.CNAME():
            return to_text(data.target)
        case dns.rdtypes.ANY.SOA.SOA():
            return to_text(data.mname)
        case _:
            return data.to_text()


class TableResolver:
    """Answers from a Zone: for tests, replay and `explain --dns`. A `!TIMEOUT` is raised at once."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    async def query(self, name: str, type: str) -> Answer:
        """What the zone says. Raises DNSTimeout and DNSFailure where the zone wants them."""
        name = name.lower().removesuffix(".")
        found = self._zone.lookup(name, type)
        if found.fault is Fault.TIMEOUT:
            raise DNSTimeout(f"{type} {printable(name)}: !TIMEOUT")
        if found.fault is Fault.SERVFAIL:
            raise DNSFailure(f"{type} {printable(name)}: !SERVFAIL")
        ttl = float(min((rrset.ttl for rrset in found.rrsets), default=0))
        if found.fault is not None:
            return Answer(name, type, exists=found.fault is not Fault.NXDOMAIN, ttl=ttl)
        return Answer(name, type, to_records(found.rrsets[-1]), ttl=ttl)

    async def close(self) -> None:
        """Nothing to let go of."""
