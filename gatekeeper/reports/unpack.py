# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacking files that contain aggregate reports: XML, gzip, zip, or a mail with those attached.

Anybody may mail us a report, so nothing is trusted: the size and number of what is unpacked are limited, and exceeding
a limit is an error, not a truncation. **What could grow is limited before it grows**: no size that a file states is
believed, the number of members is known before they are listed, and only what can be unpacked piece by piece is. So of
zip's methods deflate alone, which all reporters use: Python unpacks a piece of bzip2 or LZMA whole, however large that
becomes, and a header of LZMA may ask for gigabytes. No file names are taken from an archive or a mail.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from io import BytesIO

from gatekeeper.reports.mail_parts import MailError, attachments

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of all XML in one file together: the largest real reports have a few megabytes."""
MAX_FILE = 32 * 1024 * 1024
"""Bytes of the file itself."""
MAX_DOCUMENTS = 100
_MAX_GZIP_MEMBERS = 1000  # gzip files are files put together; some tools write one for each 64 kB
_CHUNK = 65536
_GZIP, _ZIP, _ZIP_ENTRY = b"\x1f\x8b", b"PK\x03\x04", b"PK\x01\x02"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = "the compressed data is damaged"


# What zlib and zipfile raise for data that somebody has made up.
_MALFORMED = (
    *(zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile, struct.error),
    *(OSError, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, IndexError),
)


class ReportError(ValueError):
    """A file cannot be read as an aggregate report; the message says why, in our own words."""


def documents(data: bytes) -> list[bytes]:
    """Return the XML documents in a file. Raises ReportError."""
    if len(data) > MAX_FILE:
        raise ReportError(f"the file is larger than {MAX_FILE // 1024 // 1024} MiB")
    try:
        found = _all(data)
    except ReportError:
        raise
    except _MALFORMED:
        raise ReportError(f"{_DAMAGED}, or encrypted") from None
    if not found:
        raise ReportError("there is no report in it: neither XML, gzip, zip nor a mail with one of them attached")
    return found


def _all(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    left = MAX_BYTES
    for document in _unwrapped(data):
        content = _read(document, left)
        left -= len(content)
        found.append(content)
        if len(found) > MAX_DOCUMENTS:
            raise ReportError(f"there are more than {MAX_DOCUMENTS} documents in it")
    return found


_Chunks = Iterator[bytes]
"""A document that is unpacked as it is read, in pieces of at most _CHUNK bytes."""


def _unwrapped(data: bytes) -> Iterator[_Chunks]:
    """Yield each document."""
    if data.startswith(_GZIP):
        yield _inflated(data)
    elif data.startswith(_ZIP):
        yield from _members(data)
    elif data[:_CHUNK].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        yield iter((data,))
    else:
        yield from _attached(data)


def _inflated(data: bytes) -> _Chunks:
    """Unpack a gzip file (RFC 1952), all its members."""
    at = 0
    for _ in range(_MAX_GZIP_MEMBERS):
        if not data.startswith(_GZIP, at):
            break
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            packed = inflate.unconsumed_tail
            if not packed:
                packed = data[at : at + _CHUNK]
                at += len(packed)
            chunk = inflate.decompress(packed, _CHUNK)
            if not packed and not chunk:
                raise ReportError(_DAMAGED)
            yield chunk
        at -= len(inflate.unused_data)
    if data[at:].strip(b"\0"):
        raise ReportError(_DAMAGED)


def _members(data: bytes) -> Iterator[_Chunks]:
    # Python makes an object of each entry when it opens the archive, before anybody can say stop.
    if data.count(_ZIP_ENTRY) > MAX_DOCUMENTS:
        raise ReportError(f"there are more than {MAX_DOCUMENTS} members in the archive")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.is_dir() or member.filename.startswith("__MACOSX/"):
                continue
            if member.compress_type not in _ZIP_METHODS:
                raise ReportError("a member is compressed in a way that reports never are: pack it with deflate")
            with archive.open(member) as packed:
                yield iter(partial(packed.read, _CHUNK), b"")


def _attached(mail: bytes) -> Iterator[_Chunks]:
    try:
        for content in attachments(mail):
            if content.startswith((_GZIP, _ZIP, b"<?xml", b"<feedback")):
                yield from _unwrapped(content)
    except MailError as error:
        raise ReportError(str(error)) from None


def _read(chunks: _Chunks, limit: int) -> bytes:
    """Read a whole document. Raises ReportError past `limit` bytes: a few kilobytes can unpack to terabytes."""
    content = BytesIO()
    for chunk in chunks:
        content.write(chunk)
        if content.tell() > limit:
            raise ReportError(f"it unpacks to more than {MAX_BYTES // 1024 // 1024} MiB")
    return content.getvalue()
