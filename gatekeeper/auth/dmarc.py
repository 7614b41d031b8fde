# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC (RFC 9989): did anyone who answers for the domain in From vouch for this message, and if not, what then?

The organizational domain is found by the tree walk (section 4.10), without a list of public suffixes. DNS trouble is
`temperror`, unless what is known decides already. A From that names no single domain is `permerror`, never `pass`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gatekeeper.auth.author import from_domain
from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc_record import DmarcPolicy, DmarcRecord, find_record
from gatekeeper.auth.domains import is_within
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import DNSError, Resolver

__all__ = ["DmarcFinding", "DmarcPolicy", "DmarcResult", "check_dmarc", "discover", "from_domain"]

_MAX_LABELS = 8
"""A longer name is cut to one label less after the first question, so that no walk takes more than 8."""


class DmarcResult(StrEnum):
    """RFC 9989 section 9.4 (`none`: no policy applies); `permerror` is a From that names no single domain."""

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class DmarcFinding:
    """What came out. `domain` is that of From, `record_domain` the name whose record applies. `organizational` is
    empty where it made no difference and so was not looked for.

    `record` is that record, `record_policy` its `p=`, `published` what it says of this domain (`p`, `sp` or `np`),
    `policy` what is to be applied: `none` unless the result is `fail`, and a step milder if the domain is testing.
    `spf_aligned` and `dkim_aligned` say what passed.
    """

    result: DmarcResult
    domain: str = ""
    organizational: str = ""
    record_domain: str = ""
    policy: DmarcPolicy = DmarcPolicy.NONE
    published: DmarcPolicy = DmarcPolicy.NONE
    reason: str = ""
    spf_aligned: bool = False
    dkim_aligned: bool = False
    testing: bool = False
    record_policy: str = ""
    record: DmarcRecord | None = field(default=None, compare=False)


@dataclass(slots=True)
class _Walk:
    """One tree walk: the records on the way up, and whether DNS trouble ended it."""

    start: str
    records: list[tuple[str, DmarcRecord]] = field(default_factory=list)
    broken: bool = False

    @property
    def organizational(self) -> str:
        """The organizational domain of `start` (section 4.10.2)."""
        for name, record in self.records:
            if record.psd == "n":
                return name
            if record.psd == "y" and name != self.start:
                return _last_labels(self.start, name.count(".") + 2)
        return self.records[-1][0] if self.records else self.start

    def applicable(self) -> tuple[str, DmarcRecord] | None:
        """The record whose policy applies: at the domain, else at its organizational domain, else at its public
        suffix domain (section 4.10.1).
        """
        by_name = dict(self.records)
        suffixes = [name for name, record in self.records if record.psd == "y"]
        for name in (self.start, self.organizational, *suffixes):
            if name in by_name:
                return name, by_name[name]
        return None


async def check_dmarc(
    resolver: Resolver, headers: Sequence[Header], spf: SpfFinding, dkim: Sequence[DkimFinding]
) -> DmarcFinding:
    """The finding for a message with these fields. `spf` is the finding for MAIL FROM (for the null sender, that is
    the HELO identity). Nothing is raised.
    """
    author = from_domain(headers)
    if author.problem:
        return DmarcFinding(DmarcResult.PERMERROR, reason=author.problem)
    walks = _Walks(resolver)
    passed = (_passed(spf), _passed(*dkim))
    if passing := await walks.without_walking(author.domain, *passed):
        return passing
    walk = await walks.walk(author.domain)
    finding = DmarcFinding(DmarcResult.NONE, author.domain, walk.organizational)
    found = walk.applicable()
    if walk.broken and (found is None or found[0] != author.domain):
        return replace(finding, result=DmarcResult.TEMPERROR, reason="the DMARC record could not be looked up")
    if found is None:
        return replace(finding, reason=f"{author.domain} publishes no DMARC record")
    record_domain, record = found
    finding = replace(finding, record_domain=record_domain, record=record, testing=record.testing)
    if record.policy is None:
        return replace(finding, reason=f"the DMARC record of {record_domain} has no valid policy")
    finding = replace(finding, record_policy=record.policy)
    spf_aligned = await walks.any_aligned(walk, passed[0], record.strict_spf)
    dkim_aligned = await walks.any_aligned(walk, passed[1], record.strict_dkim)
    if spf_aligned or dkim_aligned:
        published = _published(author.domain, record_domain, record)
        return _pass(replace(finding, published=published), bool(spf_aligned), bool(dkim_aligned))
    try:
        exists = record.nonexistent is None or (await resolver.query(author.domain, "A")).exists
    except DNSError:
        return replace(finding, result=DmarcResult.TEMPERROR, reason=f"{author.domain} could not be looked up")
    published = _published(author.domain, record_domain, record, exists=exists)
    finding = replace(finding, published=published)
    if None in (spf_aligned, dkim_aligned) or _undecided(walk, record, spf, dkim):
        reason = "DNS trouble keeps it open whether SPF or DKIM passed for this domain"
        return replace(finding, result=DmarcResult.TEMPERROR, reason=reason)
    policy = published.lowered() if record.testing else published
    reason = f"neither SPF nor DKIM passed for {author.domain}"
    return replace(finding, result=DmarcResult.FAIL, policy=policy, reason=reason)


