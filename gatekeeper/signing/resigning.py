# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail that we have already signed and see again, from a content filter or a local forwarder.

The rule: an identity does not sign a message twice. It has signed if the message has a signature with its d=, s= and a=
that covers every field which a new one would cover, and that verifies: over the header, over the whole body, and with
the identity's own key. A message that has been changed since, or that has new fields to cover (those of a mailing
list), is signed again. So no client or filter needs to be configured.
"""

from collections import Counter
from collections.abc import Sequence

from gatekeeper.auth.dkim import DkimResult, DkimVerifier
from gatekeeper.auth.dkim_signature import Signature
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import Answer
from gatekeeper.signing.signer import SigningIdentity


class Resigning:
    """Our own signatures on a message: feed the body to `update`, then call `valid_identities` once."""

    def __init__(self, verifier: DkimVerifier, identities: Sequence[SigningIdentity]) -> None:
        self._verifier = verifier
        self._identities = identities

    @classmethod
    def detect(
        cls, headers: Sequence[Header], identities: Sequence[SigningIdentity], names: Sequence[str], now: float
    ) -> "Resigning | None":
        """Return None if none of `identities` can have signed. `names` is the `h=` of a new signature."""
        if not any(field.name.lower() == b"dkim-signature" for field in headers):
            return None
        ours = {(who.domain, who.selector.lower(), who.key.algorithm) for who in identities}
        required = Counter(name.lower().encode() for name in names)

        def may_be_ours(signature: Signature) -> bool:
            who = (signature.domain, signature.selector, signature.algorithm)
            return who in ours and signature.length is None and required <= Counter(signature.names)

        # no tolerance: a signature that has expired by our own clock may be refused by others
        verifier = DkimVerifier(headers, now=now, wanted=may_be_ours, clock_skew=0)
        return cls(verifier, identities) if verifier.signed else None

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self._verifier.update(chunk)

    def valid_identities(self) -> list[SigningIdentity]:
        """Return the identities whose signature verifies. Raises BadKey."""
        names = {f"{who.selector.lower()}._domainkey.{who.domain}": who.key for who in self._identities}
        keys = {name: Answer(name, "TXT", (key.record().encode(),)) for name, key in names.items()}
        found = self._verifier.results_with(keys)
        valid = {(one.domain, one.selector, one.algorithm) for one in found if one.result is DkimResult.PASS}
        return [who for who in self._identities if (who.domain, who.selector.lower(), who.key.algorithm) in valid]
