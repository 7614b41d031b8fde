# SPDX-License-Identifier: GPL-3.0-or-later
"""The most usual form of From, `Name <user@example.com>` or the address alone, read by one regular expression.

The parsers of From (author.py, signing/message_sender.py) read tokens, strictly and each in its own way: 60 µs a
message. What this accepts all of them read alike; anything odd is left to them.
"""

import re

from gatekeeper.auth.domains import normal_domain

_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_ADDRESS = rb"(" + _ATOM + rb"(?:\.?" + _ATOM + rb")*)@([A-Za-z0-9.-]+)"
_NAME = rb'(?:"[^"\\\x00-\x1f\x7f-\xff]*"[ \t]*|' + _ATOM + rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~. -]*)?"
_USUAL = re.compile(rb"[ \t]*(?:" + _NAME + rb"<" + _ADDRESS + rb">|" + _ADDRESS + rb")[ \t]*")
_LONGEST_USER = 64
_LONGEST = 512  # bytes of a value


def usual_mailbox(value: bytes) -> tuple[str, str] | None:
    """The user as it is written, and the domain in normal form; None if this is not for us to read. Never raises."""
    match = _USUAL.fullmatch(value) if len(value) <= _LONGEST else None
    if match is None:
        return None
    user, domain = match[1] or match[3], normal_domain((match[2] or match[4]).decode("ascii"))
    return (user.decode("ascii"), domain) if domain and len(user) <= _LONGEST_USER else None
