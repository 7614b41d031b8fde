# SPDX-License-Identifier: GPL-3.0-or-later
"""What another server's authentication results say: the payload of an ARC-Authentication-Results field (RFC 8617
section 4.1.1) or of a trusted host's Authentication-Results (RFC 8601), read for one purpose: which method had which
result?

Linear in the field's length, without recursion. Where the text is ambiguous the answer is the worse one: a method
that is stated twice with different results, or in a comment, has not passed.
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
    """`results` by method, all in lower case. `authserv_id` is empty if the field is malformed."""

    authserv_id: str = ""
    results: Mapping[str, str] = field(default_factory=dict)

    def passed(self, method: str) -> bool:
        """True if the only thing that is said of `method` is that it passed."""
        return self.results.get(method) == "pass"


def parse_received_results(value: bytes) -> ReceivedResults:
    """What a field says. Never raises; a malformed one says nothing."""
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
    """`text` with each comment as a space and each quoted string as `""`; None if a comment has no end."""
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
