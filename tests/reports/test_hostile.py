# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports made to harm whoever reads them: each is refused in a word, and costs little time and memory."""

import bz2
import gzip
import io
import lzma
import re
import struct
import subprocess
import sys
import zipfile
from base64 import encodebytes
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.reports.mail_parts import MAX_DEPTH, MAX_HEADER, MAX_PARTS, MailError, attachments
from gatekeeper.reports.unpack import documents
from tests.reports.test_reports import PASSED, contents, unread, xml

MEGABYTE = 1024 * 1024


def packed(method: int, megabytes: int) -> bytes:
    """A zip archive whose only member is that large."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive, archive.open("report.xml", "w") as member:
        for _ in range(megabytes):
            member.write(bytes(MEGABYTE))
    return data.getvalue()


def small(size: int) -> bytes:
    """A zip archive whose deflated member says that it has `size` bytes, while it has 100 million."""
    data = packed(zipfile.ZIP_DEFLATED, 100)
    return data.replace(struct.pack("<I", 100 * MEGABYTE), struct.pack("<I", size))


def hungry() -> bytes:
    """A zip archive with LZMA whose header asks for a dictionary of 4 GB."""
    data = packed(zipfile.ZIP_LZMA, 1)
    at = data.index(b"\x05\x00\x5d") + 3  # the size of the properties, and lc, lp and pb
    return data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]


def empty_members(count: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number in range(count):
            archive.writestr(str(number), b"")
    return data.getvalue()


def zip_in_zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", packed(zipfile.ZIP_DEFLATED, 100))
    return data.getvalue()


def multiparts(levels: int) -> bytes:
    return "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(levels)).encode()


def with_rows(inner: bytes, count: int) -> bytes:
    row = b"<record><row><source_ip>1.1.1.1</source_ip><count>1</count></row>%s</record>" % inner
    return xml().replace(b"</feedback>", row * count + b"</feedback>")


BOMBS: dict[str, Callable[[], bytes]] = {
    "bzip2.zip": lambda: packed(zipfile.ZIP_BZIP2, 100),
    "lzma.zip": lambda: packed(zipfile.ZIP_LZMA, 80),
    "lzma-dictionary.zip": hungry,
    "deflate.zip": lambda: packed(zipfile.ZIP_DEFLATED, 100),
    "size-is-a-lie.zip": lambda: small(10),
    "members.zip": lambda: empty_members(20_000),
    "zip-in-zip.zip": zip_in_zip,
    "large.gz": lambda: gzip.compress(bytes(100 * MEGABYTE), 1),
    "members.gz": lambda: gzip.compress(b"") * 100_000,
    "gzip-in-gzip.gz": lambda: gzip.compress(gzip.compress(bytes(100 * MEGABYTE), 1)),
    "large.bz2": lambda: bz2.compress(bytes(100 * MEGABYTE)),
    "large.xz": lambda: lzma.compress(bytes(50 * MEGABYTE), preset=0),
    "nested.eml": lambda: multiparts(3000),
    "nested-100000.eml": lambda: multiparts(100_000),
    "forwarded-100000.eml": lambda: b"Content-Type: message/rfc822\n\n" * 100_000,
    "parts.eml": lambda: b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 1_000_000,
    "short-lines.eml": lambda: b"Subject: x\n\n" + b"a\n" * (15 * MEGABYTE),
    "fields.eml": lambda: b"a: b\n" * (3 * MEGABYTE) + b"\n",
    "parameters.eml": lambda: b"Content-Type: multipart/mixed" + b'; a="\\";"' * 200_000 + b"\n\n",
    "few-parameters.eml": lambda: b"Content-Type: multipart/mixed" + b'; a="\\";"' * 10_000 + b"\n\n",
    "attributes.xml.gz": lambda: gzip.compress(b"<feedback " + b" ".join(b"a%x=''" % n for n in range(500_000))),
    "attributes-utf16.xml.gz": lambda: gzip.compress(("<feedback " + "a='' " * 500_000).encode("utf-16")),
    "comment.xml.gz": lambda: gzip.compress(b"<feedback><!--" + b"x" * 60 * MEGABYTE + b"-->"),
    "text.xml.gz": lambda: gzip.compress(b"<feedback>" + b"x" * 60 * MEGABYTE),
    "results.xml.gz": lambda: gzip.compress(with_rows(b"<auth_results>" + b"<spf/>" * 1900 + b"</auth_results>", 5000)),
    "entities.xml": lambda: b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><feedback>&b;</feedback>',
    "nested-100000.xml": lambda: b"<feedback>" + b"<a>" * 100_000,
    "unreadable-name.zip": lambda: packed(zipfile.ZIP_DEFLATED, 1).replace(b"report.xml", b"\xff\xfe\xfd\x00\x01x.xml"),
}

READ = """
import sys
from gatekeeper import cli
status = cli.main(["dmarc", "read", *sys.argv[1:]])
with open("/proc/self/status") as lines:
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
print("status", status, "peak", peak // 1024)
"""


@pytest.mark.slow
def test_a_batch_of_bombs_costs_little_memory_and_a_good_report_among_them_is_read(tmp_path: Path) -> None:
    files = []
    for name, make in (BOMBS | {"good.xml": lambda: xml(PASSED)}).items():
        files.append(tmp_path / name)
        files[-1].write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, files)], capture_output=True, text=True, check=True, timeout=120
    )
    *summary, last = done.stdout.splitlines()
    assert "example.com: 1000 messages" in summary[0]
    said = dict(line.removeprefix(f"gatekeeper: {tmp_path}/").split(": ", 1) for line in done.stderr.splitlines())
    assert sorted(BOMBS) == sorted(said)  # one line each, with its name
    word, status, _, peak = last.split()
    assert ("status", "1") == (word, status)
    assert int(peak) < 300, "megabytes; the largest file and what it may unpack to are 96 together"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "words"),
    [
        ("bzip2.zip", "never are"),
        ("lzma-dictionary.zip", "never are"),
        ("size-is-a-lie.zip", "damaged"),
        ("members.zip", "more than 1000 members"),
        ("members.gz", "more than 1000 gzip members"),
        ("nested.eml", "more than 20 deep"),
        ("parts.eml", "more than 1000 parts"),
        ("fields.eml", "header of a part"),
        ("unreadable-name.zip", "not XML"),
        ("attributes-utf16.xml.gz", "which domain"),
        ("comment.xml.gz", "which domain"),
        ("results.xml.gz", "more than 600000 results"),
    ],
)
def test_a_word_says_what_is_wrong(bomb: str, words: str) -> None:
    (said,) = unread(BOMBS[bomb]())
    assert re.search(words, said)


def test_gzip_may_have_several_members_and_zeros_behind_them() -> None:
    document = xml(PASSED)
    halves = gzip.compress(document[:100]) + gzip.compress(b"") + gzip.compress(document[100:]) + bytes(512)
    assert [document] == contents(halves)
    for damaged in (gzip.compress(document)[:-1], gzip.compress(document)[:40]):
        assert ["the compressed data is damaged: it ends in the middle"] == unread(damaged)


REPORT = gzip.compress(xml(PASSED))


def mail(boundary: str = "b", end: str = "\n", encoding: str = "8bit", content: bytes = REPORT) -> bytes:
    """A mail with a report behind a text, within two multiparts."""
    lines = [
        "Subject: Report",
        "CONTENT-TYPE : multipart/mixed;",
        f'\tx=y; Boundary = "{boundary}"',
        "",
        "preamble",
        f"--{boundary}",
        f"Content-Type: multipart/alternative; boundary={boundary}2",
        "",
        f"--{boundary}2",
        "",
        "text",
        f"--{boundary}2",
        "Content-Type: application/gzip",
        f"Content-Transfer-Encoding: {encoding}",
        "",
        "",
    ]
    ends = [f"--{boundary}2--", f"--{boundary}--", "--b", ""]
    return end.join(lines).encode() + content + end.encode() + end.join(ends).encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("boundary", ["b", "=_a+(x)?.*", "two words"])
def test_the_parts_of_a_mail_are_what_stands_between_its_boundaries(end: str, boundary: str) -> None:
    raw = mail(boundary.replace(" ", "-"), end)
    assert [b"text", REPORT] == list(attachments(raw))
    assert [xml(PASSED)] == contents(raw)


@pytest.mark.parametrize("encoding", ["base64", "BASE64 "])
@pytest.mark.parametrize("cut", [0, 1, 2])  # of its padding
def test_base64_without_its_padding_is_read(encoding: str, cut: int) -> None:
    encoded = encodebytes(REPORT).rstrip(b"=\n")
    assert [b"text", REPORT] == list(attachments(mail(encoding=encoding, content=encoded + b"=" * cut)))


def test_a_mail_may_be_attached_and_a_part_may_have_no_header_or_no_end() -> None:
    inner = b"Content-Type: multipart/mixed; boundary=i\n\n--i\n\nfirst\n--i\n\nsecond"
    outer = b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: message/rfc822\n\n" + inner
    assert [b"first", b"second"] == list(attachments(outer))
    assert [b""] == list(attachments(b"Content-Type: multipart/mixed; boundary=o\n\n--o\n"))
    assert [] == list(attachments(b"Content-Type: multipart/mixed; boundary=o\n\nno part"))


@pytest.mark.parametrize(
    "raw",
    [
        multiparts(MAX_DEPTH + 2),
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * (MAX_PARTS + 1),
        b"a: b\n" * (MAX_HEADER // 5 + 1),
        b"Content-Type: message/rfc822\n\n" * (MAX_DEPTH + 2),
    ],
)
def test_a_mail_beyond_a_limit_is_refused(raw: bytes) -> None:
    with pytest.raises(MailError):
        list(attachments(raw))


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([b"--b", b"--", b"\n", b"\r\n", b"\n\n", b"Content-Type: multipart/x; boundary=b", b"x", b" ;"])
    )
)
def test_no_mail_raises_anything_else_and_parts_lie_within_it(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    try:
        found = list(attachments(raw))
    except MailError:
        return
    assert all(part in raw for part in found)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 300), data=st.binary(max_size=20), kind=st.sampled_from(["zip", "gzip"]))
def test_a_damaged_archive_is_a_word(at: int, data: bytes, kind: str) -> None:
    good = xml(PASSED)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("report.xml", good)
    whole = stream.getvalue() if kind == "zip" else gzip.compress(good)
    for candidate in (whole[:at] + data + whole[at + len(data) :], whole[:-at] + data, whole[-at:]):
        assert [*documents(candidate)]
