# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing aggregate reports: XML to Report (RFC 9990 section 3, and the older schema of RFC 7489 appendix C).

Reporters deviate from both schemas, so elements are found by their names, in any namespace and order, and what is
missing is empty. What is not well-formed is read as well as possible (elements.py). A document type declaration is
refused; the numbers of elements, rows and results are limited, so that what is kept in memory is never much more than
the document itself.

**A row that cannot be understood costs only itself**: it is passed over, counted, and named with its line. A row
without messages says nothing (some receivers that have seen no mail send one, even without an address); it is counted
apart, because nothing is wrong with it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address

from gatekeeper.auth.domains import is_within, normal_domain
from gatekeeper.core.verdict import printable
from gatekeeper.reports.elements import Element, NotWellFormed, Root, TooMuch, as_utf8
from gatekeeper.reports.report import AuthResult, Report, ReportRow
from gatekeeper.reports.unpack import MAX_DOCUMENTS, Document, ReportError, Unread

MAX_ROWS = 200_000
"""In one report."""
MAX_RESULTS = 3 * MAX_ROWS
"""Results of SPF and DKIM, and reasons, in one report: a row usually has two."""
MAX_COUNT = 1_000_000_000
"""Messages in one row: what was seen from one address, on one day as a rule."""
_MAX_NAMED = 5  # bad rows of one report that are named
_MAX_OTHERS = 2000  # children of the root that are not rows
_LATEST = 32_503_680_000  # the year 3000, which datetime supports everywhere
_FACTORS = (1, 1000, 1_000_000)  # some reporters write milliseconds or microseconds

_ROOT = re.compile(rb"<(?:[\w.-]{1,100}:)?feedback(?=[\s/>])")
_ROOT_END = re.compile(rb"</(?:[\w.-]{1,100}:)?feedback\s*>")
_DOCTYPE = re.compile(rb"<!DOCTYPE", re.IGNORECASE)
_COUNT = re.compile(r"\+?([0-9]{1,12})(?:\.0*)?\Z")
_SECONDS = re.compile(r"([0-9]{1,17})(?:\.[0-9]*)?\Z")

_TREE = {
    "feedback": "report_metadata policy_published record",
    "report_metadata": "org_name email report_id date_range",
    "date_range": "begin end",
    "policy_published": "domain p sp np adkim aspf",
    "record": "row identifiers auth_results",
    "row": "source_ip count policy_evaluated",
    "policy_evaluated": "disposition spf dkim reason",
    "reason": "type comment",
    "identifiers": "header_from envelope_from envelope_to",
    "auth_results": "spf dkim",
    "spf": "domain result scope human_result",
    "dkim": "domain result selector human_result",
}
_PLACES = {
    name: frozenset(outer for outer, inner in _TREE.items() if name in inner.split())
    for name in " ".join(_TREE.values()).split()
}
"""In which elements an element of a report may stand."""


def read_reports(
    documents: Iterator[Document | Unread], sender: Callable[[bytes], str | None] = lambda _header: None
) -> Iterator[tuple[str, Report] | Unread]:
    """Yield each report with its place in the file.

    `sender` says of a mail's header which domain is proven to have sent it (see sender.py). A report in mail that is
    proven to be from nobody is not read.
    """
    for document in documents:
        if isinstance(document, Unread):
            yield document
            continue
        proven = sender(document.header) if document.header else None
        if proven == "":
            yield Unread(document.place, "the mail did not pass DMARC when it came, so anybody can have written it")
            continue
        for found in parse_reports(document.content):
            if isinstance(found, Report):
                yield document.place, replace(found, sender=proven or "")
            else:
                yield Unread(document.place, str(found))


def parse_reports(document: bytes) -> Iterator[Report | ReportError]:
    """Yield the reports in an XML document: one, or several if somebody has put files together."""
    document, encoding = as_utf8(document)
    root = _ROOT.search(document)
    if root is None:
        yield ReportError("it is XML, but not an aggregate report")
        return
    if _DOCTYPE.search(document, 0, root.start()):
        yield ReportError("the XML has a document type declaration, which reports never have")
        return
    for _ in range(MAX_DOCUMENTS):
        if root is None:
            return
        draft = _Draft(document)
        try:
            try:
                at = draft.read(Root(document, root.start(), encoding))
            except NotWellFormed as error:
                draft = _Draft(document)
                where = f"line {draft.line(error.at)}"
                at = draft.read(repaired := Root(document, root.start(), encoding, _PLACES))
                draft.remarks.append(
                    f"the XML is malformed in {where}; it is read as far as it makes sense"
                    if repaired.ended
                    else f"the XML ends in the middle, in {where}; what is there is read"
                )
            yield draft.report()
        except (ReportError, TooMuch) as error:
            yield ReportError(str(error))
            end = _ROOT_END.search(document, root.end())
            at = end.end() if end else len(document)
        root = _ROOT.search(document, at)
    if root is not None:
        yield ReportError(f"there are more than {MAX_DOCUMENTS} reports in one document; the rest is not read")


