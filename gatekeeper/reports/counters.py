# SPDX-License-Identifier: GPL-3.0-or-later
"""What we verified, as the rows of the aggregate reports that may be sent one day (RFC 9990): counted in the store.

A row says what was alike in some messages: where they came from, the domains that they named, what passed, what became
of them and why. It holds no address of a person, neither sender nor recipient. Rows are spread over SHARES buckets a
UTC day, by the domain whose record applies, so that a flood of one domain's rows costs the reports of few others.
Nothing here sends.
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
from gatekeeper.reports.aggregate import Authenticated, Report, ReportRow
from gatekeeper.stores.store import Keys, Store

SHARES = 64
MOST_ROWS = 2000
"""Rows a bucket: with SHARES buckets of rows of mostly 300 bytes, a day that is full takes 40 MB."""
KEPT = 3 * 86400.0
"""Seconds since a row was last counted: reports are due on the day after."""
_VERSION = 1
_MAX_SIGNATURES = 4  # the schema of RFC 9990 wants no more than 100; attackers choose how many


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRow:
    """One row but for its count. `published` are the tags of the record at `domain`."""

    domain: str
    published: tuple[tuple[str, str], ...]
    source: str
    disposition: str
    spf: bool
    dkim: bool
    reasons: tuple[str, ...]
    header_from: str
    envelope_from: str
    found: tuple[Authenticated, ...]

    def to_bytes(self) -> bytes:
        """The row as it is counted."""
        return json.dumps([_VERSION, *astuple(self)], separators=(",", ":")).encode()

    @classmethod
    def of_bytes(cls, row: bytes) -> "CountedRow | None":
        """The row again; None for one that another version has written, or that is damaged."""
        try:
            version, domain, published, source, disposition, spf, dkim, reasons, header, envelope, found = json.loads(
                row
            )
            return (
                None
                if version != _VERSION
                else cls(
                    domain=str(domain),
                    published=tuple((str(tag), str(value)) for tag, value in published),
                    source=str(source),
                    disposition=str(disposition),
                    spf=spf is True,
                    dkim=dkim is True,
                    reasons=tuple(map(str, reasons)),
                    header_from=str(header),
                    envelope_from=str(envelope),
                    found=tuple(Authenticated(*map(str, one)) for one in found),
                )
            )
        except (ValueError, TypeError, RecursionError):
            return None


def counts(found: DmarcFinding) -> bool:
    """True for what a report would tell: the domain has a record, wants reports by mail, and DMARC came to a result."""
    record = found.record
    wanted = record is not None and any(uri.lower().startswith("mailto:") for uri in record.rua)
    return wanted and found.result in (DmarcResult.PASS, DmarcResult.FAIL)


def row_of(
    source: str,
    found: DmarcFinding,
    spf: SpfFinding,
    dkim: Sequence[DkimFinding],
    *,
    disposition: str,
    reasons: Iterable[str],
) -> CountedRow:
    """The row for one message that `counts`."""
    assert found.record is not None
    results = [Authenticated("spf", spf.domain, str(spf.result))] if spf.result is not SpfResult.NONE else []
    signed = [one for one in dkim if one.domain and one.result is not DkimResult.NONE]
    # those that passed first: a forger's own must not push out what aligns
    signed.sort(key=lambda one: (one.result is not DkimResult.PASS, one.domain != found.domain))
    results += [Authenticated("dkim", one.domain, str(one.result), one.selector) for one in signed[:_MAX_SIGNATURES]]
    return CountedRow(
        domain=found.record_domain,
        published=tuple(_tags(found.record)),
        source=source,
        disposition=disposition,
        spf=found.spf_aligned,
        dkim=found.dkim_aligned,
        reasons=tuple(reasons),
        header_from=found.domain,
        envelope_from=spf.domain if spf.identity == "mailfrom" else "",
        found=tuple(results),
    )


def bucket(keys: Keys, now: float, domain: str) -> str:
    """The store's key for rows about `domain` at `now` (seconds since the epoch)."""
    share = blake2b(domain.encode(), digest_size=8).digest()[0] % SHARES
    return _bucket(keys, datetime.fromtimestamp(now, UTC), share)


async def rows_of(store: Store, keys: Keys, day: datetime) -> dict[bytes, int]:
    """All rows of a UTC day with their counts, for `reports_of`. Raises StoreError."""
    rows: dict[bytes, int] = {}
    for share in range(SHARES):
        rows |= await store.tallies(_bucket(keys, day, share))
    return rows


def _bucket(keys: Keys, day: datetime, share: int) -> str:
    return keys("verified", f"{day:%Y-%m-%d}", str(share))


def reports_of(rows: Mapping[bytes, int], day: datetime, reporter: str) -> list[Report]:
    """The reports on a UTC day, one for each record that was seen: what `dmarc read` would read of them.

    `day` is any time of that day in UTC, `reporter` our own name.
    """
    begin = day.replace(hour=0, minute=0, second=0, microsecond=0)
    by_record: dict[tuple[str, tuple[tuple[str, str], ...]], list[ReportRow]] = defaultdict(list)
    for raw, count in rows.items():
        if (row := CountedRow.of_bytes(raw)) is not None:
            by_record[row.domain, row.published].append(_with_count(row, count))
    return [
        Report(
            reporter=reporter,
            number=f"{begin:%Y%m%d}.{number}.{domain}",
            domain=domain,
            policy=dict(published).get("p", ""),
            begin=begin,
            end=begin + timedelta(days=1),
            rows=tuple(found),
            published=published,
        )
        for number, ((domain, published), found) in enumerate(sorted(by_record.items()), 1)
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
        found=row.found,
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
