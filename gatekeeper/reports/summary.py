# SPDX-License-Identifier: GPL-3.0-or-later
"""Summaries of aggregate reports: who sends as us, what fails and why, and whether a stricter policy is safe.

The usual progression is none → quarantine → reject, one step at a time, each after two weeks of reports. What decides
is mail that fails and is probably wanted: from a service that authenticates as itself and not as us, and from addresses
that also send mail that passes. Mail without any authentication may be forged, which is what the policy is for; a
server of ours without SPF and DKIM looks the same, so the largest sources of such mail are named.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from gatekeeper.auth.domains import is_within
from gatekeeper.reports.report import Report, ReportRow

MINIMUM_DAYS = 14
"""Days of reports before a stricter policy is called safe: services that send once a month need even more."""
TOLERATED = 0.01
"""The share of failing mail that is probably wanted, up to which a stricter policy is called safe."""
_MAX_SOURCES = 10  # that are named, of each kind

_NEXT = {"none": "quarantine", "": "quarantine", "quarantine": "reject"}


class SourceKind(StrEnum):
    """Why a message failed, as far as a report can tell."""

    SERVICE = "service"
    """It authenticates, but as another domain: a service that was never told to use ours, or a forwarder."""
    BROKEN = "broken"
    """There is a signature of ours that does not verify: a mailing list or a forwarder changed the message."""
    OURS = "ours"
    """Nothing authenticates, but the same address sends mail that passes: a server of ours that signs only some."""
    FORWARDED = "forwarded"
    """The receiver itself says that it was forwarded, came from a mailing list, or is trusted."""
    STRANGER = "stranger"
    """Nothing authenticates: forged, or a server of ours without SPF and DKIM."""


@dataclass(frozen=True, slots=True)
class Source:
    """A sender: an address, or the domain that it authenticated as, with its number of messages."""

    name: str
    count: int


@dataclass(slots=True)
class Summary:
    """All reports on one domain."""

    domain: str
    reports: int = 0
    reporters: set[str] = field(default_factory=set)
    begin: datetime | None = None
    end: datetime | None = None
    policy: str = ""
    total: int = 0
    spf: int = 0
    dkim: int = 0
    passed: int = 0
    dispositions: Counter[str] = field(default_factory=Counter)
    failed: dict[SourceKind, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @property
    def days(self) -> float:
        """The period that the reports cover, in days."""
        return (self.end - self.begin).total_seconds() / 86400 if self.begin and self.end else 0.0

    def count(self, *kinds: SourceKind) -> int:
        """Return how many messages failed for these reasons."""
        return sum(self.failed[kind].total() for kind in kinds if kind in self.failed)

    @property
    def wanted(self) -> int:
        """Failing messages that are probably wanted, which a stricter policy would hurt."""
        return self.count(SourceKind.SERVICE, SourceKind.BROKEN, SourceKind.OURS)

    def sources(self, kind: SourceKind) -> list[Source]:
        """Return the largest sources of one kind."""
        found = self.failed.get(kind, Counter())
        return [Source(name, count) for name, count in found.most_common(_MAX_SOURCES)]


def summarise(reports: Iterable[Report]) -> list[Summary]:
    """Return a summary for each domain, those with most mail first. Duplicate reports count once."""
    by_domain: dict[str, dict[tuple[str, str, datetime], Report]] = defaultdict(dict)
    for report in reports:
        by_domain[report.domain][report.reporter, report.report_id, report.begin] = report
    summaries = [_summary(domain, list(found.values())) for domain, found in by_domain.items()]
    return sorted(summaries, key=lambda summary: (-summary.total, summary.domain))


def _summary(domain: str, reports: Sequence[Report]) -> Summary:
    summary = Summary(domain)
    passing = {row.source for report in reports for row in report.rows if row.spf or row.dkim}
    for report in sorted(reports, key=lambda report: report.end):
        summary.reports += 1
        summary.reporters.add(report.reporter)
        summary.begin = min(summary.begin or report.begin, report.begin)
        summary.end = max(summary.end or report.end, report.end)
        summary.policy = report.policy
        for row in report.rows:
            _add(summary, row, passing)
    return summary


def _add(summary: Summary, row: ReportRow, passing: set[str]) -> None:
    summary.total += row.count
    summary.spf += row.count * row.spf
    summary.dkim += row.count * row.dkim
    summary.dispositions[row.disposition] += row.count
    if row.spf or row.dkim:
        summary.passed += row.count
        return
    kind, name = _classify(row, row.header_from or summary.domain, passing)
    summary.failed[kind][name] += row.count


def _classify(row: ReportRow, domain: str, passing: set[str]) -> tuple[SourceKind, str]:
    others = [one.domain for one in row.auth_results if one.result == "pass" and one.domain]
    if {"forwarded", "mailing_list", "trusted_forwarder"} & set(row.reasons):
        return SourceKind.FORWARDED, others[0] if others else row.source
    if any(one.method == "dkim" and is_within(one.domain, domain) for one in row.auth_results):
        return SourceKind.BROKEN, others[0] if others else row.source
    if others:
        return SourceKind.SERVICE, others[0]
    return (SourceKind.OURS if row.source in passing else SourceKind.STRANGER), row.source


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether `policy`, the next stricter one, is safe. It is empty if the strictest one is published already."""

    policy: str
    safe: bool
    reasons: tuple[str, ...]


