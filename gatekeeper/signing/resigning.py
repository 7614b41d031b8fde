# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail that we have signed before and see again: a content filter gives it back, a local forwarder resends it.

The rule: who has signed a message need not sign it twice. An identity has signed if the message bears a signature with
its d=, s= and a= that covers every field which a new one would cover, and that holds: by the header, by the whole body,
and by the identity's own key. What has been changed since, or has new fields to cover (those of a mailing list), is
signed again. So neither the client nor any filter need be told.
"""

from collections import Counter
from collections.abc import Sequence

from gatekeeper.auth.dkim import DkimResult, DkimVerifier
from gatekeeper.auth.dkim_signature import Signature
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import Answer
from gatekeeper.signing.signer import SigningIdentity


class Resigning:
    """The signatures of ours that a message bears. Feed the body with `update`, then ask `holding` once."""

    def __init__(self, verifier: DkimVerifier, identities: Sequence[SigningIdentity]) -> None:
        self._verifier = verifier
        self._identities = identities

    @classmethod
    def seen(
        cls, headers: Sequence[Header], identities: Sequence[SigningIdentity], names: Sequence[str], now: float
    ) -> "Resigning | None":
        """None if none of `identities` can have signed. `names` is what a new signature would have in `h=`."""
        if not any(field.name.lower() == b"dkim-signature" for field in headers):
            return None
        ours = {(who.domain, who.selector.lower(), who.key.algorithm) for who in identities}
        wanted = Counter(name.lower().encode() for name in names)

        def may_be_ours(signature: Signature) -> bool:
            who = (signature.domain, signature.selector, signature.algorithm)
            return who in ours and signature.length is None and wanted <= Counter(signature.names)

        # our own clock: what has expired for us, others may refuse
        verifier = DkimVerifier(headers, now=now, wanted=may_be_ours, clock_skew=0)
        return cls(verifier, identities) if verifier.signed else None

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self._verifier.update(chunk)

    def holding(self) -> list[SigningIdentity]:
        """The identities whose signature holds. Raises BadKey."""
        names = {f"{who.selector.lower()}._domainkey.{who.domain}": who.key for who in self._identities}
        keys = {name: Answer(name, "TXT", (key.record().encode(),)) for name, key in names.items()}
        found = self._verifier.results_with(keys)
        holds = {(one.domain, one.selector, one.algorithm) for one in found if one.result is DkimResult.PASS}
        return [who for who in self._identities if (who.domain, who.selector.lower(), who.key.algorithm) in holds]
