# SPDX-License-Identifier: GPL-3.0-or-later
"""The contents of files that people write: tables, lists, configurations.

Editors of Windows begin a file with a byte order mark, which nobody sees. As part of the first word it would make a
key that never matches, or an option that nobody knows: whoever reads such a file does it by `read_text`, or passes
its bytes through `without_bom`. Known difference from Postfix and OpenDKIM, which take the mark for text.
"""

import codecs
import errno
from pathlib import Path


def without_bom(data: bytes) -> bytes:
    """Return the contents of a file without a byte order mark at the head. Raises OSError for UTF-16 and UTF-32."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise OSError(errno.EILSEQ, "it is not UTF-8 text (it begins as UTF-16 does); save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text in a file, as Path.read_text does, without a byte order mark.

    Raises OSError; UnicodeDecodeError, unless `errors` says what becomes of bytes that are not UTF-8.
    """
    text = without_bom(path.read_bytes()).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")
