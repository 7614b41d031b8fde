# SPDX-License-Identifier: GPL-3.0-or-later
"""SPF (RFC 7208): whether a client may send for a domain, evaluated by pyspf with answers from our own resolver.

pyspf never waits here: its DNS method answers from what was gathered for this evaluation or is in the cache, or raises
AnswersMissing; then the answers are awaited, and the evaluation runs again. The number of passes and the time are
bounded. A result that depends on no macro is cached with its answers, for the next message from the same client and
domain. What pyspf lacks is done around it: invalid addresses, U-labels, the `exp=` text, records designed to take a
long time, and exceptions of its own.

**A pass is not yet an identity.** It says that the domain lets the client send, and a domain may let anybody. Reports,
DMARC and Authentication-Results want the result as the RFCs define it; whoever takes the domain for the client's, or
for proof of the sender, asks `SpfFinding.authenticates`. That is so if the directive that let the client in, through
however many `include` and `redirect`, names it by its network: `ip4`, `ip6`, or the addresses of an `a` or `mx`. And
all networks of the records that were read up to there are together smaller than MAX_SPACE, so that it makes no
difference whether everybody is let in by `all`, by one large network or by many that lie side by side. Not by

- `all`;
- `exists`, which names nobody: with a wildcard in the DNS it is the same as `all`, whatever macros are in it, and a
  name server that sees the client's address in the name can say yes to anybody;
- any term or record whose name the client had a say in (macros of its address, name, HELO or sender), for that reason;
- `ptr`: the customers of a provider, of which RFC 7208 section 5.5 advises against anyway.

So large senders that list their clients by such macros do not authenticate by SPF here. They lose nothing but a
shortcut. Known limit: a domain whose DNS answers change from minute to minute can let in a few at a time.
"""

import asyncio
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Literal

import spf

from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.request import Address
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import MX, Answer, DNSError, Record, Resolver, known_answer, query_or_error

logger = logging.getLogger(__name__)

TIME_LIMIT = 20.0
"""Seconds for one evaluation, answers included (RFC 7208 section 4.6.4 recommends at least 20)."""
_MAX_PASSES = 60  # ten terms of at most three queries each, the explanation, and some to spare
_MAX_RECORD = 8192  # bytes; pyspf takes quadratic time over repeated modifiers
_MAX_TERM = 512  # characters of one domain-spec; its regular expressions take quadratic time over those
_MAX_EXPLANATION = 1024
_MAX_NAMES = 10  # RFC 7208 section 4.6.4: of an MX or PTR answer

MAX_SPACE = {4: 2.0**-7, 6: 2.0**-18}
"""The share of all addresses, by IP version, that a domain must stay below for its pass to authenticate.

It is that of two networks of the largest size that one organisation holds, a /8 and a /19 (DTAG and Orange have an
IPv6 /19, and the /8 of Apple or Ford are from the time of classes): one passes even if its owner lists others too. The
large mail providers need much less: all of Microsoft 365 is half a million addresses, as are Google's, some 2**-13.
"""
_CLIENTS_WORDS = re.compile(r"%\{[slpihc]", re.IGNORECASE)
"""A macro that the client or whoever sends through it has a say in: sender, HELO, its address and its name."""
_RECORD = re.compile(rb"v=spf1(?: |$)", re.IGNORECASE)

Identity = Literal["mailfrom", "helo"]


