# SPDX-License-Identifier: GPL-3.0-or-later
"""The digests that the signatures of one message sign: of its header, and of its body as it arrives.

The body is canonicalized and hashed at most once each for `simple` and `relaxed`, if a signature needs it, not once per
signature; DKIM and ARC share the work. Knows neither keys nor DNS.
"""

import hashlib
from collections.abc import Sequence

from gatekeeper.auth import canonicalization
from gatekeeper.auth.dkim_signature import Signature, empty_b
from gatekeeper.core.message import Header


class Digests:
    """The digests of one message: call `want` for every signature, `update` with the body, then ask for digests."""

    def __init__(self, headers: Sequence[Header]) -> None:
        self._headers = headers
        self._bodies: dict[bool, canonicalization.BodyHash] = {}  # by whether they are relaxed
        self._indexes: dict[bytes, list[int]] = {}  # by the name of the field
        self._canonical: dict[tuple[int, bool], bytes] = {}  # signatures mostly cover the same fields

    def want(self, signature: Signature) -> None:
        """Have the body hashed as `signature` needs it; call this before the body arrives."""
        relaxed, limit = signature.relaxed_body, signature.length
        if relaxed in self._bodies:
            self._bodies[relaxed].want(limit)
        else:
            self._bodies[relaxed] = canonicalization.BodyHash(relaxed, limit)

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        for body in self._bodies.values():
            body.update(chunk)

    def body(self, signature: Signature) -> tuple[bytes, int]:
        """Return the SHA-256 of the body as `signature` covers it, and the length of its canonical form in bytes.

        Ends the body. Raises KeyError for a signature without a `want`.
        """
        body = self._bodies[signature.relaxed_body]
        return body.digest(signature.length), body.length

    def header(self, index: int, signature: Signature) -> bytes:
        """Return the SHA-256 of the header that `signature`, the field at `index`, signs.

        For each name in `h=` it takes the next field from the bottom (RFC 6376 section 5.4.2).
        """
        if not self._indexes:
            for position, field in enumerate(self._headers):
                self._indexes.setdefault(field.name.lower(), []).append(position)
        relaxed, left = signature.relaxed_header, dict[bytes, list[int]]()
        lines = []
        for name in signature.names:
            indexes = left.get(name)
            if indexes is None:
                # the signature did not exist when it was made, so it never covers itself
                indexes = left[name] = [other for other in self._indexes.get(name, ()) if other != index]
            if indexes:
                lines.append(self.canonical(indexes.pop(), relaxed))
        lines.append(canonicalization.header(with_empty_b(self._headers[index]), relaxed))
        return hashlib.sha256(b"\r\n".join(lines)).digest()

    def canonical(self, index: int, relaxed: bool) -> bytes:
        """Return the field at `index` in canonical form, without the final CRLF."""
        form = self._canonical.get((index, relaxed))
        if form is None:
            form = self._canonical[index, relaxed] = canonicalization.header(self._headers[index], relaxed)
        return form


def with_empty_b(field: Header) -> Header:
    """Return the field of a signature as it was when it was signed: with an empty `b=`."""
    return Header(field.name, empty_b(field.value))
