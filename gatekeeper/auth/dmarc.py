# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC (RFC 9989): whether SPF or DKIM passed for the domain in From, and what its policy asks for if not.

The organizational domain is found by the tree walk (section 4.10), without a list of public suffixes. Several records
at one name, be it the author's own, "are all discarded" (steps 2 and 6), and the walk goes on to its parent, where RFC
7489 and many verifiers end with `none`: a second record does not switch off the policy of the organization. A DNS error
is `temperror`, unless what is known suffices to decide.

Which domains From names says auth/author.py: all that a mail program could show. One is judged, however odd the form.
Of several each is judged as if it were alone, and the strictest policy of those that fail counts (section 11.5), so
that nobody gets a milder verdict by naming a second author. Where none fails it is `permerror`, as where From names no
domain at all, and never `pass` (section 5.3.1).
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gatekeeper.auth.author import Author, Named, author_of
from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc_record import DmarcPolicy, DmarcRecord, find_record
from gatekeeper.auth.domains import is_within
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import DNSError, RememberedOnly, Resolver

__all__ = [
    "DmarcFinding",
    "DmarcPolicy",
    "DmarcResult",
    "TreeWalk",
    "TreeWalks",
    "check_dmarc",
    "discover",
    "published_policy",
]

_MAX_LABELS = 8
"""After its first query, the walk up from a longer name goes on with 7 labels: it takes 8 queries at most."""


