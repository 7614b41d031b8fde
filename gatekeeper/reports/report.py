# SPDX-License-Identifier: GPL-3.0-or-later
"""An aggregate report as values (RFC 9990): what is read from others' reports, and counted for our own.

Knows no XML: who only counts need not load what reads and unpacks.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AuthResult:
    """One result of SPF or DKIM for `domain`. `selector` is only for DKIM."""

    method: str
    domain: str
    result: str
    selector: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """`count` messages of the same kind. `spf` and `dkim` say whether it passed with an aligned domain."""

    source: str
    count: int
    disposition: str
    spf: bool
    dkim: bool
    reasons: tuple[str, ...]
    header_from: str
    auth_results: tuple[AuthResult, ...]
    envelope_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one reporter saw of mail from `domain` between `begin` and `end` (UTC; None if it is not readable)."""

    reporter: str
    """As it calls itself."""
    report_id: str
    domain: str
    policy: str
    """The policy that was published, `p`; empty if it does not say."""
    begin: datetime | None
    end: datetime | None
    rows: tuple[ReportRow, ...]
    policy_published: tuple[tuple[str, str], ...] = ()
    """The tags of the record, except `rua` and `ruf`."""
    sender: str = ""
    """The domain that is proven to have sent it; empty if none is (sender.py)."""
    empty_rows: int = 0
    """Rows without messages."""
    bad_rows: int = 0
    """Rows that could not be understood."""
    remarks: tuple[str, ...] = ()
    """What is wrong with it although it could be read."""
