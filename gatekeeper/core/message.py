# SPDX-License-Identifier: GPL-3.0-or-later
"""A message as bytes: header fields with their exact value, and the body.

The rule: `name + b":" + value + CRLF` gives back what was on the wire, leading space and folding included, because
DKIM's `simple` canonicalization signs exactly that (RFC 6376 section 3.4.1). One exception: white space before the
colon is dropped, as Postfix's cleanup(8) does, so that `From :` cannot hide. Knows nothing of MIME, nor what a field
means.

A file is read by `from_file` alone, whichever command it is for, as Postfix's sendmail(1) reads it; `parse` is for what
came by SMTP. The two differ in the lines `From joe@example.com Sun Nov 29 ...` with which a mailbox begins a message
(mbox(5)): sendmail(1) drops them, smtpd(8) makes a field X-Mailbox-Line of each.
"""

import re
from typing import NamedTuple

_LINE_FEED = re.compile(rb"(?<!\r)\n")
_STRAY_CR = re.compile(rb"\r(?!\n)")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_MBOX_LINE = re.compile(rb">*From (?![ \t]*:)")
"""How a mailbox begins a message, quoted or not. `From :` is taken for the field that it looks like."""


class Header(NamedTuple):
    """One header field: `value` starts after the colon and ends before the final CRLF; folds inside are CRLF."""

    name: bytes
    value: bytes

    @property
    def line(self) -> bytes:
        """The field as it stands in the message, without the final CRLF."""
        return self.name + b":" + self.value


def crlf(raw: bytes) -> bytes:
    """Return `raw` with every line end (CRLF or LF) as CRLF and every stray CR as a space.

    That is how Postfix sends a file that it is given (sendmail(1), cleanup_replace_stray_cr_lf).
    """
    return _LINE_FEED.sub(b"\r\n", _STRAY_CR.sub(b" ", raw))


def from_file(raw: bytes) -> tuple[list[Header], bytes]:
    """Split a message that stands in a file, whatever its line ends are, into header fields and body. Never raises."""
    raw = crlf(raw)
    while _MBOX_LINE.match(raw):
        raw = raw.partition(b"\r\n")[2]
    return parse(raw)


def parse(raw: bytes) -> tuple[list[Header], bytes]:
    """Split CRLF-terminated `raw` into its header fields and its body.

    As Postfix's cleanup(8) does, the first line that is not a header field ends the header, with or without the
    empty line; a first line that starts with white space does the same. Never raises.
    """
    headers: list[Header] = []
    start = 0
    while _MBOX_LINE.match(raw, start):
        end = _end_of_line(raw, start)
        headers.append(Header(b"X-Mailbox-Line", b" " + raw[start:end]))
        start = end + 2
    while start < len(raw):
        if raw.startswith(b"\r\n", start):
            return headers, raw[start + 2 :]
        end = _end_of_field(raw, start)
        match = _FIELD.fullmatch(raw, start, end)
        if match is None:
            break
        headers.append(Header(match[1], match[2]))
        start = end + 2
    return headers, raw[start:]


def _end_of_line(raw: bytes, start: int) -> int:
    end = raw.find(b"\r\n", start)
    return len(raw) if end < 0 else end


def _end_of_field(raw: bytes, start: int) -> int:
    """Return where the field that starts at `start` ends: before the first CRLF that no white space follows."""
    while True:
        end = raw.find(b"\r\n", start)
        if end < 0:
            return len(raw)
        if raw[end + 2 : end + 3] not in (b" ", b"\t"):
            return end
        start = end + 2
