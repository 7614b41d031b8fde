# SPDX-License-Identifier: GPL-3.0-or-later
"""Breaking long lines as Postfix's smtp(8) does after the milter has seen them (smtp_line_length_limit).

A line of more than 998 bytes, in the header or the body, is broken after 998 bytes, and the rest begins with a space
(smtp_proto.c, smtp_text_out). Signing the line as it came in would sign what nobody receives: OpenDKIM's signatures of
such mail do not verify, ours do. Deliveries that do not break lines (local(8), pipe(8)) invalidate the signature.

Known limit: where the end of a line, a break and a record of Postfix's queue file coincide, one more space may be sent.
"""

from gatekeeper.core.message import Header

_CRLF = b"\r\n"


class LineLimit:
    """Breaks the lines of a text that comes in chunks, however it is split. `limit` is in bytes; 0: never break."""

    __slots__ = ("_length", "_limit", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._length = 0  # of the unfinished line
        self._rest = b""  # a CR whose LF may still come

    def feed(self, chunk: bytes) -> bytes:
        """Return `chunk` as it will be sent; a final CR is held back."""
        if not self._limit:
            return chunk
        text = self._rest + chunk if self._rest else chunk
        self._rest = b""
        if text.endswith(b"\r"):
            self._rest, text = b"\r", text[:-1]
        return self._break(text)

    def end(self) -> bytes:
        """Return what was held back."""
        rest, self._rest = self._rest, b""
        return self._break(rest) if rest else b""

    def _break(self, text: bytes) -> bytes:
        limit, start, at = self._limit, -self._length, 0
        size, rfind = len(text), text.rfind
        pieces = []
        while size - start > limit:
            # Skip all lines that end within the limit at once, up to the last of them: one step per kilobyte.
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


def break_field(field: Header, limit: int) -> Header:
    """Return the field with its long lines broken."""
    if not limit or len(field.line) <= limit:
        return field
    lines = LineLimit(limit)
    line = lines.feed(field.line) + lines.end()
    return Header(field.name, line[len(field.name) + 1 :])