def advise(summary: Summary) -> Advice:
    """Recommend what to do next about the domain's policy, with the reasons."""
    next_policy = _NEXT.get(summary.policy, "")
    share = summary.wanted / summary.total if summary.total else 0.0
    reasons = []
    if not summary.total:
        reasons.append("the reports contain no mail at all")
    if summary.days < MINIMUM_DAYS:
        reasons.append(f"they cover {summary.days:.0f} days; wait for {MINIMUM_DAYS}")
    if share > TOLERATED:
        reasons.append(
            f"{share:.1%} of the mail fails and is probably wanted; see below what to fix, and aim for {TOLERATED:.0%}"
        )
    if summary.dkim < summary.total * 0.5 and summary.total:
        reasons.append("most mail passes by SPF alone, which forwarding breaks: sign it with DKIM first")
    return Advice(next_policy, not reasons, tuple(reasons))


_REMEDIES = {
    SourceKind.SERVICE: "authenticate as somebody else: have them sign with your domain (DKIM), or let them go "
    "on if they forward",
    SourceKind.BROKEN: "carry a signature of yours that no longer verifies: mailing lists and forwarders, or a gateway "
    "that changes mail after it is signed",
    SourceKind.OURS: "come from addresses that also send mail that passes: sign everything there",
    SourceKind.FORWARDED: "were forwarded, as the receivers say: nothing to fix",
    SourceKind.STRANGER: "have no authentication: forged, unless you know an address here as one of yours",
}


def sentences(summary: Summary) -> Iterator[str]:
    """Yield the summary as lines for people."""
    begin, end = summary.begin, summary.end
    dates = f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}" if begin and end else "no dates"
    yield f"{summary.domain}: {_plural(summary.total, 'message')}, {dates}, published policy {summary.policy or 'none'}"
    yield f"  {_plural(summary.reports, 'report')} by {', '.join(sorted(summary.reporters)[:8])}"
    if not summary.total:
        return
    for what, count in (("DMARC passed", summary.passed), ("by SPF", summary.spf), ("by DKIM", summary.dkim)):
        yield f"  {what:13} {count:9}  {count / summary.total:6.1%}"
    for kind in SourceKind:
        if count := summary.count(kind):
            yield f"  {_plural(count, 'message')} {_REMEDIES[kind]}"
            for source in summary.sources(kind):
                yield f"    {source.count:9}  {source.name}"
    yield from _advice(summary)


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the summary for programs."""
    advice = advise(summary)
    return {
        "domain": summary.domain,
        "policy": summary.policy,
        "begin": summary.begin,
        "end": summary.end,
        "reports": summary.reports,
        "reporters": sorted(summary.reporters),
        "messages": summary.total,
        "passed": summary.passed,
        "spf": summary.spf,
        "dkim": summary.dkim,
        "dispositions": dict(summary.dispositions),
        "failed": {
            kind: [asdict(source) for source in summary.sources(kind)] for kind in SourceKind if summary.count(kind)
        },
        "next_policy": advice.policy,
        "safe": advice.safe,
        "reasons": advice.reasons,
    }


def _advice(summary: Summary) -> Iterator[str]:
    advice = advise(summary)
    if not advice.policy:
        yield f"  p={summary.policy} is the strictest policy: keep reading reports"
    elif advice.safe:
        yield f"  p={advice.policy} is safe to publish next"
    else:
        yield f"  p={advice.policy} is not safe yet: {'; '.join(advice.reasons)}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
