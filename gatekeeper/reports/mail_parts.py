# SPDX-License-Identifier: GPL-3.0-or-later
"""What is attached to a mail (RFC 2045, 2046): its parts, decoded.

For mail from anybody, of any size: there is no recursion, nothing is copied before a part is yielded, and header,
number and depth of the parts are limited. The standard library's parser recurses for each level and makes objects of
each line, so that 85 kB overflow its stack and 32 MB take 2 GB.

Known limits: a boundary in the spelling of RFC 2231 (`boundary*0=`) is not understood, and uuencode is not decoded.
"""

import binascii
import re
from collections.abc import Iterator

MAX_PARTS = 1000
MAX_DEPTH = 20
MAX_HEADER = 128 * 1024
"""Bytes of the header of the mail, or of one part; Postfix takes 100 kB."""

_BLANK_LINE = re.compile(rb"\n\r?\n")
_FIELD = re.compile(
    rb"^(content-type|content-transfer-encoding)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.IGNORECASE | re.MULTILINE
)
_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)


_NO_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))


class MailError(ValueError):
    """A mail exceeds a limit; the message says which."""


def attachments(mail: bytes) -> Iterator[bytes]:
    """Yield the content of each part that has no parts itself, in the order of the mail. Raises MailError."""
    waiting = [(0, len(mail), 0)]  # start, end and depth of the parts that have not been looked at
    seen = 0
    while waiting:
        start, end, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise MailError(f"its parts are nested more than {MAX_DEPTH} deep")
        if seen > MAX_PARTS:
            raise MailError(f"it has more than {MAX_PARTS} parts")
        fields, body = _header(mail, start, end)
        type = fields.get(b"content-type", b"").strip().lower()
        if type.startswith(b"message/rfc822"):
            waiting.append((body, end, depth + 1))
        elif type.startswith(b"multipart/") and (boundary := _BOUNDARY.search(fields[b"content-type"])):
            parts = list(_parts(mail, body, end, (boundary[1] or boundary[2]).rstrip()))
            waiting += [(*part, depth + 1) for part in reversed(parts)]
        else:
            yield _decoded(mail[body:end], fields.get(b"content-transfer-encoding", b""))


def header_of(mail: bytes) -> bytes:
    """Return the header of a mail, at most MAX_HEADER bytes."""
    blank = _BLANK_LINE.search(mail, 0, MAX_HEADER)
    return mail[: blank.start() + 1 if blank else MAX_HEADER]


def _header(mail: bytes, start: int, end: int) -> tuple[dict[bytes, bytes], int]:
    """Return the fields that say how the part from `start` to `end` is to be read, and where its body begins."""
    if mail.startswith((b"\n", b"\r\n"), start):
        return {}, mail.index(b"\n", start) + 1
    blank = _BLANK_LINE.search(mail, start, end)
    body = blank.end() if blank else end
    if body - start > MAX_HEADER:
        raise MailError(f"the header of a part is larger than {MAX_HEADER // 1024} kB")
    fields: dict[bytes, bytes] = {}
    for field in _FIELD.finditer(mail[start:body]):
        fields.setdefault(field[1].lower(), field[2])
    return fields, body


def _parts(mail: bytes, body: int, end: int, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part between the lines that `boundary` makes."""
    line = re.compile(rb"\n--" + re.escape(boundary) + rb"(--)?[ \t]*\r?(?:\n|\Z)")
    at, start, number = max(0, body - 1), None, 0  # the line end before the body may begin the first of these lines
    while found := line.search(mail, at, end):
        if start is not None:
            yield start, found.start() - mail.endswith(b"\r", start, found.start())
        if found[1]:
            return
        number += 1
        if number > MAX_PARTS:
            raise MailError(f"it has more than {MAX_PARTS} parts")
        start, at = found.end(), max(found.end() - 1, found.start() + 1)  # a line end may belong to the next line too
    if start is not None:
        yield start, end


def _decoded(content: bytes, encoding: bytes) -> bytes:
    """Return the content without its transfer encoding. What is no base64 within it is passed over (RFC 2045 6.8)."""
    match encoding.strip().lower():
        case b"base64":
            letters = content.partition(b"=")[0].translate(None, _NO_BASE64)
            letters = letters[: len(letters) - (len(letters) % 4 == 1)]  # one letter alone is no byte
            return binascii.a2b_base64(letters + b"==")  # the padding is often wrong; too much of it is ignored
        case b"quoted-printable":
            return binascii.a2b_qp(content)
    return content
