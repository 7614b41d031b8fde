# SPDX-License-Identifier: GPL-3.0-or-later
"""The evaluation of SPF records for one client (RFC 7208 sections 4 to 7), with its two limits (section 4.6.4).

Ten terms may ask the DNS: a term counts once it is reached, so a `redirect=` beside a match costs nothing. Two terms
may ask and find nothing. What counts is the term: an `mx` whose exchangers have no address of the client's kind has
found its exchangers, and the names in which somebody's PTR records point nowhere are skipped (section 5.5), as is a
missing PTR record; otherwise a client could switch off the policy of others by its own DNS.

Beyond that no record can cost much: names of an answer are at most ten, and a question is asked once.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from gatekeeper.auth.domains import is_within
from gatekeeper.auth.spf_record import Term, expand_explanation, expand_name, find_records, parse
from gatekeeper.core.request import Address, plain_address
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import MX, Answer, DNSError, Record, Resolver, known_answer, query_or_error

TIME_LIMIT = 20.0
"""Seconds for one evaluation, answers included (RFC 7208 section 4.6.4 recommends at least 20)."""
MAX_LOOKUPS = 10
MAX_VOID = 2
MAX_NAMES = 10  # of an MX or PTR answer

MAX_SPACE = {4: 2.0**-7, 6: 2.0**-18}
"""The share of all addresses, by IP version, that a domain must stay below for its pass to authenticate.

It is that of two networks of the largest size that one organisation holds, a /8 and a /19 (DTAG and Orange have an
IPv6 /19, and the /8 of Apple or Ford are from the time of classes): one passes even if its owner lists others too. The
large mail providers need much less: all of Microsoft 365 is half a million addresses, as are Google's, some 2**-13.
"""


class SpfResult(StrEnum):
    """Results of SPF (RFC 7208 section 2.6)."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


RESULTS = {
    "+": SpfResult.PASS,
    "-": SpfResult.FAIL,
    "?": SpfResult.NEUTRAL,
    "~": SpfResult.SOFTFAIL,
}


class TempError(Exception):
    """The DNS does not answer; the message says which question."""


class PermError(Exception):
    """A record cannot be evaluated; the message says why, in words for people."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a record came out: `term` is what matched, empty if nothing did; `exp` its `exp=`; `domain` whose it is."""

    result: SpfResult
    domain: str
    term: str = ""
    exp: str = ""