async def discover(resolver: Resolver, headers: Sequence[Header]) -> None:
    """Ask what `check_dmarc` will surely ask, so that a caching resolver knows it by then. Nothing is raised."""
    author = from_domain(headers)
    if author.domain:
        try:
            await resolver.query(f"_dmarc.{author.domain}", "TXT")
        except DNSError:
            pass


def _passed(*findings: SpfFinding | DkimFinding) -> list[str]:
    """The domains that passed."""
    return [one.domain for one in findings if one.result in (SpfResult.PASS, DkimResult.PASS) and one.domain]


def _pass(finding: DmarcFinding, spf_aligned: bool, dkim_aligned: bool) -> DmarcFinding:
    methods = " and ".join(name for name, yes in (("SPF", spf_aligned), ("DKIM", dkim_aligned)) if yes)
    return replace(
        finding,
        result=DmarcResult.PASS,
        reason=f"{methods} passed for {finding.domain}",
        spf_aligned=spf_aligned,
        dkim_aligned=dkim_aligned,
    )


def _published(domain: str, record_domain: str, record: DmarcRecord, *, exists: bool = True) -> DmarcPolicy:
    """The policy that the record has for `domain`, which does or does not exist in the DNS."""
    assert record.policy is not None
    if domain == record_domain:
        return record.policy
    if not exists and record.nonexistent is not None:
        return record.nonexistent
    return record.subdomains or record.policy


def _undecided(walk: _Walk, record: DmarcRecord, spf: SpfFinding, dkim: Sequence[DkimFinding]) -> bool:
    """True if something could not be checked that, had it passed, might have been aligned."""

    def might_align(domain: str, strict: bool) -> bool:
        return domain == walk.start if strict else is_within(domain, walk.organizational)

    return (spf.result is SpfResult.TEMPERROR and might_align(spf.domain, record.strict_spf)) or any(
        one.result is DkimResult.TEMPERROR and might_align(one.domain, record.strict_dkim) for one in dkim
    )


class _Walks:
    """Tree walks that ask for each record once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._records: dict[str, DmarcRecord | None] = {}

    async def walk(self, start: str) -> _Walk:
        """Walk from `start` to the top, or to a record that ends it (section 4.10)."""
        walk = _Walk(start)
        labels = start.count(".") + 1
        sizes = [labels, *range(min(labels, _MAX_LABELS) - 1, 0, -1)]
        try:
            for size in sizes:
                name = _last_labels(start, size)
                record = await self._at(name)
                if record is not None:
                    walk.records.append((name, record))
                    if record.psd == "n" or (record.psd == "y" and name != start):
                        break
        except DNSError:
            walk.broken = True
        return walk

    async def without_walking(self, author: str, spf: Sequence[str], dkim: Sequence[str]) -> DmarcFinding | None:
        """The finding for most mail: the author's domain has a record, and what passed has passed for that very name.

        Where the organizational domain is makes no difference then, so nobody above is asked: a name server of a top
        level that does not answer must not keep such mail waiting. None if it takes a walk to know.
        """
        if not (spf or dkim) or any(domains and author not in domains for domains in (spf, dkim)):
            return None
        try:
            record = await self._at(author)
        except DNSError:
            return None
        if record is None or record.policy is None:
            return None
        finding = DmarcFinding(
            DmarcResult.PASS,
            author,
            record_domain=author,
            record=record,
            published=record.policy,
            record_policy=record.policy,
            testing=record.testing,
        )
        return _pass(finding, author in spf, author in dkim)

    async def any_aligned(self, author: _Walk, domains: Sequence[str], strict: bool) -> bool | None:
        """True if one of `domains` is aligned with that of the author; None if DNS trouble keeps that from being
        known.
        """
        if author.start in domains:
            return True
        if strict:
            return False
        unknown = False
        for domain in dict.fromkeys(domains):
            if not author.broken and not is_within(domain, author.organizational):
                continue
            other = await self.walk(domain)
            if author.broken or other.broken:
                unknown = True
            elif other.organizational == author.organizational:
                return True
        return None if unknown else False

    async def _at(self, name: str) -> DmarcRecord | None:
        if name not in self._records:
            self._records[name] = find_record((await self._resolver.query(f"_dmarc.{name}", "TXT")).records)
        return self._records[name]


def _last_labels(name: str, count: int) -> str:
    return ".".join(name.split(".")[-count:])
