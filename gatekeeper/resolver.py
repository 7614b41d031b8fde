# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS as everything else here sees it: one method, typed answers, and accidents told apart.

NXDOMAIN and NODATA are answers; trouble is an exception (DNSError), because DMARC, DKIM and Postfix's own
restrictions treat the two differently. Names go in and come out without a final dot, in lower case, as A-labels.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


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

    A name that can never be in the DNS (a label over 63 bytes, an empty label) is answered as NXDOMAIN, unasked.
    `ttl` is in seconds.
    """

    name: str
    type: str
    records: tuple[Record, ...] = ()
    exists: bool = True
    ttl: float = 0.0


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
