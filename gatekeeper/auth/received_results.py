# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing the authentication results of other servers: which method had which result.

Reads the payload of an ARC-Authentication-Results field (RFC 8617 section 4.1.1) or of a trusted host's
Authentication-Results field (RFC 8601).

Takes linear time in the field's length, without recursion. Where the text is ambiguous, the worse reading counts: a
method with two different results, or one that is only mentioned in a comment, has not passed.

authres does not read these fields: it refuses a whole field over a semicolon at the end, an empty part, the `i=1;` of
ARC or a word in UTF-8, all of which are sent, and comments nested a few hundred deep overflow its stack.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gatekeeper.core.verdict import printable

_MAX_RESULTS = 50
_INSTANCE = re.compile(r"\s*i\s*=\s*[0-9]{1,2}\s*;")
_NAME = re.compile(r"\s*([A-Za-z0-9._-]{1,255})(?:\s+[0-9]+)?\s*\Z")
_RESULT = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)(?:\s*/\s*[0-9]+)?\s*=\s*([A-Za-z]+)(?=\s|\Z)")
_PIECE = re.compile(r'[()]|\\.|"(?:[^"\\]|\\.)*"|[^()\\"]+|["\\]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class ReceivedResults:
    """The `results` by method, all in lower case. `authserv_id` is empty if the field is malformed."""

    authserv_id: str = ""
    results: Mapping[str, str] = field(default_factory=dict)

    def passed(self, method: str) -> bool:
        """Return whether `method` has a result, and all its results are `pass`."""
        return self.results.get(method) == "pass"


def parse_received_results(value: bytes) -> ReceivedResults:
    """Parse a field's value. Never raises; a malformed one has no results."""
    text = value.decode("utf-8", "replace").replace("\r\n", "")
    if match := _INSTANCE.match(text):
        text = text[match.end() :]
    plain = _without_comments(text)
    if plain is None:
        return ReceivedResults()
    name, *parts = plain.split(";")
    found = _NAME.match(name)
    if found is None:
        return ReceivedResults()
    results: dict[str, str] = {}
    for part in parts[:_MAX_RESULTS]:
        if match := _RESULT.match(part):
            method, result = match[1].lower(), match[2].lower()
            results[method] = result if results.get(method, result) == result else "fail"
    return ReceivedResults(printable(found[1].lower()), results)


def _without_comments(text: str) -> str | None:
    """Replace each comment with a space and each quoted string with `""`; None if a comment is not terminated."""
    kept, depth = [], 0
    for piece in _PIECE.findall(text):
        if piece == "(":
            depth += 1
        elif piece == ")" and depth:
            depth -= 1
            kept.append(" ")
        elif not depth:
            kept.append('""' if piece.startswith('"') else piece)
    return None if depth else "".join(kept)