class SpfResult(StrEnum):
    """Results of SPF (RFC 7208 section 2.6)."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class SpfFinding:
    """The result for one identity.

    `domain` is the one that was checked, `reason` a sentence of ours, and `explanation` the domain's own words for a
    `fail` (empty if it has none): printable ASCII on one line. `mechanism` is the term of the domain's own record that
    matched (`ip4:192.0.2.0/24`, `include:…`), empty if none did. `authenticates`: it is a `pass` that identifies the
    client (see above).
    """

    result: SpfResult
    identity: Identity = "mailfrom"
    domain: str = ""
    explanation: str = ""
    reason: str = ""
    mechanism: str = ""
    authenticates: bool = False


async def check_mail_from(
    resolver: Resolver, *, address: Address | None, helo: str, sender: str, receiver: str
) -> SpfFinding:
    """Check the MAIL FROM identity; for the null sender that is `postmaster@helo` (RFC 7208 section 2.4).

    `receiver` is our host name, for the `%{r}` macro. A DNS error is `temperror`. Never raises.
    """
    if not sender:
        return await check_helo(resolver, address=address, helo=helo, receiver=receiver)
    local, _, domain = sender.rpartition("@")
    return await _check(resolver, "mailfrom", address, local or "postmaster", domain, helo, receiver)


async def check_helo(resolver: Resolver, *, address: Address | None, helo: str, receiver: str) -> SpfFinding:
    """Check the HELO identity (RFC 7208 section 2.3). A DNS error is `temperror`. Never raises."""
    return await _check(resolver, "helo", address, "postmaster", helo, helo, receiver)


async def _check(
    resolver: Resolver, identity: Identity, address: Address | None, local: str, domain: str, helo: str, receiver: str
) -> SpfFinding:
    name = normal_domain(domain.removesuffix("."))
    nothing = SpfFinding(SpfResult.NONE, identity, name)
    if address is None:
        return replace(nothing, reason="the client's address is not known")
    # RFC 7208 section 4.3: neither a literal, nor a name of one label, nor a malformed one has a policy
    if "." not in name or name.rpartition(".")[2].isdigit():
        return replace(
            nothing, reason=f"{printable(domain, 80) or 'the empty name'} is not a domain that could have an SPF record"
        )
    if cached := _cached_outcome(resolver, address, name):
        return SpfFinding(cached[0], identity, name, *cached[1:])
    answer = await query_or_error(resolver, name, "TXT")
    if isinstance(answer, Answer) and not any(
        isinstance(text, bytes) and _RECORD.match(text) for text in answer.records
    ):
        return replace(nothing, reason=f"{name} publishes no SPF record")  # the most common case, and pyspf is slow
    evaluation = _Evaluation(address, local, name, normal_domain(helo) or "unknown", receiver, resolver)
    evaluation.answers[name, "TXT"] = answer
    try:
        result, explanation, reason = evaluation.outcome()
    except AnswersMissing as missing:
        try:
            async with asyncio.timeout(TIME_LIMIT):
                result, explanation, reason = await _fetch_and_evaluate(resolver, evaluation, missing)
        except TimeoutError:
            result, explanation, reason = SpfResult.TEMPERROR, "", "DNS took too long"
    mechanism = printable(evaluation.mechanism or "", 200)
    authenticates = result is SpfResult.PASS and evaluation.names_client
    outcome = (result, explanation, printable(reason, 200), mechanism, authenticates)
    _cache_outcome(outcome, evaluation, address)
    return SpfFinding(result, identity, name, *outcome[1:])


_Outcome = tuple[SpfResult, str, str, str, bool]
_outcomes: dict[tuple[Address, str], tuple[_Outcome, dict[tuple[str, str], Answer | DNSError]]] = {}
_NO_OUTCOME: tuple[None, dict[tuple[str, str], Answer | DNSError]] = (None, {})
_MAX_OUTCOMES = 2048
_MAX_CACHED = 4096  # bytes of records that a cached outcome may keep in memory


def _cached_outcome(resolver: Resolver, address: Address, name: str) -> _Outcome | None:
    """Return the earlier outcome for this client and domain, if all its answers are still those in `resolver`'s cache.

    This takes 5 µs, pyspf 250 µs.
    """
    outcome, answers = _outcomes.get((address, name), _NO_OUTCOME)
    for (queried, type), answer in answers.items():
        if known_answer(resolver, queried, type) is not answer:
            return None
    return outcome


def _cache_outcome(outcome: _Outcome, evaluation: "_Evaluation", address: Address) -> None:
    """Cache an outcome that depends on nothing but client, domain and DNS."""
    answers = evaluation.answers
    size = sum(len(text) for answer in answers.values() if isinstance(answer, Answer) for text in answer.records)
    if evaluation.has_macros or size > _MAX_CACHED or outcome[0] is SpfResult.TEMPERROR:
        return
    if len(_outcomes) >= _MAX_OUTCOMES:
        _outcomes.clear()
    _outcomes[address, evaluation.o] = outcome, answers


class AnswersMissing(Exception):
    """The answers to these questions are needed before the evaluation can go on."""

    def __init__(self, *questions: tuple[str, str]) -> None:
        self.questions = questions


class _NameByClient(str):
    """A domain that the client had a say in."""


class _Bits(int):
    """The prefix length of a term that lets clients in, by a name that no client had a say in."""

    counted = False
    """Whether its network is part of the sum already; the addresses of an `a` or `mx` are not known before."""


class _DeferredExplanation(str):
    """The argument of an `exp=` modifier, whose text is fetched only if the result is `fail`."""

    domain: str


async def _fetch_and_evaluate(
    resolver: Resolver, evaluation: "_Evaluation", missing: AnswersMissing
) -> tuple[SpfResult, str, str]:
    """Return the outcome of `evaluation` once it has all its answers."""
    for _ in range(_MAX_PASSES):
        await evaluation.gather(resolver, missing.questions)
        try:
            return evaluation.outcome()
        except AnswersMissing as more:
            missing = more
    return SpfResult.PERMERROR, "", f"the record of {evaluation.o} needs too many look-ups"


def _reason(evaluation: "_Evaluation", result: str, _: object, text: object) -> str:
    client, domain, mechanism = evaluation.c, evaluation.o, evaluation.mechanism
    match result:
        case "none":
            return f"{domain} publishes no SPF record"
        case "pass":
            return f"{domain} lets {client} send: {mechanism}"
        case "fail" | "softfail" | "neutral" if mechanism:
            says = {
                "fail": "does not let",
                "softfail": "would rather not let",
                "neutral": "does not say whether to let",
            }
            return f"{domain} {says[result]} {client} send: {mechanism}"
        case "neutral":
            return f"nothing in the record of {domain} is about {client}"
    return str(text)


class _Evaluation(spf.query):  # type: ignore[misc]  # pyspf has no types
    """pyspf with its DNS methods replaced and its costs bounded."""

    def __init__(self, address: Address, local: str, domain: str, helo: str, receiver: str, resolver: Resolver) -> None:
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or IPv6Address(int(address))  # without a zone index
        super().__init__(str(address), f"{local}@{domain}", helo, receiver=receiver, querytime=TIME_LIMIT)
        # pyspf splits at the first `@`, which may be part of a quoted local part
        self.l, self.o, self.d = local, domain, domain
        self.answers: dict[tuple[str, str], Answer | DNSError] = {}
        self.has_macros = False
        self.names_client = False  # whether the last record that passed let the client in by its network
        self._space = 0.0  # the share of all addresses that was let in so far
        self._resolver = resolver
        self._found: tuple[str, Any, Any] | None = None

    def outcome(self) -> tuple[SpfResult, str, str]:
        """Return (result, explanation, reason) by the answers gathered so far. Raises AnswersMissing."""
        try:
            if self._found is None:
                self.exps = dict(self.defexps)  # a pass that was cut short may have changed it
                self.names_client, self._space = False, 0.0
                self._found = self.check()
            explanation = self.explanation(self._found[2]) if self._found[0] == "fail" else ""
        except AnswersMissing:
            raise
        except Exception as error:  # noqa: BLE001 (records that pyspf does not expect: ValueError and others)
            logger.warning("pyspf failed on the record of %s: %s", self.o, type(error).__name__)
            return SpfResult.PERMERROR, "", f"the record of {self.o} cannot be evaluated"
        return SpfResult(self._found[0]), explanation, _reason(self, *self._found)

    async def gather(self, resolver: Resolver, questions: tuple[tuple[str, str], ...]) -> None:
        """Look up what is missing, all at once; a DNS error is kept as the answer."""
        if len(questions) == 1:  # the usual case, and a task costs more than a cached answer
            self.answers[questions[0]] = await query_or_error(resolver, *questions[0])
        else:
            answers = await asyncio.gather(*(query_or_error(resolver, *question) for question in questions))
            self.answers.update(zip(questions, answers, strict=True))

    def explanation(self, text: object) -> str:
        """Return the domain's explanation, expanded; empty if there is none or it fails (RFC 7208 section 6.2)."""
        if not isinstance(text, _DeferredExplanation):
            return ""
        here, self.d = self.d, text.domain
        try:
            found = super().get_explanation(str(text))
        except (spf.TempError, spf.PermError, ValueError):
            return ""
        finally:
            self.d = here
        return printable(found) if found else ""

    # What follows replaces methods of pyspf.

    def dns(
        self,
        name: str,
        qtype: str,
        cnames: object = None,  # noqa: ARG002 (pyspf's; our resolver follows CNAMEs)
        ignore_void: bool = False,
    ) -> list[Any]:
        """Return the records, from the answers gathered. Counts void look-ups (RFC 7208 section 4.6.4)."""
        name = name.lower().removesuffix(".")
        # A name with bytes beyond ASCII comes from a local part, and never matches (RFC 8616 section 4).
        if not name.isascii() or not all(0 < len(label) < 64 for label in name.split(".")):
            return []
        answer = self._answer(name, qtype)
        if answer is None:
            raise AnswersMissing((name, qtype))
        if isinstance(answer, DNSError):
            raise spf.TempError(f"{qtype} of {printable(name, 80)} could not be looked up")
        if not answer.records and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > spf.MAX_VOID_LOOKUPS:
                raise spf.PermError(f"more than {spf.MAX_VOID_LOOKUPS} look-ups found nothing")
        return [_as_pyspf(record) for record in answer.records]

    def _answer(self, name: str, qtype: str) -> Answer | DNSError | None:
        """Return the answer that was gathered or is cached; it stays the same during this evaluation."""
        answer = self.answers.get((name, qtype)) or known_answer(self._resolver, name, qtype)
        if answer is not None:
            self.answers[name, qtype] = answer
        return answer

    def check0(self, spf: str, recursion: int) -> tuple[Any, ...]:
        """Evaluate one record, which is included or redirected to if it is not the first."""
        self.names_client = False
        found: tuple[Any, ...] = super().check0(spf, recursion)
        if found[0] != "pass" or isinstance(self.d, _NameByClient):
            self.names_client = False
        return found

    def validate_mechanism(self, mech: str) -> tuple[str, str, str, int, Any]:
        """Parse a term; all terms of a record are parsed before the first is evaluated."""
        mech, name, arg, bits, result = super().validate_mechanism(mech)
        if result == "pass" and not _CLIENTS_WORDS.search(mech):
            bits = _Bits(bits)
            bits.counted = name in ("ip4", "ip6")
            if name == f"ip{self.ipaddr.version}":
                self._space += 2.0**-bits
        return mech, name, arg, bits, result

    def cidrmatch(self, ipaddrs: Iterable[str], n: int) -> bool:
        """Return whether a term with the prefix length `n` and these addresses matches.

        Raises PermError unless all of them are valid.
        """
        addresses = tuple(ipaddrs)
        matches = self._is_among(addresses, n)
        if isinstance(n, _Bits):
            self._space += 0.0 if n.counted else len(addresses) * 2.0**-n
            self.names_client = matches and self._space < MAX_SPACE[self.ipaddr.version]
        return matches

    def _is_among(self, ipaddrs: Iterable[str], n: int) -> bool:
        """Return whether the client shares its first `n` bits with one of the addresses.

        Raises PermError unless all of them are valid.
        """
        try:
            networks = [_network(address, n) for address in ipaddrs]
        except ValueError as error:
            raise spf.PermError(str(error)) from None
        return any(self.ipaddr in network for network in networks)

    def dns_mx(self, domainname: str) -> list[str]:
        """Return the addresses of the mail exchangers, looked up all at once."""
        exchangers = self.dns(domainname, "MX")
        if len(exchangers) > _MAX_NAMES:
            raise spf.PermError(f"more than {_MAX_NAMES} mail exchangers")
        hosts = [host for _, host in sorted(exchangers) if host]
        self._require_addresses(hosts)
        return [address for host in hosts for address in self.dns_a(host, self.A)]

    def validated_ptrs(self) -> list[str]:
        """Return the names of the client that resolve to it; a DNS error means none (RFC 7208 section 5.5)."""
        try:
            names: list[str] = self.dns_ptr(self.i)[:_MAX_NAMES]
        except spf.TempError:
            return []
        self._require_addresses(names)
        return [name for name in names if self._resolves_to_client(name)]

    def _resolves_to_client(self, name: str) -> bool:
        try:
            return self._is_among(self.dns_a(name, self.A), self.cidrmax)
        except spf.TempError:
            return False

    def _require_addresses(self, hosts: list[str]) -> None:
        """Raise AnswersMissing for all addresses of `hosts` not known yet, not for one after the other."""
        wanted = dict.fromkeys((host.lower().removesuffix("."), self.A) for host in hosts)
        missing = [question for question in wanted if question[0].isascii() and self._answer(*question) is None]
        if missing:
            raise AnswersMissing(*missing)

    def dns_txt(self, domainname: str, rr: str = "TXT", ignore_void: bool = False) -> list[bytes]:
        """Return the TXT records. Raises PermError for one that would take pyspf too long."""
        records: list[bytes] = super().dns_txt(domainname, rr, ignore_void)
        if any(len(record) > _MAX_RECORD and spf.RE_SPF.match(record) for record in records):
            raise spf.PermError(f"the record of {printable(domainname, 80)} is longer than {_MAX_RECORD} bytes")
        return records

    def get_explanation(self, spec: str) -> _DeferredExplanation:
        """Defer the explanation: most results are not `fail`."""
        deferred = _DeferredExplanation(spec)
        deferred.domain = self.d
        return deferred

    def expand_domain(self, arg: str) -> str:
        """Check and expand a domain-spec."""
        if len(arg) > _MAX_TERM:
            raise spf.PermError("a term is too long")
        expanded: str = super().expand_domain(arg)
        return _NameByClient(expanded) if _CLIENTS_WORDS.search(arg) else expanded

    def expand(self, s: str, stripdot: bool = True) -> str:
        """Expand macros."""
        if "%" in s:
            self.has_macros = True
            if len(s) > _MAX_EXPLANATION:
                raise spf.PermError("a text with macros is too long")
        expanded: str = super().expand(s, stripdot)
        return expanded


@lru_cache(maxsize=4096)  # a domain's networks are parsed for each of its clients: a third of an evaluation
def _network(address: str, bits: int) -> IPv4Network | IPv6Network:
    return ip_network(address).supernet(new_prefix=bits)


def _as_pyspf(record: Record) -> str | tuple[bytes] | tuple[int, str]:
    """Return a record in the form that pyspf expects from its DNS library."""
    match record:
        case MX():
            return (record.preference, record.host)
        case bytes():
            return (record,)
    return record
