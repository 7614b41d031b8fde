# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports as real reporters send them, in whatever they come: read, or named with their place, in nobody's way."""

import gzip
import io
import json
import mailbox
import os
import re
import struct
import sys
import zipfile
from base64 import encodebytes
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.reports import unpack
from gatekeeper.reports.elements import Element, NotWellFormed, Root, as_utf8
from gatekeeper.reports.mailbox import mails
from gatekeeper.reports.report import Report
from tests.reports.test_reports import (
    BEGIN,
    BROKEN,
    PASSED,
    SERVICE,
    contents,
    mailed,
    reports_in,
    row,
    unread,
    xml,
    zipped,
)

GOOD = xml(PASSED)
TLS = json.dumps({"organization-name": "Receiver", "policies": []}).encode()


def counts(data: bytes) -> list[list[int]]:
    """The count of each row of each report."""
    return [[one.count for one in report.rows] for report in reports_in(data)]


# ---- rows

NO_MAIL = "<record><row><source_ip></source_ip><count>0</count></row></record>"


@pytest.mark.parametrize(
    "empty",
    [NO_MAIL, NO_MAIL.replace("0", ""), row("192.0.2.9", 0), "<record/>", "<record></record>"],
)
def test_a_row_without_messages_costs_nothing_and_is_counted(empty: str) -> None:
    (report,) = reports_in(xml(empty, PASSED, empty))
    assert ([1000], 2, 0, ()) == (
        [one.count for one in report.rows],
        report.empty_rows,
        report.bad_rows,
        report.remarks,
    )


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row("nonsense"), "source_ip, 'nonsense', is not an address"),
        (row(""), "source_ip, '', is not an address"),
        (row("10.0.0.01"), "not an address"),
        (PASSED.replace("1000", "-5"), "count, '-5', is not a number"),
        (PASSED.replace("1000", "1.5"), "not a number"),
        (PASSED.replace("1000", "many"), "not a number"),
        (PASSED.replace("1000", ""), "not a number"),
        (PASSED.replace("1000", "²"), "not a number"),
        (PASSED.replace("1000", "9" * 5000), "not a number"),
        (PASSED.replace("1000", "99999999999"), "more than anybody sends"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_costs_only_itself(bad: str, words: str) -> None:
    (report,) = reports_in(xml(SERVICE, bad, PASSED))
    assert ([20, 1000], 1) == ([one.count for one in report.rows], report.bad_rows)
    (said,) = report.remarks
    assert re.match(r"row 2 in line \d+: its ", said)
    assert words in said
    assert said.isprintable()


def test_of_many_bad_rows_some_are_named() -> None:
    (report,) = reports_in(xml(*[row("x")] * 100, PASSED))
    assert (100, 6, "95 more rows are passed over") == (report.bad_rows, len(report.remarks), report.remarks[-1])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:201", "192.0.2.1"),
        (" 2001:DB8:0::1\n", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_has_one_form(text: str, address: str) -> None:
    assert address == reports_in(xml(row(text)))[0].rows[0].source


@pytest.mark.parametrize("text", ["7", " 7\n", "007", "7.0", "7.", "+7"])
def test_a_count_may_be_written_with_a_fraction_of_nothing(text: str) -> None:
    assert [[7]] == counts(xml(row().replace("<count>1", f"<count>{text}")))


def test_results_are_read_in_any_case_and_unknown_ones_are_no_pass() -> None:
    loud = row(spf="PASS", dkim=" Pass ", auth="<spf><domain>A.Example.</domain><result>PASS</result></spf>")
    (report,) = reports_in(xml(loud, row(spf="passed", dkim="unknown")))
    assert [(True, True), (False, False)] == [(one.spf, one.dkim) for one in report.rows]
    assert ("a.example", "pass") == (report.rows[0].auth_results[0].domain, report.rows[0].auth_results[0].result)


# ---- what a report says of itself


@pytest.mark.parametrize(
    "text",
    [
        str(BEGIN),
        f"{BEGIN}.5",
        f"{BEGIN}000",
        f"{BEGIN}000000",
        "2025-10-09T08:53:20Z",
        "2025-10-09 08:53:20",
        "2025-10-09T10:53:20+02:00",
    ],
)
def test_a_date_is_seconds_or_thousandths_or_iso(text: str) -> None:
    (report,) = reports_in(GOOD.replace(f"<begin>{BEGIN}<".encode(), f"<begin>{text}<".encode()))
    assert datetime.fromtimestamp(BEGIN, UTC) == (report.begin and report.begin.replace(microsecond=0))


@pytest.mark.parametrize("text", ["", "yesterday", "9" * 30, "0001-01-01T00:00:00+14:00", "-1", "²"])
def test_a_date_that_is_none_costs_only_the_date(text: str) -> None:
    (report,) = reports_in(GOOD.replace(f"<begin>{BEGIN}<".encode(), f"<begin>{text}<".encode()))
    assert (None, 1000) == (report.begin, report.rows[0].count)


POLICY = b"<policy_published><domain>Example.COM</domain><p>none</p></policy_published>"


@pytest.mark.parametrize(
    ("policy", "domain", "p"),
    [
        (b"<policy_published><domain>Example.COM.</domain><p> NONE </p></policy_published>", "example.com", "none"),
        (b"", "example.com", ""),
        (b"<policy_published/>", "example.com", ""),
        (POLICY * 2, "example.com", "none"),
        (POLICY + POLICY.replace(b"none", b"reject"), "example.com", ""),
        (POLICY + POLICY.replace(b"none", b"reject").replace(b"Example", b"Other"), "example.com", "none"),
    ],
)
def test_the_domain_is_found_and_a_policy_that_is_said_twice_is_none(policy: bytes, domain: str, p: str) -> None:
    (report,) = reports_in(GOOD.replace(POLICY, policy))
    assert (domain, p, 1000) == (report.domain, report.policy, report.rows[0].count)


def test_without_a_policy_the_domain_is_what_all_rows_lie_in() -> None:
    rows = [row().replace("example.com", name) for name in ("a.example.com", "example.com", "b.c.example.com")]
    assert "example.com" == reports_in(xml(*rows).replace(POLICY, b""))[0].domain
    mixed = xml(*rows, row().replace("example.com", "other.example")).replace(POLICY, b"")
    assert ["it does not say which domain it is about"] == unread(mixed)


# ---- XML that is none

ROWS = xml(SERVICE, PASSED)
MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "unclosed element in an extension": lambda x: x.replace(b"<record>", b"<extension><x:y></extension><record>", 1),
    "unclosed schema around everything": lambda x: x.replace(b"<version>", b'<xs:schema xmlns:xs="x"><version>'),
    "unclosed element in every record": lambda x: x.replace(b"<identifiers>", b"<br><identifiers>"),
    "unclosed leaf": lambda x: x.replace(b"</source_ip>", b""),
    "unclosed record": lambda x: x.replace(b"</record>", b"", 1),
    "unclosed policy_evaluated": lambda x: x.replace(b"</policy_evaluated>", b""),
    "end of nothing": lambda x: x.replace(b"<record>", b"</extension><record>"),
    "crossed ends": lambda x: x.replace(b"</result></spf>", b"</spf></result>"),
    "no end of the root": lambda x: x.replace(b"</feedback>", b""),
    "comment without an end": lambda x: x.replace(b"<version>", b"<!-- <version>"),
}
NO_MATTER: dict[str, Callable[[bytes], bytes]] = {
    "invalid UTF-8": lambda x: x.replace(b"receiver.example<", b"receiver.example<!--\xff\x91--><"),
    "invalid UTF-8 in a name": lambda x: x.replace(b"a@receiver", b"\xfc@receiver"),
    "newlines before the declaration": lambda x: b"\r\n\n " + x,
    "a BOM": lambda x: b"\xef\xbb\xbf" + x,
    "UTF-16": lambda x: x.decode().encode("utf-16"),
    "UTF-16 without a BOM": lambda x: x.decode().encode("utf-16-le"),
    "big UTF-16 after a newline": lambda x: ("\n" + x.decode()).encode("utf-16-be"),
    "UTF-16 that is declared only": lambda x: x.replace(b'"1.0"', b'"1.0" encoding="utf-16"', 1),
    "a character set that does not exist": lambda x: x.replace(b'"1.0"', b'"1.0" encoding="none"', 1),
    "a codec that is no character set": lambda x: x.replace(b'"1.0"', b'"1.0" encoding="idna"', 1),
    "Latin-1": lambda x: x.replace(b'"1.0"', b'"1.0" encoding="iso-8859-1"', 1).replace(b"a@", b"\xe4@"),
    "bare ampersand": lambda x: x.replace(b"a@receiver", b"a&b@receiver"),
    "entity of HTML": lambda x: x.replace(b"a@receiver", b"a&nbsp;@receiver"),
    "bare angle brackets": lambda x: x.replace(b"a@receiver.example", b"<a@receiver.example> 1 < 2"),
    "control characters": lambda x: x.replace(b"a@receiver", b"\0\1@receiver"),
    "trash behind": lambda x: x + b"\r\n\0\0 -- \nthe list\n<p>",
    "angle bracket in an attribute": lambda x: x.replace(b"<version>", b"<version a='>' b=\"/>\">"),
    "namespaces": lambda x: re.sub(rb"<(/?)(?=[a-z])", rb"<\1ns0:", x),
}


@pytest.mark.parametrize("spoil", MALFORMED)
def test_what_is_not_well_formed_is_read_and_named(spoil: str) -> None:
    document = MALFORMED[spoil](ROWS)
    assert document != ROWS
    (report,) = reports_in(document)
    assert [("198.51.100.7", 20), ("192.0.2.1", 1000)] == [(one.source, one.count) for one in report.rows]
    assert ("receiver.example", "example.com", "none") == (report.reporter, report.domain, report.policy)
    assert re.match(r"the XML (is malformed|ends in the middle),? in line \d+", report.remarks[0])


@pytest.mark.parametrize("spoil", NO_MATTER)
def test_what_can_be_read_without_doubt_is_not_talked_about(spoil: str) -> None:
    document = NO_MATTER[spoil](ROWS)
    assert document != ROWS
    (report,) = reports_in(document)
    assert ("receiver.example", 2, ()) == (report.reporter, len(report.rows), report.remarks)


def test_the_last_row_of_a_report_that_is_cut_is_not_half_read() -> None:
    cut = ROWS[: ROWS.rindex(b"<policy_evaluated>")]
    (report,) = reports_in(cut)
    assert [20] == [one.count for one in report.rows]
    assert "ends in the middle" in report.remarks[0]


def test_reports_in_one_document_are_all_read() -> None:
    second = xml(SERVICE, number="2")
    assert [[1000], [20]] == counts(GOOD + second)
    assert [[1000], [20]] == counts(gzip.compress(GOOD) + gzip.compress(second))
    assert [[1000], [20]] == counts(GOOD.replace(b"</feedback>", b"") + second)
    assert [[20]] == counts(b"<feedback>" + b"<x>" * 50 + b"</feedback>" + second)  # a bad one before it


def flat(element: ElementTree.Element) -> tuple[str, str, list[object]]:
    pieces = [element.text or "", *(child.tail or "" for child in element)]
    text = "".join(piece for piece in pieces if piece.strip(" \t\r\n"))
    return element.tag, text, [flat(child) for child in element]


def flattened(element: Element) -> tuple[str, str, list[object]]:
    return element.name, element.text, [flattened(child) for child in element.children]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.tuples(st.sampled_from("abc"), TEXT, st.just([])),
    lambda inner: st.tuples(st.sampled_from("abc"), TEXT, st.lists(inner, max_size=3)),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(trees=st.lists(TREES, max_size=4), cdata=st.booleans(), encoding=st.sampled_from(["utf-8", "utf-16"]))
def test_what_is_well_formed_is_read_as_a_parser_of_xml_reads_it(trees: list[Any], cdata: bool, encoding: str) -> None:
    def build(tree: Any) -> ElementTree.Element:
        name, text, children = tree
        element = ElementTree.Element(name)
        element.text = text
        element.extend([build(child) for child in children])
        return element

    root = ElementTree.Element("feedback")
    root.extend([build(tree) for tree in trees])
    written = ElementTree.tostring(root, encoding="unicode")
    if cdata:
        written = written.replace("<feedback>", "<feedback><!-- <x> --><?y <z> ?><d><![CDATA[<&]]></d>", 1)
    document, charset = as_utf8(written.encode(encoding))
    expected = [flat(child) for child in ElementTree.fromstring(written)]
    found = Root(document, document.index(b"<"), charset)
    assert expected == [flattened(child) for child in found]
    assert found.ended


def test_the_strict_reading_ends_where_the_document_is_not_well_formed() -> None:
    with pytest.raises(NotWellFormed) as error:
        list(Root(b"<feedback><a></b></a></feedback>", 0, "utf-8"))
    assert 13 == error.value.at


# ---- wrappings


def zip_of(names: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return data.getvalue()


def without_name() -> bytes:
    """A zip archive whose member has no name: the name is cut out of both of its headers."""
    data = zip_of({"x": GOOD}, zipfile.ZIP_STORED)
    local, central = data.index(b"PK\3\4"), data.index(b"PK\1\2")
    first = data[:26] + b"\0\0" + data[28:30] + data[31:central]
    entry = data[central : central + 28] + b"\0\0" + data[central + 30 : central + 46]
    end = bytearray(data[central + 47 :])
    struct.pack_into("<II", end, 12, len(entry), len(first))
    assert local == 0
    return first + entry + bytes(end)


def encrypted() -> bytes:
    """A zip archive that says that its first member is encrypted."""
    data = bytearray(zip_of({"a": GOOD, "b": xml(SERVICE, number="2")}))
    for at in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
        data[at] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: gzip.compress(x) + b"\r\n",
        lambda x: gzip.compress(x) + b"-- \nA mailing list\n",
        lambda x: gzip.compress(gzip.compress(x)),
        lambda x: gzip.compress(zipped(a=x)),
        lambda x: zip_of({"folder/": b"", "folder/a.xml": x, "__MACOSX/._a": b"x"}),
        lambda x: zip_of({"a.xml.gz": gzip.compress(x)}),
        lambda x: zip_of({"a.zip": zip_of({"b.xml": x})}),
        lambda x: zip_of({"a.eml": mailed(gzip.compress(x), "gzip")}),
        lambda x: gzip.compress(mailed(zipped(a=x), "zip")),
        lambda x: mailed(gzip.compress(x), "gzip").replace(b"\n", b"\r\n"),
        lambda x: mailed(gzip.compress(gzip.compress(x)), "octet-stream"),
        lambda x: mailed(x, "xml"),
        lambda x: b"From joe@example.com\n" + mailed(gzip.compress(x), "gzip"),
        lambda x: b"\n\n" + x,
    ],
)
def test_one_wrapping_may_be_in_another(wrap: Callable[[bytes], bytes]) -> None:
    assert [[1000]] == counts(wrap(GOOD))
    assert [] == unread(wrap(GOOD))


