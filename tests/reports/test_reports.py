# SPDX-License-Identifier: GPL-3.0-or-later
"""Aggregate reports: from whatever they come in to a decision, and nothing that a stranger mails does harm."""

import gzip
import io
import zipfile
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.reports.advice import advise, sentences
from gatekeeper.reports.aggregate import MAX_ROWS, read_reports
from gatekeeper.reports.report import AuthResult, Report
from gatekeeper.reports.summary import SourceKind, summarise
from gatekeeper.reports.unpack import Unread, documents

DAY = 86400
BEGIN = 1_760_000_000


def row(
    source: str = "192.0.2.1", count: int = 1, *, spf: str = "fail", dkim: str = "fail", more: str = "", auth: str = ""
) -> str:
    return f"""<record><row><source_ip>{source}</source_ip><count>{count}</count>
<policy_evaluated><disposition>none</disposition><dkim>{dkim}</dkim><spf>{spf}</spf>{more}</policy_evaluated></row>
<identifiers><header_from>example.com</header_from></identifiers><auth_results>{auth}</auth_results></record>"""


def xml(*rows: str, days: float = 20, number: str = "1", policy: str = "none", top: str = "<feedback>") -> bytes:
    return f"""<?xml version="1.0"?>
{top}<version>1.0</version><report_metadata><org_name>receiver.example</org_name><email>a@receiver.example</email>
<report_id>{number}</report_id><date_range><begin>{BEGIN}</begin><end>{BEGIN + int(days * DAY)}</end></date_range>
</report_metadata><policy_published><domain>Example.COM</domain><p>{policy}</p></policy_published>
{"".join(rows)}</feedback>""".encode()


PASSED = row(count=1000, spf="pass", dkim="pass")
SERVICE = row("198.51.100.7", 20, auth="<spf><domain>mailer.example</domain><result>pass</result></spf>")
BROKEN = row(
    "198.51.100.8", 5, auth="<dkim><domain>example.com</domain><selector>s</selector><result>fail</result></dkim>"
)
FORWARDED = row("198.51.100.9", 3, more="<reason><type>forwarded</type><comment/></reason>")
STRANGER = row("203.0.113.1", 7)
OURS = row("192.0.2.1", 2)