@dataclass(slots=True)
class _Draft:
    """What is known of a report while it is read."""

    document: bytes
    about: Element = field(default_factory=lambda: Element(""))
    published: list[Element] = field(default_factory=list)
    rows: list[ReportRow] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    records: int = 0
    empty: int = 0
    bad: int = 0
    results: int = 0

    def read(self, root: Root) -> int:
        """Take what is in the root element, and return where it ends. Raises ReportError, TooMuch, NotWellFormed."""
        others = 0
        for element in root:
            if element.name == "record":
                self._take(element)
                continue
            others += 1
            if others > _MAX_OTHERS:
                raise ReportError("the XML has too many elements in one place")
            if element.name == "report_metadata" and not self.about.name:
                self.about = element
            elif element.name == "policy_published":
                self.published.append(element)
        return root.at

    def _take(self, record: Element) -> None:
        self.records += 1
        self.results += len(record.one("auth_results").children)
        self.results += len(record.one("row").one("policy_evaluated").children)
        if self.records > MAX_ROWS:
            raise ReportError(f"it has more than {MAX_ROWS} rows")
        if self.results > MAX_RESULTS:
            raise ReportError(f"it has more than {MAX_RESULTS} results")
        try:
            row = _row(record)
        except _BadRow as error:
            self.bad += 1
            if self.bad <= _MAX_NAMED:
                self.remarks.append(f"row {self.records} in line {self.line(record.at)}: {error}; it is passed over")
        else:
            if row is None:
                self.empty += 1
            else:
                self.rows.append(row)

    def line(self, at: int) -> int:
        return self.document.count(b"\n", 0, at) + 1

    def report(self) -> Report:
        """Return the report. Raises ReportError if it does not say which domain it is about."""
        if self.bad > _MAX_NAMED:
            self.remarks.append(f"{self.bad - _MAX_NAMED} more rows are passed over")
        domains = [domain for one in self.published if (domain := _domain(_word(one, "domain")))]
        domain = domains[0] if domains else self._common_domain()
        if not domain:
            raise ReportError("it does not say which domain it is about")
        # Whoever publishes two policies at once has published neither.
        policies = {_word(one, "p").lower() for one in self.published if _domain(_word(one, "domain")) == domain}
        dates = self.about.one("date_range")
        return Report(
            reporter=_word(self.about, "org_name") or _word(self.about, "email") or "unknown",
            report_id=_word(self.about, "report_id"),
            domain=domain,
            policy=policies.pop() if len(policies) == 1 else "",
            begin=_date(_word(dates, "begin")),
            end=_date(_word(dates, "end")),
            rows=tuple(self.rows),
            empty_rows=self.empty,
            bad_rows=self.bad,
            remarks=tuple(self.remarks),
        )

    def _common_domain(self) -> str:
        """Return the domain that all rows have in common, for reports without a policy; empty if there is none."""
        names = {row.header_from for row in self.rows}
        shortest = min(names, key=len, default="")
        return shortest if all(is_within(name, shortest) for name in names) else ""


class _BadRow(ValueError):
    """A row cannot be understood; the message says why."""


def _row(record: Element) -> ReportRow | None:
    """Return the row in a record; None if it has no messages. Raises _BadRow."""
    row, names = record.one("row"), record.one("identifiers")
    evaluated = row.one("policy_evaluated")
    count = _count(_word(row, "count"), _word(row, "source_ip"))
    if not count:
        return None
    return ReportRow(
        source=_address(_word(row, "source_ip")),
        count=count,
        disposition=_word(evaluated, "disposition").lower(),
        spf=_word(evaluated, "spf").lower() == "pass",
        dkim=_word(evaluated, "dkim").lower() == "pass",
        reasons=tuple(dict.fromkeys(_word(reason, "type").lower() for reason in evaluated.all("reason"))),
        header_from=_domain(_word(names, "header_from")),
        auth_results=tuple(
            AuthResult(one.name, _domain(_word(one, "domain")), _word(one, "result").lower(), _word(one, "selector"))
            for one in record.one("auth_results").children
            if one.name in ("spf", "dkim") and one.children
        ),
    )


def _word(element: Element, name: str) -> str:
    return printable(element.one(name).text.strip(), 255)


def _domain(text: str) -> str:
    return normal_domain(text.removesuffix("."))


def _count(text: str, source: str) -> int:
    if not text and not source:
        return 0
    number = _COUNT.match(text)
    if number is None:
        raise _BadRow(f"its count, {text[:40]!a}, is not a number of messages")
    if int(number[1]) > MAX_COUNT:
        raise _BadRow(f"its count, {text[:40]}, is more than anybody sends from one address")
    return int(number[1])


def _address(text: str) -> str:
    """Return the address in its usual form; IPv4 that is mapped into IPv6 is IPv4."""
    try:
        address = ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        raise _BadRow(f"its source_ip, {text[:40]!a}, is not an address") from None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _date(text: str) -> datetime | None:
    """Parse seconds since the epoch, or their thousandths or millionths, or ISO 8601; None if it is neither."""
    if match := _SECONDS.match(text):
        seconds = next((int(match[1]) // factor for factor in _FACTORS if int(match[1]) // factor < _LATEST), None)
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    try:
        date = datetime.fromisoformat(text)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
