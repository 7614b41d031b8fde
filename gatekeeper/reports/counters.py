# SPDX-License-Identifier: GPL-3.0-or-later
"""Counting verified messages in the store, as rows for aggregate reports that may be sent one day (RFC 9990).

A row says what some messages have in common: where they came from, the domains that they named, what passed, what was
done with them and why. It contains no personal address, neither sender nor recipient. Rows are spread over BUCKETS
buckets per UTC day, by the domain whose record applies, so that a flood of rows for one domain affects the reports to
only few others. Nothing here sends reports.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc import DmarcFinding, DmarcResult
from gatekeeper.auth.dmarc_record import DmarcRecord
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.reports.report import AuthResult, Report, ReportRow
from gatekeeper.stores.store import Keys, Store

BUCKETS = 64
MAX_BUCKET_ROWS = 2000
"""Rows per bucket: with BUCKETS buckets and some 300 bytes per row, a full day takes 40 MB."""
RETENTION = 3 * 86400.0
"""Seconds for which a row is kept after it was last counted: reports are due on the next day."""
_VERSION = 1
_MAX_SIGNATURES = 4  # the schema of RFC 9990 allows 100; attackers choose how many there are


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRow:
    """One row without its count. `policy_published` are the tags of the record at `domain`."""

    domain: str
    policy_published: tuple[tuple[str, str], ...]
    source: str
    disposition: str
    spf: bool
    dkim: bool
    reasons: tuple[str, ...]
    header_from: str
    envelope_from: str
    auth_results: tuple[AuthResult, ...]

    def to_bytes(self) -> bytes:
        """Return the row in the form in which it is counted."""
        return json.dumps([_VERSION, *astuple(self)], separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, row: bytes) -> "CountedRow | None":
        """Return the row from the form in which it is counted; None if another version wrote it, or it is damaged."""
        try:
            version, domain, published, source, disposition, spf, dkim, reasons, header, envelope, results = json.loads(
                row
            )
            return (
                None
                if version != _VERSION
                else cls(
                    domain=str(domain),
                    policy_published=tuple((str(tag), str(value)) for tag, value in published),
                    source=str(source),
                    disposition=str(disposition),
                    spf=spf is True,
                    dkim=dkim is True,
                    reasons=tuple(map(str, reasons)),
                    header_from=str(header),
                    envelope_from=str(envelope),
                    auth_results=tuple(AuthResult(*map(str, one)) for one in results),
                )
            )
        except (ValueError, TypeError, RecursionError):
            return None


def is_reportable(found: DmarcFinding) -> bool:
    """Return whether a report includes the message: DMARC passed or failed, and the domain wants reports by mail."""
    record = found.record
    wanted = record is not None and any(uri.lower().startswith("mailto:") for uri in record.rua)
    return wanted and found.result in (DmarcResult.PASS, DmarcResult.FAIL)


def counted_row(
    source: str,
    found: DmarcFinding,
    spf: SpfFinding,
    dkim: Sequence[DkimFinding],
    *,
    disposition: str,
    reasons: Iterable[str],
) -> CountedRow:
    """Return the row for one message that is reportable."""
    assert found.record is not None
    results = [AuthResult("spf", spf.domain, str(spf.result))] if spf.result is not SpfResult.NONE else []
    signed = [one for one in dkim if one.domain and one.result is not DkimResult.NONE]
    # those that passed come first: signatures of a forger must not displace an aligned one
    signed.sort(key=lambda one: (one.result is not DkimResult.PASS, one.domain != found.domain))
    results += [AuthResult("dkim", one.domain, str(one.result), one.selector) for one in signed[:_MAX_SIGNATURES]]
    return CountedRow(
        domain=found.record_domain,
        policy_published=tuple(_tags(found.record)),
        source=source,
        disposition=disposition,
        spf=found.spf_aligned,
        dkim=found.dkim_aligned,
        reasons=tuple(reasons),
        header_from=found.domain,
        envelope_from=spf.domain if spf.identity == "mailfrom" else "",
        auth_results=tuple(results),
    )


def bucket_key(keys: Keys, now: float, domain: str) -> str:
    """Return the store's key for rows about `domain` at `now` (seconds since the epoch)."""
    number = blake2b(domain.encode(), digest_size=8).digest()[0] % BUCKETS
    return _key(keys, datetime.fromtimestamp(now, UTC), number)


async def read_rows(store: Store, keys: Keys, day: datetime) -> dict[bytes, int]:
    """Return all rows of a UTC day with their counts, for `build_reports`. Raises StoreError."""
    rows: dict[bytes, int] = {}
    for number in range(BUCKETS):
        rows |= await store.tallies(_key(keys, day, number))
    return rows


def _key(keys: Keys, day: datetime, number: int) -> str:
    return keys("verified", f"{day:%Y-%m-%d}", str(number))


def build_reports(rows: Mapping[bytes, int], day: datetime, reporter: str) -> list[Report]:
    """Return the reports for a UTC day, one for each record that was seen, as `dmarc read` would read them.

    `day` is any time of that day in UTC, `reporter` our own name.
    """
    begin = day.replace(hour=0, minute=0, second=0, microsecond=0)
    by_record: dict[tuple[str, tuple[tuple[str, str], ...]], list[ReportRow]] = defaultdict(list)
    for raw, count in rows.items():
        if (row := CountedRow.from_bytes(raw)) is not None:
            by_record[row.domain, row.policy_published].append(_with_count(row, count))
    return [
        Report(
            reporter=reporter,
            report_id=f"{begin:%Y%m%d}.{number}.{domain}",
            domain=domain,
            policy=dict(published).get("p", ""),
            begin=begin,
            end=begin + timedelta(days=1),
            rows=tuple(report_rows),
            policy_published=published,
        )
        for number, ((domain, published), report_rows) in enumerate(sorted(by_record.items()), 1)
    ]


def _with_count(row: CountedRow, count: int) -> ReportRow:
    return ReportRow(
        source=row.source,
        count=count,
        disposition=row.disposition,
        spf=row.spf,
        dkim=row.dkim,
        reasons=row.reasons,
        header_from=row.header_from,
        auth_results=row.auth_results,
        envelope_from=row.envelope_from,
    )


def _tags(record: DmarcRecord) -> Iterable[tuple[str, str]]:
    yield "p", str(record.policy or "none")
    for tag, policy in (("sp", record.subdomains), ("np", record.nonexistent)):
        if policy is not None:
            yield tag, str(policy)
    for tag, strict in (("adkim", record.strict_dkim), ("aspf", record.strict_spf)):
        yield tag, "s" if strict else "r"
    yield "t", "y" if record.testing else "n"