def test_a_zip_member_without_a_name_is_read() -> None:
    assert "" == zipfile.ZipFile(io.BytesIO(without_name())).infolist()[0].filename
    assert [[1000]] == counts(without_name())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: gzip.compress(b"unused"), ["there is no report in it"]),
        (lambda: zip_of({"a": b"unused"}), ["member 1: it is not XML"]),
        (lambda: mailed(gzip.compress(b"unused\n"), "gzip"), ["part 2: it is not XML"]),
        (lambda: TLS, ["it is a report on TLS (RFC 8460), not on DMARC"]),
        (lambda: mailed(gzip.compress(TLS), "tlsrpt+gzip"), ["part 2: it is a report on TLS"]),
        (lambda: mailed(TLS, "tlsrpt+json"), ["part 2: it is a report on TLS"]),
        (lambda: zip_of({}), ["there is no report in it"]),
        (lambda: gzip.compress(b""), ["there is no report in it"]),
        (lambda: gzip.compress(GOOD)[:-20], ["the compressed data is damaged: it ends in the middle"]),
        (lambda: b"\x1f\x8b", ["the compressed data is damaged"]),
        (lambda: b"PK\3\4", ["the compressed data is damaged"]),
        (lambda: nested(20), ["it is packed in more than 4 wrappings"]),
        (lambda: b"<html><body>It works!</body></html>", ["it is XML, but not an aggregate report"]),
        (lambda: b"\xff" * 100, ["there is no report in it"]),
    ],
)
def test_what_is_no_report_is_named(data: Callable[[], bytes], said: list[str]) -> None:
    found = unread(data())
    assert [True] == [one.startswith(beginning) for one, beginning in zip(found, said, strict=True)]
    assert [] == reports_in(data())