class DmarcResult(StrEnum):
    """Results of DMARC (RFC 9989 section 9.4).

    `none`: no policy applies; `permerror`: From does not name exactly one domain, and none of them fails.
    """

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class DmarcFinding:
    """The result of DMARC for one message.

    `domain` is that of From, `record_domain` the name whose record applies. `organizational` is the organizational
    domain, empty if it made no difference and so was not looked up.

    `record` is that record, `record_policy` its `p=`, `published` what it asks for this domain (`p`, `sp` or
    `np`), `policy` what is to be applied: `none` unless the result is `fail`, and one step milder if the domain is
    testing. `spf_aligned` and `dkim_aligned` say what passed. `authenticates`: something that is aligned not only
    passed, as the standard has it, but is proof of its domain (see auth/spf.py and DkimFinding).

    `named` is how many domains From names. Where they are several, and some fail, this is the finding about the one
    whose policy is the strictest, and `others` are those about the other ones that fail.
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
    authenticates: bool = False
    testing: bool = False
    record_policy: str = ""
    record: DmarcRecord | None = field(default=None, compare=False)
    named: Named = Named.ONE
    others: "tuple[DmarcFinding, ...]" = ()


@dataclass(slots=True)
class TreeWalk:
    """One tree walk: the records on the way up, and whether a DNS error ended it."""

    start: str
    records: list[tuple[str, DmarcRecord]] = field(default_factory=list)
    failed: bool = False

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
        """Return the record whose policy applies, with its name (section 4.10.1).

        It is that of the domain, else that of its organizational domain, else that of its public suffix domain.
        """
        by_name = dict(self.records)
        suffixes = [name for name, record in self.records if record.psd == "y"]
        for name in (self.start, self.organizational, *suffixes):
            if name in by_name:
                return name, by_name[name]
        return None


async def check_dmarc(
    resolver: Resolver,
    headers: Sequence[Header],
    spf: SpfFinding,
    dkim: Sequence[DkimFinding],
    judged: dict[str, DmarcFinding] | None = None,
) -> DmarcFinding:
    """Return the finding for a message with these header fields. Never raises.

    `spf` is the finding for MAIL FROM (for the null sender, that is the HELO identity). `judged` takes the findings
    about single domains as they come, for who cannot wait for all of them (`so_far`).
    """
    author = author_of(headers)
    judged = {} if judged is None else judged
    walks = TreeWalks(resolver)

    async def judge(domain: str) -> None:
        judged[domain] = await _judge(walks, domain, spf, dkim)

    if len(author.domains) == 1 or isinstance(resolver, RememberedOnly):
        for domain in author.domains:
            await judge(domain)
    else:  # all at once: a name server that does not answer must not keep another domain from being judged
        await asyncio.gather(*map(judge, author.domains))
    return _finding(author, judged)


def so_far(headers: Sequence[Header], judged: Mapping[str, DmarcFinding], late: str) -> DmarcFinding:
    """Return the finding for a message of whose domains these are `judged`, and the others `late`, in words."""
    author = author_of(headers)
    unknown = {domain: DmarcFinding(DmarcResult.TEMPERROR, domain, reason=late) for domain in author.domains}
    return _finding(author, unknown | dict(judged))


def _finding(author: Author, judged: Mapping[str, DmarcFinding]) -> DmarcFinding:
    """Return the finding for a message of this author, from those about its domains."""
    found = [judged[domain] for domain in author.domains]
    if author.named is Named.ONE:
        return found[0]
    failed = sorted((one for one in found if one.result is DmarcResult.FAIL), key=_strictness, reverse=True)
    if not failed:
        return DmarcFinding(DmarcResult.PERMERROR, reason=author.problem, named=author.named)
    reason = f"{failed[0].reason}; {author.problem}"
    return replace(failed[0], reason=reason, named=author.named, others=tuple(failed[1:]))


def _strictness(found: DmarcFinding) -> tuple[int, int]:
    return found.policy.strictness, found.published.strictness


async def _judge(walks: "TreeWalks", domain: str, spf: SpfFinding, dkim: Sequence[DkimFinding]) -> DmarcFinding:
    """Return the finding for a message whose author is in `domain`."""
    passed, proven = (_passed(spf), _passed(*dkim)), (_proven(spf), _proven(*dkim))
    if passing := await walks.pass_without_walking(domain, *passed):
        return replace(passing, authenticates=domain in (*proven[0], *proven[1]))
    walk = await walks.walk(domain)
    finding = DmarcFinding(DmarcResult.NONE, domain, walk.organizational)
    found = walk.applicable()
    if walk.failed and (found is None or found[0] != domain):
        return replace(finding, result=DmarcResult.TEMPERROR, reason="the DMARC record could not be looked up")
    if found is None:
        return replace(finding, reason=f"{domain} publishes no DMARC record")
    record_domain, record = found
    finding = replace(finding, record_domain=record_domain, record=record, testing=record.testing)
    if record.policy is None:
        return replace(finding, reason=f"the DMARC record of {record_domain} has no valid policy")
    finding = replace(finding, record_policy=record.policy)
    spf_aligned = await walks.any_aligned(walk, passed[0], record.strict_spf)
    dkim_aligned = await walks.any_aligned(walk, passed[1], record.strict_dkim)
    if spf_aligned or dkim_aligned:
        published = published_policy(domain, record_domain, record)
        proof = await walks.any_aligned(walk, proven[0], record.strict_spf) or (
            await walks.any_aligned(walk, proven[1], record.strict_dkim)
        )
        finding = replace(finding, published=published, authenticates=bool(proof))
        return _pass(finding, bool(spf_aligned), bool(dkim_aligned))
    try:
        exists = record.nonexistent is None or (await walks.resolver.query(domain, "A")).exists
    except DNSError:
        return replace(finding, result=DmarcResult.TEMPERROR, reason=f"{domain} could not be looked up")
    published = published_policy(domain, record_domain, record, exists=exists)
    finding = replace(finding, published=published)
    if None in (spf_aligned, dkim_aligned) or _undecided(walk, record, spf, dkim):
        reason = "because of DNS errors it is not known whether SPF or DKIM passed for this domain"
        return replace(finding, result=DmarcResult.TEMPERROR, reason=reason)
    policy = published.lowered() if record.testing else published
    reason = f"neither SPF nor DKIM passed for {domain}"
    return replace(finding, result=DmarcResult.FAIL, policy=policy, reason=reason)


async def discover(resolver: Resolver, headers: Sequence[Header]) -> None:
    """Make the queries that `check_dmarc` surely needs, so that a caching resolver has the answers. Never raises."""

    async def ask(domain: str) -> None:
        with suppress(DNSError):
            await resolver.query(f"_dmarc.{domain}", "TXT")

    domains = author_of(headers).domains
    if len(domains) == 1 or isinstance(resolver, RememberedOnly):
        for domain in domains:
            await ask(domain)
    else:
        await asyncio.gather(*map(ask, domains))


def _passed(*findings: SpfFinding | DkimFinding) -> list[str]:
    """Return the domains for which SPF or DKIM passed."""
    return [one.domain for one in findings if one.result in (SpfResult.PASS, DkimResult.PASS) and one.domain]


def _proven(*findings: SpfFinding | DkimFinding) -> list[str]:
    """Return the domains that SPF or DKIM proves."""
    return [one.domain for one in findings if one.authenticates and one.domain]


def _pass(finding: DmarcFinding, spf_aligned: bool, dkim_aligned: bool) -> DmarcFinding:
    methods = " and ".join(name for name, yes in (("SPF", spf_aligned), ("DKIM", dkim_aligned)) if yes)
    return replace(
        finding,
        result=DmarcResult.PASS,
        reason=f"{methods} passed for {finding.domain}",
        spf_aligned=spf_aligned,
        dkim_aligned=dkim_aligned,
    )


def published_policy(domain: str, record_domain: str, record: DmarcRecord, *, exists: bool = True) -> DmarcPolicy:
    """Return the policy that the record states for `domain`, which may or may not exist in the DNS."""
    assert record.policy is not None
    if domain == record_domain:
        return record.policy
    if not exists and record.nonexistent is not None:
        return record.nonexistent
    return record.subdomains or record.policy


def _undecided(walk: TreeWalk, record: DmarcRecord, spf: SpfFinding, dkim: Sequence[DkimFinding]) -> bool:
    """Return whether a check that ended in `temperror` might have passed with an aligned domain."""

    def might_align(domain: str, strict: bool) -> bool:
        return domain == walk.start if strict else is_within(domain, walk.organizational)

    return (spf.result is SpfResult.TEMPERROR and might_align(spf.domain, record.strict_spf)) or any(
        one.result is DkimResult.TEMPERROR and might_align(one.domain, record.strict_dkim) for one in dkim
    )


class TreeWalks:
    """Tree walks that look up each record only once; `known` are records that need no look-up, by their domain."""

    def __init__(self, resolver: Resolver, known: Mapping[str, DmarcRecord | None] = {}) -> None:
        self.resolver = resolver
        self._records = dict(known)

    async def walk(self, start: str) -> TreeWalk:
        """Walk from `start` to the top, or to a record that ends it (section 4.10)."""
        walk = TreeWalk(start)
        labels = start.count(".") + 1
        sizes = [labels, *range(min(labels, _MAX_LABELS) - 1, 0, -1)]
        try:
            for size in sizes:
                name = _last_labels(start, size)
                record = await self._record_at(name)
                if record is not None:
                    walk.records.append((name, record))
                    if record.psd == "n" or (record.psd == "y" and name != start):
                        break
        except DNSError:
            walk.failed = True
        return walk

    async def pass_without_walking(self, author: str, spf: Sequence[str], dkim: Sequence[str]) -> DmarcFinding | None:
        """Return the finding for most mail: the author's domain has a record, and what passed did so for that name.

        The organizational domain makes no difference then, so no parent domain is queried: a top-level name server that
        does not answer must not delay such mail. None if it takes a walk to know.
        """
        if not (spf or dkim) or any(domains and author not in domains for domains in (spf, dkim)):
            return None
        try:
            record = await self._record_at(author)
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

    async def any_aligned(self, author: TreeWalk, domains: Sequence[str], strict: bool) -> bool | None:
        """Return whether one of `domains` is aligned with that of the author; None if DNS errors leave that unknown.

        `strict` is strict alignment: only the author's very domain is aligned.
        """
        if author.start in domains:
            return True
        if strict:
            return False
        unknown = False
        for domain in dict.fromkeys(domains):
            if not author.failed and not is_within(domain, author.organizational):
                continue
            other = await self.walk(domain)
            if author.failed or other.failed:
                unknown = True
            elif other.organizational == author.organizational:
                return True
        return None if unknown else False

    async def _record_at(self, name: str) -> DmarcRecord | None:
        if name not in self._records:
            self._records[name] = find_record((await self.resolver.query(f"_dmarc.{name}", "TXT")).records)
        return self._records[name]


def _last_labels(name: str, count: int) -> str:
    return ".".join(name.split(".")[-count:])
