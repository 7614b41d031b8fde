# SPDX-License-Identifier: GPL-3.0-or-later
"""What signatures cover of one message: digests of its header, and of its body while that comes.

The body is canonicalized and hashed once for `simple` and once for `relaxed`, as far as a signature of the message
wants it, not once a signature; DKIM and ARC share it. Knows neither keys nor DNS.
"""

import hashlib
from collections.abc import Sequence

from gatekeeper.auth import canonicalization
from gatekeeper.auth.dkim_signature import Signature, without_signature
from gatekeeper.core.message import Header


class Digests:
    """The digests of one message. First every `want`, then the body with `update`, then the questions."""

    def __init__(self, headers: Sequence[Header]) -> None:
        self._headers = headers
        self._bodies: dict[bool, canonicalization.BodyHash] = {}  # by whether it is relaxed
        self._places: dict[bytes, list[int]] = {}
        self._forms: dict[tuple[int, bool], bytes] = {}  # signatures mostly cover the same fields

    def want(self, signature: Signature) -> None:
        """Have the body hashed as `signature` needs it; before the body comes."""
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
        """The SHA-256 of the body as `signature` wants it and the length of its whole canonical form in bytes. Ends
        the body. Raises KeyError for a signature that was not announced.
        """
        body = self._bodies[signature.relaxed_body]
        return body.digest(signature.length), body.length

    def header(self, index: int, signature: Signature) -> bytes:
        """The SHA-256 of the header that `signature`, which stands at `index`, signs.

        For each name in `h=` it takes the next field from the bottom (RFC 6376 section 5.4.2).
        """
        if not self._places:
            for place, field in enumerate(self._headers):
                self._places.setdefault(field.name.lower(), []).append(place)
        relaxed, left = signature.relaxed_header, dict[bytes, list[int]]()
        lines = []
        for name in signature.names:
            places = left.get(name)
            if places is None:
                # it did not exist when it was signed, so it is never among what it selects
                places = left[name] = [place for place in self._places.get(name, ()) if place != index]
            if places:
                lines.append(self.canonical(places.pop(), relaxed))
        lines.append(canonicalization.header(unsigned(self._headers[index]), relaxed))
        return hashlib.sha256(b"\r\n".join(lines)).digest()

    def canonical(self, place: int, relaxed: bool) -> bytes:
        """The canonical form of the field at `place`, without the final CRLF."""
        form = self._forms.get((place, relaxed))
        if form is None:
            form = self._forms[place, relaxed] = canonicalization.header(self._headers[place], relaxed)
        return form


def unsigned(field: Header) -> Header:
    """A signature's field as it was when it was signed: with an empty `b=`."""
    return Header(field.name, without_signature(field.value))