def nested(levels: int) -> bytes:
    data = GOOD
    for _ in range(levels):
        data = gzip.compress(data)
    return data


def test_a_member_that_cannot_be_read_costs_no_other() -> None:
    damaged = bytearray(zip_of({"a": xml(SERVICE), "b": GOOD}, zipfile.ZIP_STORED))
    damaged[damaged.index(b"198.51")] ^= 1
    assert ([[1000]], ["member 1: the compressed data is damaged"]) == (counts(bytes(damaged)), unread(bytes(damaged)))
    assert ([[20]], ["member 1: it is encrypted"]) == (counts(encrypted()), unread(encrypted()))
    mixed = zip_of({"a": b"unused", "b": GOOD, "c": b"<feedback/>", "d": gzip.compress(SERVICE.encode())[:-1]})
    assert [[1000]] == counts(mixed)
    assert ["member 1", "member 3", "member 4"] == [one.partition(":")[0] for one in unread(mixed)]


def test_a_month_of_reports_may_be_in_one_archive() -> None:
    month = zip_of({str(n): xml(row(count=1), number=str(n)) for n in range(300)})
    assert [[1]] * 300 == counts(month)


def test_a_mail_with_several_reports_is_read_whole() -> None:
    mail = EmailMessage()
    mail["Subject"] = "Reports"
    mail.set_content("Three reports, and a picture.")
    mail.add_alternative("<html><body>Three reports</body></html>", subtype="html")
    mail.add_attachment(gzip.compress(GOOD), maintype="application", subtype="gzip", filename="a")
    mail.add_attachment(b"\x89PNG", maintype="image", subtype="png")
    mail.add_attachment(gzip.compress(b"x")[:-9], maintype="application", subtype="gzip", filename="b")
    inner = EmailMessage()
    inner["Subject"] = "forwarded"
    inner.set_content("see below")
    inner.add_attachment(zipped(a=xml(SERVICE), b=xml(BROKEN)), maintype="application", subtype="zip", filename="c")
    mail.add_attachment(inner)
    assert [[1000], [20], [5]] == counts(mail.as_bytes())
    assert ["part 5: the compressed data is damaged: it ends in the middle"] == unread(mail.as_bytes())