class Evaluation:
    """The evaluation of the record of `domain` for one client; `local` is the local part of the sender.

    `answers` are those that it took, and `has_macros` whether it depends on more than client, domain and DNS.
    `names_client`: what matched names the client by its network, as auth/spf.py has it. `lookups` and `void` count
    towards the limits.
    """

    def __init__(
        self, resolver: Resolver, *, address: Address, local: str, domain: str, helo: str, receiver: str
    ) -> None:
        self.address = address = plain_address(address)
        self.domain = domain
        self.answers: dict[tuple[str, str], Answer | DNSError] = {}
        self.has_macros = self.names_client = False
        self.lookups = self.void = 0
        self._resolver = resolver
        self._deadline = 0.0
        self._space = 0.0  # the share of all addresses that was let in so far
        self._clients_names: list[str] | None = None
        four = address.version == 4
        self._kind = "A" if four else "AAAA"
        self._values = {
            "s": f"{local}@{domain}",
            "l": local,
            "o": domain,
            "i": str(address) if four else ".".join(address.exploded.replace(":", "").upper()),
            "h": helo,
            "v": "in-addr" if four else "ip6",
            "c": str(address),
            "r": receiver or "unknown",
            "t": str(int(time.time())),
        }

    async def run(self) -> Ending | None:
        """Return how the record of the domain comes out; None without a record. Raises TempError and PermError."""
        record = await self.record(self.domain)
        return None if record is None else await self.evaluate(self.domain, record)

    async def record(self, domain: str) -> bytes | None:
        """Return the record of `domain`, None if it has none. Raises TempError and PermError."""
        records = find_records(await self._ask(domain, "TXT"))
        if len(records) > 1:
            raise PermError(f"{domain} has {len(records)} SPF records")
        return records[0] if records else None

    async def evaluate(self, domain: str, text: bytes) -> Ending:
        """Evaluate the record of `domain`. Raises TempError and PermError."""
        record = parse(text)
        if record.problems:
            raise PermError(f"{domain}: {record.problems[0]}")
        self._add_networks(record.terms)
        exp = record.modifier("exp")
        for term in record.directives:
            if await self.matches(term, domain):
                result = RESULTS[term.qualifier]
                self.names_client &= result is SpfResult.PASS and not term.is_by_client
                return Ending(result, domain, term.text, exp.domain if exp else "")
        self.names_client = False
        if (redirect := record.modifier("redirect")) is None:
            return Ending(SpfResult.NEUTRAL, domain)
        ending = await self.included(redirect, domain)
        self.names_client &= not redirect.is_by_client
        return ending

    async def matches(self, term: Term, domain: str) -> bool:
        """Return whether a directive of the record of `domain` matches. Raises TempError and PermError."""
        self.names_client = False
        if term.name == "all":
            return True
        if term.network is not None:
            return self.is_among((term.network,))
        if term.name == "include":
            return (await self.included(term, domain)).result is SpfResult.PASS
        self.count_lookup()
        name = await self._name(term, domain)
        if term.name == "ptr":
            return any(is_within(one, name) for one in await self._validated_names())
        records = await self._ask(name, {"mx": "MX", "exists": "A"}.get(term.name, self._kind))
        if not records and _can_exist(name):
            self.count_void()
        if term.name == "exists":
            return bool(records)
        hosts = _exchangers(records) if term.name == "mx" else [name]
        networks, trouble = [], ""
        for host, answer in zip(hosts, await self._answers((host, self._kind) for host in hosts), strict=True):
            if isinstance(answer, DNSError):
                trouble = host
                break
            networks += [_network(str(record), term.lengths[self._kind == "AAAA"]) for record in answer.records]
        if term.qualifier == "+" and not term.is_by_client:
            self._space += sum(2.0**-network.prefixlen for network in networks)
        if trouble and not self.is_among(networks):
            raise TempError(f"{self._kind} of {printable(trouble, 80)} cannot be looked up")
        return self.is_among(networks)

    async def included(self, term: Term, domain: str) -> Ending:
        """Evaluate the record that `include:` or `redirect=` names. Raises TempError and PermError."""
        self.count_lookup()
        name = await self._name(term, domain)
        record = await self.record(name)
        if record is None:
            how = "included" if term.qualifier else "redirected to"
            raise PermError(f"{printable(name, 80)} is {how} and has no SPF record")
        return await self.evaluate(name, record)

    async def explanation(self, ending: Ending) -> str:
        """Return what `exp=` has to say, expanded; empty if there is none or it fails (RFC 7208 section 6.2)."""
        try:
            name = expand_name(ending.exp, await self._values_for(ending.exp, ending.domain))
            texts = await self._ask(name, "TXT") if name else ()
            if len(texts) != 1 or not isinstance(texts[0], bytes):
                return ""
            text = texts[0].decode("ascii", "replace")
            return printable(expand_explanation(text, await self._values_for(text, ending.domain)))
        except TempError:
            return ""

    def is_among(self, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
        """Return whether the client is in one of these networks; they let it in by name if they are small enough."""
        matches = any(self.address in network for network in networks)
        self.names_client = matches and self._space < MAX_SPACE[self.address.version]
        return matches

    def count_lookup(self) -> None:
        """Count a term that asks the DNS. Raises PermError past the limit."""
        self.lookups += 1
        if self.lookups > MAX_LOOKUPS:
            raise PermError(f"the record of {self.domain} takes more than {MAX_LOOKUPS} look-ups")

    def count_void(self) -> None:
        """Count a term that has asked and found nothing. Raises PermError past the limit."""
        self.void += 1
        if self.void > MAX_VOID:
            raise PermError(f"more than {MAX_VOID} terms in the record of {self.domain} find nothing")

    def _add_networks(self, terms: Iterable[Term]) -> None:
        """Add to the sum what a record lets in by address, whatever matches."""
        for term in terms:
            if term.qualifier == "+" and term.network is not None and term.network.version == self.address.version:
                self._space += 2.0**-term.network.prefixlen

    async def _name(self, term: Term, domain: str) -> str:
        return expand_name(term.domain, await self._values_for(term.domain, domain)) if term.domain else domain

    async def _values_for(self, text: str, domain: str) -> dict[str, str]:
        """Return what the macros in `text`, of the record of `domain`, stand for."""
        if "%" not in text:
            return {}
        self.has_macros = True
        values = self._values | {"d": domain}
        if "%{p" in text.lower():
            names = await self._validated_names()
            below = (name for name in names if is_within(name, domain))
            values["p"] = domain if domain in names else next(below, names[0] if names else "unknown")
        return values

    async def _validated_names(self) -> list[str]:
        """Return the names of the client that resolve to it; what fails is no name (RFC 7208 section 5.5)."""
        if self._clients_names is None:
            [answer] = await self._answers([(self.address.reverse_pointer, "PTR")])
            records = answer.records[:MAX_NAMES] if isinstance(answer, Answer) else ()
            names = [str(name).lower() for name in records]
            answers = await self._answers((name, self._kind) for name in names)
            self._clients_names = [
                name
                for name, found in zip(names, answers, strict=True)
                if isinstance(found, Answer) and self.address in map(ip_address, map(str, found.records))
            ]
        return self._clients_names

    async def _ask(self, name: str, type: str) -> tuple[Record, ...]:
        [answer] = await self._answers([(name, type)])
        if isinstance(answer, DNSError):
            raise TempError(f"{type} of {printable(name, 80)} cannot be looked up")
        return answer.records

    async def _answers(self, questions: Iterable[tuple[str, str]]) -> list[Answer | DNSError]:
        """Return the answers, of those not known yet all at once. Raises TempError when the time is up."""
        wanted = list(questions)
        missing = [question for question in dict.fromkeys(wanted) if not self._knows(*question)]
        if missing:
            self._deadline = self._deadline or asyncio.get_running_loop().time() + TIME_LIMIT
            asking = [query_or_error(self._resolver, *question) for question in missing]
            try:
                async with asyncio.timeout_at(self._deadline):
                    # the usual case is one, and a task costs more than a cached answer
                    found = [await asking[0]] if len(asking) == 1 else await asyncio.gather(*asking)
            except TimeoutError:
                raise TempError("DNS took too long") from None
            self.answers.update(zip(missing, found, strict=True))
        return [self.answers[question] for question in wanted]

    def _knows(self, name: str, type: str) -> bool:
        """Return whether the answer is known; it stays the same during this evaluation."""
        if (name, type) not in self.answers:
            known = known_answer(self._resolver, name, type) if _can_exist(name) else Answer(name, type, exists=False)
            if known is None:
                return False
            self.answers[name, type] = known
        return True


def _can_exist(name: str) -> bool:
    """Return whether the DNS can have this name: bytes beyond ASCII come from a local part (RFC 8616 section 4)."""
    return name.isascii() and all(0 < len(label) < 64 for label in name.split("."))


def _exchangers(records: Iterable[Record]) -> list[str]:
    """Return the hosts of an MX answer, in their order. Raises PermError."""
    exchangers = sorted(record for record in records if isinstance(record, MX))
    if len(exchangers) > MAX_NAMES:
        raise PermError(f"an mx has more than {MAX_NAMES} exchangers")
    return [exchanger.host.lower() for exchanger in exchangers if exchanger.host]


@lru_cache(maxsize=4096)  # the addresses of a domain come again for each of its clients
def _network(address: str, length: int) -> IPv4Network | IPv6Network:
    return ip_network(f"{address}/{length}", strict=False)
