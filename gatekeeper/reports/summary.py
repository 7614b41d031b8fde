# SPDX-License-Identifier: GPL-3.0-or-later
"""Summaries of aggregate reports: who sends as us, and what fails and why. What follows from it is in advice.py.

Reports are folded into counts as they come, and none is kept. What grows with what strangers write is limited: the
domains, and the names of senders and reporters of all domains together. Beyond that, mail is counted without a name,
and the summary says that it is not complete.

**What is ours.** Mail that passes is. Of what fails, mail is probably wanted if it comes from a service that
authenticates as itself and not as us, carries a signature of ours that was broken on its way, passes for another of our
names, or comes from an address that also sends mail that passes. Mail without any authentication may be forged, which
is what the policy is for; a server of ours without SPF and DKIM looks the same, so its largest sources are named.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from math import ceil

from gatekeeper.auth.domains import is_within
from gatekeeper.reports.report import AuthResult, Report, ReportRow

MAX_DOMAINS = 1000
MAX_NAMES = 300_000
"""Senders and reporters that are remembered by name."""
MAX_REPORTS = 500_000
"""Reports that are recognised if they come again."""
MAX_PERIOD = timedelta(days=31)
"""Reports are for a day (RFC 9990 section 3.5); nobody believes in the days of one that is for longer than this."""
FIRST_DAY = date(2012, 1, 1)
"""DMARC was published in that month."""
OTHERS = "others"
"""Stands for the names beyond MAX_NAMES."""
_MAX_SOURCES = 10  # that are named, of each kind
_LEEWAY = timedelta(hours=1)  # a report for a day may end a little after it
_POLICIES = ("none", "quarantine", "reject")
_DISPOSITIONS = ("", "none", "pass", "quarantine", "reject")
_FORWARDED = frozenset({"forwarded", "mailing_list", "trusted_forwarder"})
_SIGNATURE_BROKEN = frozenset({"fail", "neutral", "policy"})
"""Results of a signature that is there. With `none` there is none; `temperror` and `permerror` say that no key was
found, which holds for signatures that anybody makes up."""


class SourceKind(StrEnum):
    """Why a message failed, as far as a report can tell."""

    SERVICE = "service"
    """It authenticates, but as another domain: a service that was never told to use ours, or a forwarder."""
    BROKEN = "broken"
    """There is a signature of ours that does not verify: a mailing list or a forwarder changed the message."""
    OURS = "ours"
    """It passes for another name of ours, or nothing authenticates, but the same address sends mail that passes."""
    FORWARDED = "forwarded"
    """The receiver itself says that it was forwarded, came from a mailing list, or is trusted."""
    STRANGER = "stranger"
    """Nothing authenticates: forged, or a server of ours without SPF and DKIM."""


WANTED = (SourceKind.SERVICE, SourceKind.BROKEN, SourceKind.OURS)
"""What a stricter policy would hurt."""


@dataclass(frozen=True, slots=True)
class Source:
    """A sender: an address, or the domain that it authenticated as, with its number of messages."""

    name: str
    count: int


@dataclass(slots=True)
class Seen:
    """Our mail as one reporter saw it: what passed, by DKIM perhaps, and what failed and is probably wanted."""

    passed: int = 0
    dkim: int = 0
    wanted: int = 0
    reports: int = 0

    @property
    def ours(self) -> int:
        """Messages of ours."""
        return self.passed + self.wanted

    @property
    def failing(self) -> float:
        """The share of our mail that fails."""
        return self.wanted / self.ours if self.ours else 0.0


@dataclass(slots=True)
class Summary:
    """All reports on one domain."""

    domain: str
    reports: int = 0
    by_reporter: dict[str, Seen] = field(default_factory=lambda: defaultdict(Seen))
    begin: datetime | None = None
    end: datetime | None = None
    days: set[date] = field(default_factory=set)
    """The days on which mail of ours passed somewhere; the day of a report is that on which it begins (UTC)."""
    policies: Counter[str] = field(default_factory=Counter)
    total: int = 0
    spf: int = 0
    dkim: int = 0
    passed: int = 0
    dispositions: Counter[str] = field(default_factory=Counter)
    failed: dict[SourceKind, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    empty_rows: int = 0
    bad_rows: int = 0
    complete: bool = True
    """Whether all senders and reporters have been remembered by name."""

    @property
    def policy(self) -> str:
        """The policy that most reports say was published; of equals the mildest; empty if none says any."""
        return max(_POLICIES, key=lambda policy: self.policies[policy]) if self.policies else ""

    @property
    def wanted(self) -> int:
        """Messages that failed and are probably wanted."""
        return self.count(*WANTED)

    @property
    def together(self) -> Seen:
        """Our mail as all reporters together saw it."""
        return Seen(self.passed, self.dkim, self.wanted, self.reports)

    def count(self, *kinds: SourceKind) -> int:
        """Return how many messages failed for these reasons."""
        return sum(self.failed[kind].total() for kind in kinds if kind in self.failed)

    def sources(self, kind: SourceKind) -> list[Source]:
        """Return the largest sources of one kind."""
        found = self.failed.get(kind, Counter())
        return [Source(name, count) for name, count in found.most_common(_MAX_SOURCES)]


class Summaries:
    """Takes reports and makes a summary for each domain.

    `now` is the time until which dates are believed. `domains`, if there are any, are the only ones that count. Mail
    from `not_ours`, which are addresses and domains that authenticate, is never taken for wanted.
    """

    def __init__(self, now: datetime, *, domains: Collection[str] = (), not_ours: Collection[str] = ()) -> None:
        self._today = now.astimezone(UTC).date()
        self._domains = frozenset(domains)
        self._not_ours = frozenset(not_ours)
        self._names = _Names()
        self._known: set[bytes] = set()
        self._counts: dict[str, _Counts] = {}

    def add(self, report: Report) -> str:
        """Count a report, once if it comes again. Return what is wrong with it although it counts; empty if nothing."""
        if self._domains and report.domain not in self._domains:
            return ""
        counts = self._counts.get(report.domain)
        if counts is None:
            if len(self._counts) >= MAX_DOMAINS:
                return f"it is not counted, being about one more than {MAX_DOMAINS} domains: name yours with --domain"
            counts = self._counts[report.domain] = _Counts(report.domain, self._names)
        fingerprint = _fingerprint(report)
        if fingerprint in self._known:
            return ""
        if len(self._known) < MAX_REPORTS:
            self._known.add(fingerprint)
        counts.add(report, self._not_ours)
        return counts.add_days(report, self._today)

    def all(self) -> list[Summary]:
        """Return the summaries, those with most reports first. Nothing can be added after that."""
        found = [counts.finished() for counts in self._counts.values()]
        return sorted(found, key=lambda summary: (-summary.reports, -summary.total, summary.domain))


def summarise(reports: Iterable[Report], now: datetime | None = None) -> list[Summary]:
    """Return a summary for each domain of these reports, as they are to be read at `now`, by default the present."""
    summaries = Summaries(now or datetime.now(UTC))
    for report in reports:
        summaries.add(report)
    return summaries.all()


def _fingerprint(report: Report) -> bytes:
    """Return the same for the same report, in whatever order its rows are.

    The rows count too: a forger who guesses the number of a report must not displace it.
    """
    about = (report.reporter, report.report_id, report.domain, report.begin, report.end, report.policy)
    rows = sum(int.from_bytes(blake2b(repr(row).encode(), digest_size=16).digest()) for row in report.rows)
    return blake2b(repr((about, rows)).encode(), digest_size=16).digest()


class _Names:
    """How many names of senders and reporters are remembered; MAX_NAMES of all domains together."""

    def __init__(self) -> None:
        self._left = MAX_NAMES

    def allow(self, name: object, remembered: Container[object]) -> bool:
        """Return whether `name` is among those `remembered`, or may be added to them."""
        if name in remembered:
            return True
        self._left -= self._left > 0
        return self._left > 0


class _Counts:
    """What the reports on one domain say, in a form to which more can be added.

    Whose mail without authentication is, is known only at the end: who also sends mail that passes may come later.
    """

    def __init__(self, domain: str, names: _Names) -> None:
        self._summary = Summary(domain)
        self._names = names
        self._passing: set[str] = set()
        self._unauthenticated: Counter[tuple[str, str]] = Counter()  # by source and reporter

    def add(self, report: Report, not_ours: Collection[str]) -> None:
        """Count a report, but for its days."""
        summary = self._summary
        summary.reports += 1
        summary.empty_rows += report.empty_rows
        summary.bad_rows += report.bad_rows
        if report.policy in _POLICIES:
            summary.policies[report.policy] += 1
        reporter = self._remembered(report.sender or report.reporter, summary.by_reporter)
        seen = summary.by_reporter[reporter]
        seen.reports += 1
        for row in report.rows:
            summary.total += row.count
            summary.spf += row.count * row.spf
            summary.dkim += row.count * row.dkim
            summary.dispositions[row.disposition if row.disposition in _DISPOSITIONS else "other"] += row.count
            if row.spf or row.dkim:
                summary.passed += row.count
                seen.passed += row.count
                seen.dkim += row.count * row.dkim
                self._passing.add(self._remembered(row.source, self._passing))
            elif (found := _classify(row, summary.domain, not_ours)) is None:
                known = self._names.allow((row.source, reporter), self._unauthenticated)
                self._unauthenticated[row.source if known else OTHERS, reporter] += row.count
                summary.complete &= known
            else:
                kind, name = found
                summary.failed[kind][self._remembered(name, summary.failed[kind])] += row.count
                seen.wanted += row.count * (kind in WANTED)

    def _remembered(self, name: str, names: Container[str]) -> str:
        if self._names.allow(name, names):
            return name
        self._summary.complete = False
        return OTHERS

    def add_days(self, report: Report, today: date) -> str:
        """Count the days of a report. Return what is wrong with them."""
        begin, end, summary = report.begin, report.end, self._summary
        if begin is None or end is None:
            return "its date_range cannot be read, so its days do not count"
        if begin > end or end - begin > MAX_PERIOD:
            period = "ends before it begins" if begin > end else f"is longer than {MAX_PERIOD.days} days"
            return f"its date_range {period}, so its days do not count"
        number = max(1, ceil((end - begin - _LEEWAY) / timedelta(days=1)))
        days = {begin.date() + timedelta(days=n) for n in range(number)}
        believed = {day for day in days if FIRST_DAY <= day <= today}
        if any(row.spf or row.dkim for row in report.rows):
            summary.days |= believed
        if believed != days:
            return f"its date_range has days before {FIRST_DAY.year} or after today, which do not count"
        summary.begin = min(summary.begin or begin, begin)
        summary.end = max(summary.end or end, end)
        return ""

    def finished(self) -> Summary:
        """Return the summary, with mail without authentication sorted."""
        summary = self._summary
        for (source, reporter), count in self._unauthenticated.items():
            kind = SourceKind.OURS if source in self._passing else SourceKind.STRANGER
            summary.failed[kind][source] += count
            summary.by_reporter[reporter].wanted += count * (kind in WANTED)
        self._unauthenticated.clear()
        return summary


def _classify(row: ReportRow, domain: str, not_ours: Collection[str]) -> tuple[SourceKind, str] | None:
    """Return why the mail of a row failed, and who it is from; None if nothing authenticates it."""

    def is_ours(one: AuthResult) -> bool:
        return _aligned(one.domain, row.header_from or domain, domain)

    passed = [one for one in row.auth_results if one.result == "pass" and one.domain]
    others = [one.domain for one in passed if not is_ours(one)]
    name = others[0] if others else row.source
    if not {row.source, *others}.isdisjoint(not_ours):
        return SourceKind.STRANGER, name
    if not _FORWARDED.isdisjoint(row.reasons):
        return SourceKind.FORWARDED, name
    if any(one.method == "dkim" and one.result in _SIGNATURE_BROKEN and is_ours(one) for one in row.auth_results):
        return SourceKind.BROKEN, name
    if len(others) < len(passed):
        return SourceKind.OURS, row.source
    return (SourceKind.SERVICE, name) if others else None


def _aligned(name: str, header_from: str, domain: str) -> bool:
    """Return whether `name` is aligned with `header_from` in the relaxed way, `domain` having the policy.

    The organizational domain is not known, so two names are one organization's if both lie within the domain with the
    policy, or one within the other; but nothing lies within a top-level domain.
    """
    if is_within(name, domain) and is_within(header_from, domain):
        return True
    return is_within(name, header_from) or ("." in name and is_within(header_from, name))