@pytest.mark.parametrize(
    "encoded",
    [
        lambda x: encodebytes(x).rstrip(b"=\n"),
        lambda x: encodebytes(x).rstrip(b"=\n") + b"====",
        lambda x: encodebytes(x).rstrip(b"=\n") + b"=\n-- \nA footer of a list",
        lambda x: encodebytes(x).rstrip(b"=\n") + b"A",
        lambda x: encodebytes(x).replace(b"\n", b" !\r\n\t"),
    ],
)
def test_base64_is_read_however_it_is_padded(encoded: Callable[[bytes], bytes]) -> None:
    head = b"Subject: x\nContent-Type: application/gzip\nContent-Transfer-Encoding: base64\n\n"
    for extra in (b"", b"  ", b"   "):  # so that each padding is needed once
        assert [[1000]] == counts(head + encoded(gzip.compress(GOOD + extra)))


# ---- folders and mailboxes


def mbox(*mails: bytes, end: bytes = b"\n") -> bytes:
    lines = b"".join(b"From MAILER-DAEMON Sun Nov 29 14:00:00 2026\n" + mail + b"\n" for mail in mails)
    return lines.replace(b"\n", end)


MAILS = [mailed(gzip.compress(xml(row(count=n), number=str(n))), "gzip") for n in (1, 2, 3)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_every_mail_of_an_mbox_is_read(end: bytes) -> None:
    assert [[1], [2], [3]] == counts(mbox(*MAILS, end=end))
    assert [[1], [2], [3]] == counts(gzip.compress(mbox(*MAILS, end=end)))


def test_a_mail_that_cannot_be_read_costs_no_other_and_is_named_by_its_number() -> None:
    spoilt = mailed(gzip.compress(GOOD)[:-1], "gzip")
    found = mbox(MAILS[0], b"Subject: lunch?\n\nAt one.\n", MAILS[1], spoilt, b"", MAILS[2])
    assert [[1], [2], [3]] == counts(found)
    assert ["mail 2", "mail 4, part 2", "mail 5"] == [one.partition(":")[0] for one in unread(found)]


def test_what_python_writes_as_an_mbox_is_read(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "mbox")
    for mail in MAILS:
        box.add(mail)
    box.close()
    assert [[1], [2], [3]] == counts((tmp_path / "mbox").read_bytes())


def test_lines_with_from_in_a_mail_begin_no_other() -> None:
    text = b"Subject: x\n\n>From joe Sun Nov 29 14:00:00 2026\n\nFrom the beginning we said so\n\nFrom: here\n"
    assert [text + b"\n", b"Subject: y\n\n\n"] == list(mails([mbox(text, b"Subject: y\n\n")], 1000))


@pytest.mark.parametrize(
    "line", [b"From joe@example.com", b"From - Sun Nov 29 14:00:00 2026", b"From a b@c Sun, 29 Nov 2026 14:00:00 +0000"]
)
def test_a_mail_of_an_mbox_begins_with_any_of_these(line: bytes) -> None:
    assert [b"a\n\n", b"b\n"] == list(mails([line + b"\na\n\n" + line + b"\r\nb\n"], 1000))


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([b"From a@b\n", b"From a Sun Nov 29 14:00:00 2026\n", b"\n", b"x\r\n", b"long" * 20])
    ),
    size=st.integers(1, 7),
)
def test_an_mbox_is_the_same_however_it_is_cut(pieces: list[bytes], size: int) -> None:
    data = b"From first\n" + b"".join(pieces)
    whole = list(mails([data], 60))
    assert whole == list(mails([data[at : at + size] for at in range(0, len(data), size)], 60))
    assert all(mail is None or len(mail) <= 60 for mail in whole)


