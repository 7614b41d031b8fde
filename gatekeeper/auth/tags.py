# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing DKIM's tag lists, `a=1; b=two`, of signatures and key records (RFC 6376 section 3.2).

dkimpy splits them; what it lets through is checked here. Does not know what the tags mean.

No more of dkimpy is used, as it wants the whole message in memory, signs and verifies in Python under the interpreter's
lock, reads only one TXT record, and says False whether a signature is bad, a key is missing or the DNS is down; its
canonical header fields lose more than white space, and its selection of fields takes quadratic time.
"""

import re
from base64 import b64decode

from dkim.util import DuplicateTag, InvalidTagValueList, parse_tag_value

MAX_LENGTH = 16384
"""Bytes of one tag list; a signature over a long header or a 4096-bit key needs less than a quarter of that."""

_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_]*\Z")


def parse_tags(text: bytes) -> dict[bytes, bytes]:
    """Return tag names and values, without the white space around them. `text` may be folded.

    Raises ValueError with what is wrong, in words that can be reported as the reason: none of `text` is quoted in it.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the tag list is longer than {MAX_LENGTH} bytes")
    try:
        tags: dict[bytes, bytes] = parse_tag_value(text.replace(b"\r\n", b""))
    except DuplicateTag:
        raise ValueError("a tag appears twice") from None
    except InvalidTagValueList:
        raise ValueError("the tag list is malformed") from None
    # dkimpy only looks at how a name begins
    if not all(map(_NAME.match, tags)):
        raise ValueError("a tag name is malformed")
    return tags


def parse_list(value: bytes) -> tuple[bytes, ...]:
    """Return the items of a colon-separated list, in lower case."""
    return tuple(item.strip().lower() for item in value.split(b":"))


def parse_base64(value: bytes) -> bytes:
    """Decode base64 that may be folded (RFC 6376 section 2.10). Raises ValueError."""
    return b64decode(value.translate(None, b" \t\r\n"), validate=True)
