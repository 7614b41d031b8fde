# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacking files that contain aggregate reports: XML, gzip, zip, a mail, an mbox, one in another.

Anybody may mail us a report, so nothing is trusted: the size and number of what is unpacked are limited, and exceeding
a limit is an error, not a truncation. **What could grow is limited before it grows**: no size that a file states is
believed, the number of members is known before they are listed, and only what can be unpacked piece by piece is. So of
zip's methods deflate alone, which all reporters use: Python unpacks a piece of bzip2 or LZMA whole, however large that
becomes, and a header of LZMA may ask for gigabytes. No file names are taken from an archive or a mail.

**Nothing costs what stands beside it.** What cannot be read is yielded as `Unread`, with its place, and the next
member, part or mail follows. Each mail of an mbox has limits of its own, as if it were a file.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import chain
from typing import NamedTuple

from gatekeeper.reports.mail_parts import MailError, attachments, header_of
from gatekeeper.reports.mailbox import BEGINNING, mails

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of one XML document: the largest real reports have a few megabytes."""
MAX_TOTAL = 2 * MAX_BYTES
"""Bytes that are unpacked of one file or one mail, all its documents together."""
MAX_FILE = 32 * 1024 * 1024
"""Bytes of one file, or of one mail of an mbox, which may be of any size."""
MAX_DOCUMENTS = 1000
"""Members of one archive, and documents of one file or one mail."""
MAX_NESTING = 4
"""How many wrappings may be around a document: gzip in zip in a mail are three."""
_MAX_GZIP_MEMBERS = 1000  # gzip files are files put together; some tools write one for each 64 kB
_CHUNK = 65536
_GZIP, _ZIP, _ZIP_ENTRY, _EMPTY_ZIP = b"\x1f\x8b", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_ENCRYPTED = 1  # a bit of a member's flags
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FIELD = re.compile(rb"[!#-9;-z|~]{1,100}[ \t]*:")  # of a mail; not of JSON
_XML = re.compile(rb"(?:\xef\xbb\xbf|\xfe\xff|\xff\xfe)?[\0\s]*<")  # UTF-16 too
_FEEDBACK = re.compile(rb"<\0?(?:[\w.-]\0?){0,100}:?\0?f\0?e\0?e\0?d\0?b\0?a\0?c\0?k\0?[\s>/]")
_TLS = re.compile(rb'\s*\{.*"(?:organization-name|policies)"', re.DOTALL)

_DAMAGED = "the compressed data is damaged"
_NOTHING = "there is no report in it: neither XML, gzip, zip nor a mail with one of them attached"
_NO_XML = "it is not XML"  # Yahoo has sent gzip files with the word "unused" in them
_TLS_REPORT = "it is a report on TLS (RFC 8460), not on DMARC"


# What zlib and zipfile raise for data that somebody has made up.
_MALFORMED = (
    *(zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile, struct.error),
    *(OSError, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, IndexError),
)


class ReportError(ValueError):
    """Something cannot be read as an aggregate report; the message says why, in our own words."""


@dataclass(frozen=True, slots=True)
class Document:
    """What should be a report, and where in the file it stands: empty if it is the whole file.

    `header` is that of the mail that it came in; empty if it came in none.
    """

    place: str
    content: bytes
    header: bytes = b""


@dataclass(frozen=True, slots=True)
class Unread:
    """What could not be read, where in the file it stands, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" if self.place else self.reason


class _Piece(NamedTuple):
    """Content at a place, unpacked as it is read, in pieces of at most _CHUNK bytes unless it is in memory already.

    `part` says that it is a part of a mail, which may be anything.
    """

    place: str
    chunks: Iterable[bytes]
    part: bool = False


class _Opened(NamedTuple):
    """A wrapping that is being walked through, and the header of the mail that it is in."""

    place: str
    pieces: Iterator[_Piece]
    header: bytes


def documents_of_file(read: Callable[[int], bytes]) -> Iterator[Document | Unread]:
    """Yield the documents in a file, of which `read(n)` returns the next n bytes at most; b"" at its end.

    Raises what `read` raises.
    """
    beginning = read(MAX_FILE + 1)
    if beginning.startswith(BEGINNING):
        yield from _of_mbox(chain([beginning], iter(partial(read, _CHUNK), b"")))
    elif len(beginning) > MAX_FILE:
        yield Unread("", f"the file is larger than {MAX_FILE // 1024 // 1024} MiB")
    else:
        yield from _walk(beginning)


def documents(data: bytes) -> Iterator[Document | Unread]:
    """Yield the documents in `data`, packed or not."""
    return documents_of_file(BytesIO(data).read)


def _of_mbox(chunks: Iterable[bytes]) -> Iterator[Document | Unread]:
    for number, mail in enumerate(mails(chunks, MAX_FILE), 1):
        place = f"mail {number}"
        if mail is None:
            yield Unread(place, f"it is larger than {MAX_FILE // 1024 // 1024} MiB")
        else:
            for found in _walk(mail):
                yield replace(found, place=_within(place, found.place))


