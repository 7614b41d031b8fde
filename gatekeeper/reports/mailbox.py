# SPDX-License-Identifier: GPL-3.0-or-later
"""The mails of an mbox file (RFC 4155), of any size, read as a stream.

A mail begins with a line `From sender date`. Programs that deliver quote such lines within a mail (`>From `), but not
all do, and not all put an empty line before: so the line counts if it has a date, or if an empty line is before it and
nothing but an address in it. Quoted lines are left as they are: no report contains one.
"""

import re
from collections.abc import Iterable, Iterator

BEGINNING = b"From "
_PIECE = 65536
_WITH_DATE = re.compile(rb"From .{0,1000}\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? .{0,30}\d\d:\d\d")
_ADDRESS_ALONE = re.compile(rb"From [^\s]{1,1000}\s*\Z")


def mails(chunks: Iterable[bytes], largest: int) -> Iterator[bytes | None]:
    """Yield each mail without its `From ` line; None for one that is larger than `largest` bytes.

    `chunks` are the pieces of the file, cut anywhere.
    """
    mail = bytearray()
    begun = too_large = after_empty = within_line = False
    for line in _lines(chunks, largest):
        if (
            line.startswith(BEGINNING)
            and not within_line
            and (not begun or _WITH_DATE.match(line) or (after_empty and _ADDRESS_ALONE.match(line)))
        ):
            if begun:
                yield None if too_large else bytes(mail)
            mail.clear()
            begun, too_large = True, False
        elif len(mail) + len(line) > largest:
            mail.clear()
            too_large = True
        elif not too_large:
            mail += line
        after_empty = not within_line and not line.strip()
        within_line = not line.endswith(b"\n")
    if begun or mail:
        yield None if too_large else bytes(mail)


def _lines(chunks: Iterable[bytes], longest: int) -> Iterator[bytes]:
    """Yield lines with their ends; a longer one than `longest` comes in pieces, each too large by itself."""
    rest = bytearray()
    for piece in _pieces(chunks):
        *whole, last = piece.split(b"\n")
        for line in whole:
            yield bytes(rest) + line + b"\n" if rest else line + b"\n"
            rest.clear()
        rest += last
        if len(rest) > longest:
            yield bytes(rest)
            rest.clear()
    if rest:
        yield bytes(rest)


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut chunks into small pieces: every line becomes an object, and a line may be one byte."""
    for chunk in chunks:
        for start in range(0, len(chunk), _PIECE):
            yield chunk[start : start + _PIECE]
