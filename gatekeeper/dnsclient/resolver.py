# SPDX-License-Identifier: GPL-3.0-or-later
"""The resolver contract: one method, typed answers, and an exception for each kind of failure.

NXDOMAIN and NODATA are answers; failure is an exception (DNSError), because DMARC, DKIM and Postfix's own restrictions
treat the two differently. Names are passed and returned without a final dot, in lower case, as A-labels (see
dnsclient/names.py for odd ones).

Most queries about mail have been asked before. A resolver with a cache may answer without waiting, by a method `known`;
`RememberedOnly` and `run_without_waiting` use that to get results without an event loop, in any thread.
"""

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

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
    """DNS did not answer: temporary, and never to be mistaken for "there is no such record".

    Where it stands for an answer, or is kept, it is one that was never raised.
    """

    def unraised(self) -> Self:
        """Return an error of the same class and text, and nothing else.

        One that was raised holds the frames that it went through, with all that is in them, and in `__context__` what
        it was raised for, with its own: kilobytes.
        """
        return self.__class__(str(self))


class DNSTimeout(DNSError):
    """No server answered in time."""


class DNSFailure(DNSError):
    """A server could not or would not answer (SERVFAIL, REFUSED), the answer was malformed, or CNAMEs formed a loop."""


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
    DNS (a label over 63 bytes, an empty label) is answered as NXDOMAIN, without a query. `ttl` is in seconds.
    `secure` means that the name server has validated the answer (AD, RFC 4035); it is as trustworthy as the path to
    that server.
    """

    name: str
    type: str
    records: tuple[Record, ...] = ()
    exists: bool = True
    ttl: float = 0.0
    secure: bool = False


class Resolver(Protocol):
    """A source of DNS answers: live, cached, or a table."""

    async def query(self, name: str, type: str) -> Answer:
        """Return the answer for `name` and `type` (A AAAA CNAME MX NS PTR SOA TXT), CNAMEs followed.

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
        """Return what `query` would answer or raise without waiting, in any thread; None if it would have to wait."""
        ...


async def query_or_error(resolver: Resolver, name: str, type: str) -> Answer | DNSError:
    """Return the answer, or the error that was raised instead; nobody knows how long it will be kept."""
    try:
        return await resolver.query(name, type)
    except DNSError as error:
        return error.unraised()


def known_answer(resolver: Resolver, name: str, type: str) -> Answer | DNSError | None:
    """Return what `resolver` has cached, in any thread; None if it would have to send a query."""
    known = getattr(resolver, "known", None)  # not every resolver is a RememberingResolver, and isinstance() takes 2 µs
    return None if known is None else known(name, type)


def nothing_known(_name: str, _type: str) -> None:
    """Stand in for `known` where a resolver has no cache."""


class WouldWait(BaseException):
    """A coroutine would have to wait where nobody can. Only the caller of `run_without_waiting` may catch this."""


class RememberedOnly:
    """Answers what `inner` has cached, in any thread; raises WouldWait for anything else."""

    def __init__(self, inner: Resolver) -> None:
        self._known = getattr(inner, "known", nothing_known)

    def known(self, name: str, type: str) -> Answer | DNSError:
        """Return the cached answer, or the cached error. Raises WouldWait."""
        found: Answer | DNSError | None = self._known(name, type)
        if found is None:
            raise WouldWait
        return found

    async def query(self, name: str, type: str) -> Answer:
        """Answer as Resolver.query does. Raises WouldWait."""
        found = self.known(name, type)
        if isinstance(found, DNSError):
            raise found.unraised()
        return found

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


def run_without_waiting(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end at once, with or without an event loop, and return its result.

    Raises WouldWait where it would have to wait; the coroutine is closed then.
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
    """Return the records of one RRset in the types that Answer has, in the order of the set."""
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
    """Answers from a Zone: for tests, replay and `explain --dns`. A `!TIMEOUT` is raised immediately."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    async def query(self, name: str, type: str) -> Answer:
        """Answer from the zone. Raises DNSTimeout and DNSFailure where the zone says so."""
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
        """Do nothing: there is nothing to close."""