def _walk(data: bytes) -> Iterator[Document | Unread]:
    """Yield what is in one file or mail. A loop, however deep it is nested."""
    left, found = MAX_TOTAL, 0
    opened = [_Opened("", iter([_Piece("", (data,))]), b"")]
    while opened:
        place, pieces, header = opened[-1]
        try:
            piece = next(pieces, None)
            if piece is None:
                opened.pop()
                continue
            place = _within(place, piece.place)
            content = _read(piece.chunks, min(left, MAX_BYTES))
            left -= len(content)
            inner = _unwrapped(content, piece.part)
            if inner is not None and len(opened) > MAX_NESTING:
                raise ReportError(f"it is packed in more than {MAX_NESTING} wrappings")  # noqa: TRY301  # told below
        except _TooLarge as error:
            found += 1
            left -= error.size
            yield Unread(place, str(error))
        except (ReportError, MailError) as error:
            found += 1
            yield Unread(place, str(error))
        except _MALFORMED:
            found += 1
            yield Unread(place, _DAMAGED)
        else:
            if inner is not None:
                opened.append(_Opened(place, inner, header or (header_of(content) if _is_mail(content) else b"")))
            elif _XML.match(content) and (not piece.part or _FEEDBACK.search(content, 0, _CHUNK)):
                found += 1
                yield Document(place, content, header)
            elif _TLS.match(content[:_CHUNK]):
                found += 1
                yield Unread(place, _TLS_REPORT)
            elif content and place and not piece.part:
                found += 1
                yield Unread(place, _NO_XML)
        if left <= 0 or found > MAX_DOCUMENTS:
            what = f"{MAX_TOTAL // 1024 // 1024} MiB" if left <= 0 else f"{MAX_DOCUMENTS} documents"
            yield Unread("", f"there are more than {what} in it; the rest is not read")
            return
    if not found:
        yield Unread("", _NOTHING)


def _within(outer: str, inner: str) -> str:
    return f"{outer}, {inner}" if outer and inner else outer or inner


def _is_mail(content: bytes) -> bool:
    return _FIELD.match(content) is not None


def _unwrapped(content: bytes, part: bool) -> Iterator[_Piece] | None:
    """Return what is in a wrapping; None if it is none. A part of a mail that looks like a mail is just text."""
    if content.startswith(_GZIP):
        return iter([_Piece("", _inflated(content))])
    if content.startswith((_ZIP, _EMPTY_ZIP)):
        return _members(content)
    if part or _XML.match(content):
        return None
    if content.startswith(BEGINNING):
        return (_Piece(f"mail {number}", (mail or b"",)) for number, mail in enumerate(mails([content], MAX_BYTES), 1))
    if _is_mail(content):
        return (_Piece(f"part {number}", (one,), part=True) for number, one in enumerate(attachments(content), 1))
    return None


def _inflated(data: bytes) -> Iterator[bytes]:
    """Unpack a gzip file (RFC 1952), all its members. What follows them is ignored: some mail programs add a line."""
    at = 0
    for _ in range(_MAX_GZIP_MEMBERS):
        if not data.startswith(_GZIP, at):
            return
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            packed = inflate.unconsumed_tail
            if not packed:
                packed = data[at : at + _CHUNK]
                at += len(packed)
            chunk = inflate.decompress(packed, _CHUNK)
            if not packed and not chunk:
                raise ReportError(f"{_DAMAGED}: it ends in the middle")
            yield chunk
        at -= len(inflate.unused_data)
    raise ReportError(f"it has more than {_MAX_GZIP_MEMBERS} gzip members")


def _members(data: bytes) -> Iterator[_Piece]:
    # Python makes an object of each entry when it opens the archive, before anybody can say stop.
    if data.count(_ZIP_ENTRY) > MAX_DOCUMENTS:
        raise ReportError(f"there are more than {MAX_DOCUMENTS} members in the archive")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        for number, member in enumerate(archive.infolist(), 1):
            # not is_dir(), which fails if there is no name
            if member.filename.endswith("/") or member.filename.startswith("__MACOSX/"):
                continue
            yield _Piece(f"member {number}", _member(archive, member))


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    if member.flag_bits & _ENCRYPTED:
        raise ReportError("it is encrypted")
    if member.compress_type not in _ZIP_METHODS:
        raise ReportError("it is compressed in a way that reports never are: pack it with deflate")
    with archive.open(member) as packed:
        yield from iter(partial(packed.read, _CHUNK), b"")


class _TooLarge(ReportError):
    """Something unpacks to more than `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"it unpacks to more than {size // 1024 // 1024} MiB")
        self.size = size


def _read(chunks: Iterable[bytes], limit: int) -> bytes:
    """Read something whole. Raises _TooLarge past `limit` bytes: a few kilobytes can unpack to terabytes."""
    if isinstance(chunks, tuple):
        return bytes(chunks[0])
    content = BytesIO()
    for chunk in chunks:
        content.write(chunk)
        if content.tell() > limit:
            raise _TooLarge(limit)
    return content.getvalue()