def read(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    """Status, summaries and stderr of the command."""
    status = cli.main(["dmarc", "read", "--json", *map(str, words)])
    out, err = capsys.readouterr()
    return status, json.loads(out), err


def test_standard_input_may_be_an_mbox(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(mbox(*MAILS))))
    status, (summary,), said = read(capsys, "-")
    assert (0, 6, 3, "") == (status, summary["messages"], summary["reports"], said)


def test_a_folder_and_a_maildir_are_read_and_what_is_bad_in_them_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = mailbox.Maildir(tmp_path / "Maildir")
    for mail in MAILS[:2]:
        box.add(mail)
    (tmp_path / "Maildir" / "cur" / "1:2,S").write_bytes(MAILS[2])
    (tmp_path / "Maildir" / "tmp" / "half").write_bytes(b"half of it")
    (tmp_path / "Maildir" / "dovecot-uidlist").write_text("3 V1\n")
    folder = tmp_path / "folder"
    (folder / "2026").mkdir(parents=True)
    (folder / "a.xml").write_bytes(xml(row(count=10), number="a"))
    (folder / "2026" / "b.xml.gz").write_bytes(gzip.compress(xml(row(count=20), number="b")))
    (folder / "2026" / "empty").write_bytes(b"")
    (folder / "2026" / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    status, (summary,), err = read(capsys, tmp_path / "Maildir", folder)
    assert (1, 36) == (status, summary["messages"])
    assert [f"gatekeeper: {folder}/2026/empty: there is no report in it"] == [
        line.partition(": neither")[0] for line in err.splitlines()
    ]


def test_a_file_that_cannot_be_opened_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good").write_bytes(GOOD)
    status, (summary,), err = read(capsys, tmp_path / "none", tmp_path / "good")
    assert (2, 1000) == (status, summary["messages"])
    assert f"gatekeeper: cannot read {tmp_path}/none: No such file or directory\n" == err


def test_an_mbox_may_be_larger_than_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "MAX_FILE", 1024 * 1024)
    box = tmp_path / "mbox"
    filler = b"Subject: a large attachment\n\n" + (b"x" * 76 + b"\n") * 10_000
    box.write_bytes(mbox(MAILS[0], filler, filler * 3, filler, MAILS[1]))
    status, (summary,), said = read(capsys, box)
    assert (1, 3) == (status, summary["messages"])
    nothing, large = "there is no report in it", "it is larger than 1 MiB"
    expected = [f"gatekeeper: {box}: mail {n}: {what}" for n, what in ((2, nothing), (3, large), (4, nothing))]
    assert expected == [line.partition(": neither")[0] for line in said.splitlines()]