def zipped(**members: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def mailed(data: bytes, subtype: str) -> bytes:
    mail = EmailMessage()
    mail["Subject"] = "Report domain: example.com"
    mail.set_content("This is an aggregate report.")
    mail.add_attachment(data, maintype="application", subtype=subtype, filename="../../etc/passwd.gz")
    return mail.as_bytes()


def reports_in(data: bytes) -> list[Report]:
    return [found[1] for found in read_reports(documents(data)) if not isinstance(found, Unread)]


def unread(data: bytes) -> list[str]:
    """What is said of what cannot be read."""
    return [str(found) for found in read_reports(documents(data)) if isinstance(found, Unread)]


def contents(data: bytes) -> list[bytes]:
    return [found.content for found in documents(data) if not isinstance(found, Unread)]


def test_a_report_is_read_whole() -> None:
    (report,) = reports_in(xml(SERVICE, policy="quarantine"))
    assert ("receiver.example", "1", "example.com", "quarantine") == (
        report.reporter,
        report.report_id,
        report.domain,
        report.policy,
    )
    (found,) = report.rows
    assert ("198.51.100.7", 20, False, False, (AuthResult("spf", "mailer.example", "pass"),)) == (
        found.source,
        found.count,
        found.spf,
        found.dkim,
        found.auth_results,
    )


def test_the_schema_of_rfc_9990_has_a_namespace() -> None:
    for top in ('<feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0">', '<d:feedback xmlns:d="urn:x">'):
        document = xml(PASSED, top=top).replace(b"</feedback>", b"</d:feedback>" if ":d=" in top else b"</feedback>")
        assert 1000 == reports_in(document)[0].rows[0].count


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        gzip.compress,
        lambda x: zipped(a=x),
        lambda x: mailed(gzip.compress(x), "gzip"),
        lambda x: mailed(zipped(a=x), "zip"),
        lambda x: b"\xef\xbb\xbf" + x,
    ],
)
def test_a_report_comes_in_many_wrappings(wrap) -> None:  # type: ignore[no-untyped-def]  # a table of lambdas
    assert [xml(PASSED)] == [document.removeprefix(b"\xef\xbb\xbf") for document in contents(wrap(xml(PASSED)))]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: b"", "no report in it"),
        (lambda: b"Subject: hello\r\n\r\nno attachment\r\n", "no report in it"),
        (lambda: gzip.compress(b"<feedback>")[:-4], "damaged"),
        (lambda: zipped(a=b"x")[:-10], "damaged"),
        (lambda: gzip.compress(bytes(80 * 1024 * 1024)), "unpacks to more"),
        (lambda: zipped(**{str(n): b"<" for n in range(1200)}), "more than 1000"),
        (lambda: zipped(**{str(n): b"<" + bytes(60 * 1024 * 1024) for n in range(3)}), "more than 128 MiB in it"),
    ],
)
def test_a_wrapping_that_is_no_good_says_why(data: Callable[[], bytes], words: str) -> None:
    assert words in unread(data())[-1]


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>
<feedback>&b;</feedback>"""


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"<html></html>", "not an aggregate report"),
        (b"<feedback>", "which domain"),
        (b"<feedback></feedback>", "which domain"),
        (BOMB, "document type declaration"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><feedback/>', "document type declaration"),
        (b"<feedback>" + b"<a>" * 100_000, "nested too deeply"),
        (b"<feedback>" + b"<a/>" * 100_000 + b"</feedback>", "too many elements"),
        (b'<?xml version="1.0" encoding="nonsense"?><feedback/>', "which domain"),
    ],
)
def test_a_document_that_is_no_good_says_why(document: bytes, words: str) -> None:
    (said,) = unread(document)
    assert words in said


@pytest.mark.slow
def test_rows_have_a_limit() -> None:
    small = "<record><row><source_ip>1.1.1.1</source_ip><count>1</count></row></record>"
    assert ["it has more than 200000 rows"] == unread(xml(small * (MAX_ROWS + 1)))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), at=st.integers(0, 400))
def test_no_bytes_raise_anything_else(data: bytes, at: int) -> None:
    good = xml(SERVICE)
    for candidate in (data, good[:at] + data + good[at + len(data) :], zipped(a=good)[:at] + data):
        assert all(report.reporter.isprintable() for report in reports_in(candidate))
        assert reports_in(candidate) or unread(candidate)


def reports(*rows: str, **about: object) -> list[Report]:
    return reports_in(xml(*rows, **about))  # type: ignore[arg-type]  # passed on as they are


def test_what_fails_is_sorted_by_what_to_do_about_it() -> None:
    (summary,) = summarise(reports(PASSED, SERVICE, BROKEN, FORWARDED, STRANGER, OURS))
    assert {
        SourceKind.SERVICE: 20,
        SourceKind.BROKEN: 5,
        SourceKind.FORWARDED: 3,
        SourceKind.STRANGER: 7,
        SourceKind.OURS: 2,
    } == {kind: summary.count(kind) for kind in SourceKind}
    assert [("mailer.example", 20)] == [(source.name, source.count) for source in summary.sources(SourceKind.SERVICE)]


def test_the_same_report_read_twice_counts_once() -> None:
    (summary,) = summarise(reports(PASSED) + reports(PASSED))
    assert (1, 1000) == (summary.reports, summary.total)


@pytest.mark.parametrize(
    ("rows", "about", "policy", "safe"),
    [
        ((PASSED, STRANGER), {}, "quarantine", True),
        ((PASSED, STRANGER), {"policy": "quarantine"}, "reject", True),
        ((PASSED, STRANGER), {"policy": "reject"}, "", True),
        ((PASSED,), {"days": 3}, "quarantine", False),
        ((PASSED, SERVICE), {}, "quarantine", False),
        ((), {}, "quarantine", False),
        ((row(count=1000, spf="pass"),), {}, "quarantine", False),
    ],
)
def test_the_next_policy_is_called_safe_only_when_nothing_wanted_would_suffer(
    rows: tuple[str, ...], about: dict[str, object], policy: str, safe: bool
) -> None:
    advice = advise(summarise(reports(*rows, **about))[0])
    assert (policy, safe) == (advice.policy, advice.safe)


def test_the_summary_is_words_for_a_person() -> None:
    (summary,) = summarise(reports(PASSED, SERVICE))
    text = "\n".join(sentences(summary))
    assert "example.com: 1020 messages, 2025-10-09 to 2025-10-29, published policy none" in text
    assert "p=quarantine is not safe yet: 2.0% of your mail fails" in text


def test_a_reporter_cannot_write_on_the_terminal() -> None:
    document = xml(PASSED).replace(b"receiver.example</org_name>", b"\xc2\x9b2J&#x202e;evil</org_name>")
    assert all(line.isprintable() for line in sentences(summarise(reports_in(document))[0]))


def test_the_command_sums_up_what_it_can_read_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.xml.gz", tmp_path / "bad.zip"
    good.write_bytes(gzip.compress(xml(PASSED)))
    bad.write_bytes(b"nonsense")
    assert 1 == cli.main(["dmarc", "read", str(good), str(bad)])
    out, err = capsys.readouterr()
    assert ("p=quarantine is safe to publish next" in out, "bad.zip: there is no report in it" in err) == (True, True)
