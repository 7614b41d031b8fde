# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing one aggregate report: XML to Report (RFC 9990 section 3, and the older schema of RFC 7489 appendix C).

Reporters deviate from both schemas, so elements are found by their names, in any namespace and order, and what is
missing is empty. A document type declaration, and with it any entity that the document defines, is refused; the depth,
the length of a tag and of texts, and the number of rows and of results are limited, so that what is kept in memory is
never much more than the document itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from xml.parsers import expat

from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.verdict import printable
from gatekeeper.reports.report import AuthResult, Report, ReportRow
from gatekeeper.reports.unpack import ReportError, documents

MAX_ROWS = 200_000
"""In one file, all its documents together."""
MAX_RESULTS = 3 * MAX_ROWS
"""Results of SPF and DKIM, and reasons, in one file: a row usually has two."""
_CHUNK = 65536
_MAX_TAG = 256 * 1024  # bytes of one tag or comment: each attribute becomes an object before anybody can say stop
_MAX_DEPTH = 12
_MAX_ELEMENTS = 2000  # outside the rows, and in each row
_MAX_TEXT = 1000  # characters of one element that are kept
_LATEST = 32_503_680_000  # the year 3000, which datetime supports everywhere


@dataclass(slots=True)
class _Element:
    name: str
    text: str = ""
    children: list["_Element"] = field(default_factory=list)

    def all(self, name: str) -> Iterator["_Element"]:
        return (child for child in self.children if child.name == name)

    def one(self, name: str) -> "_Element":
        return next(self.all(name), _NOTHING)

    def word(self, name: str) -> str:
        return printable(self.one(name).text.strip(), 255)


_NOTHING = _Element("")


def read_reports(data: bytes, limits: "Limits | None" = None) -> list[Report]:
    """Return the reports in a file, packed or not (see unpack.py). Raises ReportError."""
    limits = limits or Limits()
    return [parse_report(document, limits) for document in documents(data)]


@dataclass(slots=True)
class Limits:
    """How many rows and results may still come in a file."""

    rows: int = MAX_ROWS
    results: int = MAX_RESULTS

    def take(self, results: int) -> None:
        """Take one row with these results. Raises ReportError."""
        self.rows -= 1
        self.results -= results
        if self.rows < 0:
            raise ReportError(f"it has more than {MAX_ROWS} rows")
        if self.results < 0:
            raise ReportError(f"it has more than {MAX_RESULTS} results")


def parse_report(document: bytes, limits: Limits | None = None) -> Report:
    """Parse the report in an XML document. Raises ReportError."""
    reader = _Reader(limits or Limits())
    root = reader.read(document)
    if root.name != "feedback":
        raise ReportError("it is XML, but not an aggregate report")
    about, published = root.one("report_metadata"), root.one("policy_published")
    domain = normal_domain(published.word("domain"))
    if not domain:
        raise ReportError("it does not say which domain it is about")
    dates = about.one("date_range")
    return Report(
        reporter=about.word("org_name") or about.word("email") or "unknown",
        report_id=about.word("report_id"),
        domain=domain,
        policy=published.word("p").lower(),
        begin=_date(dates.word("begin")),
        end=_date(dates.word("end")),
        rows=tuple(reader.rows),
    )


def _row(record: _Element) -> ReportRow:
    row, names = record.one("row"), record.one("identifiers")
    evaluated = row.one("policy_evaluated")
    return ReportRow(
        source=_address(row.word("source_ip")),
        count=_number(row.word("count")),
        disposition=evaluated.word("disposition").lower(),
        spf=evaluated.word("spf").lower() == "pass",
        dkim=evaluated.word("dkim").lower() == "pass",
        reasons=tuple(dict.fromkeys(reason.word("type").lower() for reason in evaluated.all("reason"))),
        header_from=normal_domain(names.word("header_from")),
        auth_results=tuple(
            AuthResult(one.name, normal_domain(one.word("domain")), one.word("result").lower(), one.word("selector"))
            for one in record.one("auth_results").children
            if one.name in ("spf", "dkim") and one.children
        ),
    )


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ReportError("the count of a row is not a number")
    return int(text)


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ReportError("the source_ip of a row is not an address") from None


def _date(text: str) -> datetime:
    """Parse seconds since the epoch; some reporters add a fraction."""
    seconds = text.partition(".")[0]
    if not seconds.isascii() or not seconds.isdigit() or int(seconds[:12]) > _LATEST or len(seconds) > 11:
        raise ReportError("its date_range is malformed")
    return datetime.fromtimestamp(int(seconds), UTC)


class _Reader:
    """Parses a document to elements, except that each row goes to `rows`, so that its elements are not kept.

    Works without recursion; everything is limited.
    """

    def __init__(self, limits: Limits) -> None:
        self.rows: list[ReportRow] = []
        self._limits = limits
        self._root = _NOTHING
        self._open: list[_Element] = []
        self._elements = 0

    def read(self, document: bytes) -> _Element:
        """Return the root element, without the rows. Raises ReportError."""
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            for start in range(0, len(document), _CHUNK):
                parser.Parse(document[start : start + _CHUNK], False)
                if start - parser.CurrentByteIndex > _MAX_TAG:
                    raise ReportError(f"the XML has a tag of more than {_MAX_TAG // 1024} kB")
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise ReportError(f"the XML is malformed in line {error.lineno}") from None
        except (LookupError, ValueError) as error:
            if isinstance(error, ReportError):
                raise
            raise ReportError("the XML is in a character set that is not supported here") from None
        return self._root

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        element = _Element(name.rpartition(":")[2])
        self._elements += 1
        if len(self._open) >= _MAX_DEPTH or self._elements > _MAX_ELEMENTS:
            raise ReportError("the XML is nested too deeply, or has too many elements in one place")
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, _name: str) -> None:
        element = self._open.pop()
        if element.name == "record" and len(self._open) == 1:
            reasons = element.one("row").one("policy_evaluated").children
            self._limits.take(len(element.one("auth_results").children) + len(reasons))
            self.rows.append(_row(element))
            self._root.children.pop()
            self._elements = len(self._root.children)

    def _data(self, text: str) -> None:
        element = self._open[-1]
        if len(element.text) < _MAX_TEXT:
            element.text += text[:_MAX_TEXT]

    def _doctype(self, *_: object) -> None:
        raise ReportError("the XML has a document type declaration, which reports never have")
