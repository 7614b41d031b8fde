# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacking files that contain aggregate reports: XML, gzip, zip, or a mail with those attached.

Anybody may mail us a report, so nothing is trusted: the size and number of what is unpacked are limited, and exceeding
a limit is an error, not a truncation. No file names are taken from an archive or a mail.
"""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from email import policy
from email.parser import BytesParser
from io import BytesIO
from typing import Protocol

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of all XML in one file together: the largest real reports have a few megabytes."""
MAX_FILE = 32 * 1024 * 1024
"""Bytes of the file itself."""
MAX_DOCUMENTS = 100
_CHUNK = 65536


class _Stream(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class ReportError(ValueError):
    """A file cannot be read as an aggregate report; the message says why, in our own words."""


def documents(data: bytes) -> list[bytes]:
    """Return the XML documents in a file. Raises ReportError."""
    if len(data) > MAX_FILE:
        raise ReportError(f"the file is larger than {MAX_FILE // 1024 // 1024} MiB")
    found: list[bytes] = []
    left = MAX_BYTES
    for document in _unwrapped(data):
        content = _read(document, left)
        left -= len(content)
        found.append(content)
        if len(found) > MAX_DOCUMENTS:
            raise ReportError(f"there are more than {MAX_DOCUMENTS} documents in it")
    if not found:
        raise ReportError("there is no report in it: neither XML, gzip, zip nor a mail with one of them attached")
    return found


def _unwrapped(data: bytes) -> Iterator[_Stream]:
    """Yield each document as a stream that decompresses as it is read."""
    if data.startswith(b"\x1f\x8b"):
        yield gzip.GzipFile(fileobj=BytesIO(data))
    elif data.startswith(b"PK\x03\x04"):
        yield from _members(data)
    elif data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        yield BytesIO(data)
    else:
        yield from _attachments(data)


def _members(data: bytes) -> Iterator[_Stream]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for number, member in enumerate(archive.infolist()):
                if number > MAX_DOCUMENTS:
                    raise ReportError(f"there are more than {MAX_DOCUMENTS} members in the archive")
                if not member.is_dir() and not member.filename.startswith("__MACOSX/"):
                    yield archive.open(member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError("the zip archive is damaged, or encrypted") from None


def _attachments(data: bytes) -> Iterator[_Stream]:
    """Yield the documents attached to a mail. Parsing with `compat32` never raises, whatever the mail contains."""
    mail = BytesParser(policy=policy.compat32).parsebytes(data)
    for part in mail.walk():
        payload = None if part.is_multipart() else part.get_payload(decode=True)
        if isinstance(payload, bytes) and payload.startswith((b"\x1f\x8b", b"PK\x03\x04", b"<?xml", b"<feedback")):
            yield from _unwrapped(payload)


def _read(stream: _Stream, limit: int) -> bytes:
    """Read all of `stream`. Raises ReportError past `limit` bytes: a few kilobytes can unpack to terabytes."""
    content = BytesIO()
    try:
        while chunk := stream.read(_CHUNK):
            content.write(chunk)
            if content.tell() > limit:
                raise ReportError(f"it unpacks to more than {MAX_BYTES // 1024 // 1024} MiB")
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        raise ReportError("the compressed data is damaged") from None
    return content.getvalue()
