# SPDX-License-Identifier: GPL-3.0-or-later
"""Long lines as they leave: Postfix's smtp(8) breaks them behind the milter's back (smtp_line_length_limit).

A line of more than 998 bytes, in the header as in the body, is broken after 998, and what follows begins with a space
(smtp_proto.c, smtp_text_out). Who signs the line as it came in signs what nobody will receive; so OpenDKIM's signatures
of such mail are broken, and ours are not. Deliveries that do not break lines (local(8), pipe(8)) break the signature.

Known limit: where a line's end, a break and a record of Postfix's queue file meet, one space more may be sent.
"""

from gatekeeper.core.message import Header

_CRLF = b"\r\n"


class LineLimit:
    """Breaks the lines of a text that comes in chunks, any chunking alike. `limit` is in bytes; 0: lines stay whole."""

    __slots__ = ("_length", "_limit", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._length = 0  # of the unfinished line
        self._rest = b""  # a CR whose LF may still come

    def feed(self, chunk: bytes) -> bytes:
        """The next bytes, as they will be sent."""
        if not self._limit:
            return chunk
        text = self._rest + chunk if self._rest else chunk
        self._rest = b""
        if text.endswith(b"\r"):
            self._rest, text = b"\r", text[:-1]
        return self._broken(text)

    def end(self) -> bytes:
        """What was held back."""
        rest, self._rest = self._rest, b""
        return self._broken(rest) if rest else b""

    def _broken(self, text: bytes) -> bytes:
        limit, start, at = self._limit, -self._length, 0
        size, rfind = len(text), text.rfind
        pieces = []
        while size - start > limit:
            # Over all lines that end within the limit at once, to the last of them: a step for each kilobyte.
            found = rfind(_CRLF, start if start > at else at, start + limit + 2)
            if found >= 0:
                start = found + 2
                continue
            cut = start + limit
            pieces.append(text[at:cut])
            at, start = cut, cut - 1  # the space that begins the next line counts
        found = text.rfind(_CRLF, max(start, at))
        self._length = size - (found + 2 if found >= 0 else start)
        return b"\r\n ".join([*pieces, text[at:]]) if pieces else text


def broken_field(field: Header, limit: int) -> Header:
    """The field with its long lines broken."""
    if not limit or len(field.line) <= limit:
        return field
    lines = LineLimit(limit)
    line = lines.feed(field.line) + lines.end()
    return Header(field.name, line[len(field.name) + 1 :])
