# SPDX-License-Identifier: GPL-3.0-or-later
"""Aggregate reports summed up for a decision: who sends as us, what fails and why, and is the next policy safe?

The usual progression is none → quarantine → reject, a step at a time, each after the mail of two weeks has been seen.
What decides is mail that fails and is probably wanted: from a service that authenticates as itself and not as us, and
from addresses that also send mail that passes. Mail that authenticates as nobody may be forged, which is what the
policy is for; a server of ours without SPF and DKIM looks the same, so its largest sources are named.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from gatekeeper.auth.domains import is_within
from gatekeeper.reports.aggregate import Report, ReportRow

MINIMUM_DAYS = 14
"""Of mail, before a stricter policy is called safe: services that send once a month need longer still."""
TOLERATED = 0.01
"""The share of failing mail that is probably wanted, up to which a stricter policy is called safe."""
_NAMED = 10  # sources of each kind that are named

_NEXT = {"none": "quarantine", "": "quarantine", "quarantine": "reject"}


class SourceKind(StrEnum):
    """Why a message failed, as far as a report can tell."""

    SERVICE = "service"
    """It authenticates, but as another domain: a service that was never told to use ours, or a forwarder."""
    BROKEN = "broken"
    """Our signature is there and does not verify: a mailing list or a forwarder changed the message."""
    OURS = "ours"
    """Nothing authenticates, but the same address sends mail that passes: a server of ours that signs only some."""
    FORWARDED = "forwarded"
    """The receiver itself says that it was forwarded, or came from a list, or is trusted."""
    STRANGER = "stranger"
    """Nothing authenticates: forged, or a server of ours that does neither SPF nor DKIM."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who sent: an address, or the domain that it authenticated as; with the number of messages."""

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
        """How long the reports cover, in days."""
        return (self.end - self.begin).total_seconds() / 86400 if self.begin and self.end else 0.0

    def count(self, *kinds: SourceKind) -> int:
        """Messages that failed for one of these reasons."""
        return sum(self.failed[kind].total() for kind in kinds if kind in self.failed)

    @property
    def wanted(self) -> int:
        """Failing mail that a stricter policy would probably hurt."""
        return self.count(SourceKind.SERVICE, SourceKind.BROKEN, SourceKind.OURS)

    def sources(self, kind: SourceKind) -> list[Source]:
        """The largest sources of one kind."""
        found = self.failed.get(kind, Counter())
        return [Source(name, count) for name, count in found.most_common(_NAMED)]


def summarise(reports: Iterable[Report]) -> list[Summary]:
    """A summary for each domain, those with most mail first. The same report, read twice, counts once."""
    by_domain: dict[str, dict[tuple[str, str, datetime], Report]] = defaultdict(dict)
    for report in reports:
        by_domain[report.domain][report.reporter, report.number, report.begin] = report
    summaries = [_summary(domain, list(found.values())) for domain, found in by_domain.items()]
    return sorted(summaries, key=lambda summary: (-summary.total, summary.domain))


def _summary(domain: str, reports: Sequence[Report]) -> Summary:
    summary = Summary(domain)
    good = {row.source for report in reports for row in report.rows if row.spf or row.dkim}
    for report in sorted(reports, key=lambda report: report.end):
        summary.reports += 1
        summary.reporters.add(report.reporter)
        summary.begin = min(summary.begin or report.begin, report.begin)
        summary.end = max(summary.end or report.end, report.end)
        summary.policy = report.policy
        for row in report.rows:
            _add(summary, row, good)
    return summary


def _add(summary: Summary, row: ReportRow, good: set[str]) -> None:
    summary.total += row.count
    summary.spf += row.count * row.spf
    summary.dkim += row.count * row.dkim
    summary.dispositions[row.disposition] += row.count
    if row.spf or row.dkim:
        summary.passed += row.count
        return
    kind, name = _why(row, row.header_from or summary.domain, good)
    summary.failed[kind][name] += row.count


def _why(row: ReportRow, domain: str, good: set[str]) -> tuple[SourceKind, str]:
    others = [one.domain for one in row.found if one.result == "pass" and one.domain]
    if {"forwarded", "mailing_list", "trusted_forwarder"} & set(row.reasons):
        return SourceKind.FORWARDED, others[0] if others else row.source
    if any(one.method == "dkim" and is_within(one.domain, domain) for one in row.found):
        return SourceKind.BROKEN, others[0] if others else row.source
    if others:
        return SourceKind.SERVICE, others[0]
    return (SourceKind.OURS if row.source in good else SourceKind.STRANGER), row.source


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether the next policy is safe. `policy` is empty if the strictest one is published already."""

    policy: str
    safe: bool
    reasons: tuple[str, ...]


def advise(summary: Summary) -> Advice:
    """What to do next about the domain's policy, and why."""
    following = _NEXT.get(summary.policy, "")
    share = summary.wanted / summary.total if summary.total else 0.0
    reasons = []
    if not summary.total:
        reasons.append("the reports tell of no mail at all")
    if summary.days < MINIMUM_DAYS:
        reasons.append(f"they cover {summary.days:.0f} days; wait for {MINIMUM_DAYS}")
    if share > TOLERATED:
        reasons.append(
            f"{share:.1%} of the mail fails and is probably wanted; see below what to mend, and aim at {TOLERATED:.0%}"
        )
    if summary.dkim < summary.total * 0.5 and summary.total:
        reasons.append("most mail passes by SPF alone, which forwarding breaks: sign it with DKIM first")
    return Advice(following, not reasons, tuple(reasons))


_MEND = {
    SourceKind.SERVICE: "authenticate as somebody else: have them sign with your domain (DKIM), or let them go "
    "on if they forward",
    SourceKind.BROKEN: "carry a signature of yours that no longer verifies: mailing lists and forwarders, or a gateway "
    "that changes mail after it is signed",
    SourceKind.OURS: "come from addresses that also send mail that passes: sign everything there",
    SourceKind.FORWARDED: "were forwarded, as the receivers say: nothing to mend",
    SourceKind.STRANGER: "authenticate as nobody: forged, unless you know an address here as one of yours",
}


def sentences(summary: Summary) -> Iterator[str]:
    """The summary for a person."""
    begin, end = summary.begin, summary.end
    dates = f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}" if begin and end else "no dates"
    yield f"{summary.domain}: {_many(summary.total, 'message')}, {dates}, published policy {summary.policy or 'none'}"
    yield f"  {_many(summary.reports, 'report')} by {', '.join(sorted(summary.reporters)[:8])}"
    if not summary.total:
        return
    for what, count in (("DMARC passed", summary.passed), ("by SPF", summary.spf), ("by DKIM", summary.dkim)):
        yield f"  {what:13} {count:9}  {count / summary.total:6.1%}"
    for kind in SourceKind:
        if count := summary.count(kind):
            yield f"  {_many(count, 'message')} {_MEND[kind]}"
            for source in summary.sources(kind):
                yield f"    {source.count:9}  {source.name}"
    yield from _advice(summary)


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary for a program."""
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


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