# ---- anything at all

WHOLE = [
    GOOD,
    gzip.compress(GOOD),
    zipped(a=GOOD, b=xml(SERVICE)),
    mailed(gzip.compress(GOOD), "gzip"),
    mbox(MAILS[0], MAILS[1]),
    ROWS.decode().encode("utf-16"),
]


@settings(max_examples=200, deadline=None)
@given(
    whole=st.sampled_from(WHOLE),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), st.binary(max_size=30)), max_size=4),
    cut=st.none() | st.floats(0, 1),
)
def test_a_report_beside_a_spoilt_one_is_never_lost(
    whole: bytes, edits: list[tuple[float, int, bytes]], cut: float | None
) -> None:
    spoilt = whole
    for where, length, put in edits:
        at = int(where * len(spoilt))
        spoilt = spoilt[:at] + put + spoilt[at + length :]
    if cut is not None:
        spoilt = spoilt[: int(cut * len(spoilt))]
    right = xml(row("198.51.100.99", 77), number="right")
    for beside in (zip_of({"a": spoilt, "b": right}), zip_of({"a": right, "b": spoilt})):
        assert [77] in counts(beside)
        assert all(one.isprintable() for one in unread(beside))
    assert reports_in(spoilt) or unread(spoilt)
    assert all(isinstance(one, Report) for one in reports_in(spoilt))


@pytest.mark.parametrize("whole", WHOLE[:2], ids=["xml", "gzip"])
def test_a_report_that_ends_anywhere_is_read_or_named(whole: bytes) -> None:
    for end in range(len(whole)):
        found = reports_in(whole[:end])
        assert unread(whole[:end]) or found[0].remarks or whole[end:].strip() == b""


PIECES = (
    *("<feedback>", "</feedback>", "<record>", "</record>", "<row>", "<count>", "1", "</count>", "<source_ip>"),
    *("192.0.2.1", "</source_ip>", "<![CDATA[", "]]>", "<!--", "-->", "<?", "?>", "<domain>", "example.com"),
    *("<policy_published>", "</policy_published>", "&#0;", "&#xd800;", "&#99999999;", "<x a='>'/>", "<", ">", "\0"),
)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES)))
def test_no_pieces_of_a_report_raise_anything(pieces: list[str]) -> None:
    document = ("<feedback>" + "".join(pieces)).encode()
    assert reports_in(document) or unread(document)
    assert contents(document)
