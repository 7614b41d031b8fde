# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM verification: which domains take responsibility for a message (RFC 6376, 8301, 8463, 8616).

The body is hashed as its chunks arrive, once for each distinct way in which a signature covers it; keys come from our
resolver; OpenSSL does the arithmetic. Every signature gets a result and a reason in our own words: nothing that a
stranger wrote is in it except domains in normal form. No message or key record, however malformed, raises an exception.
"""

import asyncio
import logging
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gatekeeper.auth.digests import Digests
from gatekeeper.auth.dkim_key import MINIMUM_RSA_BITS, PublicKey, key_records, parse_key
from gatekeeper.auth.dkim_signature import Signature, parse_signature
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import Answer, DNSError, Resolver, known_answer, query_or_error

logger = logging.getLogger(__name__)

MAX_SIGNATURES = 8
"""Signatures that are verified, from the top: each may cost a look-up, a body hash and a verification."""
CLOCK_SKEW = 300.0
"""Seconds by which a signer's clock may differ from ours (OpenDKIM's ClockDrift)."""


class DkimResult(StrEnum):
    """Results for one signature (RFC 8601 section 2.7.1).

    `policy`: it verifies, but is not accepted; `neutral`: it was not looked at.
    """

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    POLICY = "policy"
    NEUTRAL = "neutral"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class DkimFinding:
    """The result for one signature.

    `identity` is `i=`, `b` the first eight characters of its `b=` (RFC 6008). `testing` is the key's t=y; `no_key`
    means that there is no key record in the DNS, `tried` that a key record was found and tried. `partly` means that
    it signs only a part of what readers see: there are more bytes, or another From.
    """

    result: DkimResult
    domain: str = ""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    key_bits: int = 0
    b: str = ""
    reason: str = ""
    testing: bool = False
    no_key: bool = False
    tried: bool = False
    partly: bool = False

    @property
    def authenticates(self) -> bool:
        """True for a `pass` that is proof of the domain, and not only what the RFC calls one (as auth/spf.py has it).

        That needs a key that is no test (t=y), and a message that is signed whole: whoever appends a text (l=) or adds
        a second From has not been authenticated.
        """
        return self.result is DkimResult.PASS and not self.testing and not self.partly


NOT_SIGNED = DkimFinding(DkimResult.NONE, reason="the message is not signed")


class DkimVerifier:
    """Verifies the signatures of one message: feed the body to `update`, then await `results`.

    `fetch` may run while the body arrives. `now` is seconds since the epoch. The body must have CRLF line ends, as on
    the wire. Before it arrives, `digests` may be asked for more than DKIM needs. Only signatures that are `wanted` are
    verified; those of RSA keys below `minimum_bits` get `policy`. `clock_skew`: seconds by which `t=` and `x=` may be
    off.
    """

    def __init__(
        self,
        headers: Sequence[Header],
        *,
        now: float,
        max_signatures: int = MAX_SIGNATURES,
        wanted: Callable[[Signature], bool] = lambda _signature: True,
        minimum_bits: int = MINIMUM_RSA_BITS,
        clock_skew: float = CLOCK_SKEW,
    ) -> None:
        self._headers = headers
        self._minimum_bits = minimum_bits
        self._clock_skew = clock_skew
        self.now = now
        indexes = [index for index, field in enumerate(headers) if field.name.lower() == b"dkim-signature"]
        self._ignored = max(0, len(indexes) - max_signatures)
        signatures = ((index, parse_signature(headers[index])) for index in indexes[:max_signatures])
        self._signatures = [(index, signature) for index, signature in signatures if wanted(signature)]
        self.digests = Digests(headers)
        for _, signature in self._signatures:
            if not signature.problem:
                self.digests.want(signature)
        self._keys: dict[str, Answer | DNSError] = {}
        self._results: tuple[DkimFinding, ...] | None = None
        self._repeated: dict[bytes, int] | None = None  # how often, by the name of the field

    @property
    def signed(self) -> bool:
        """Whether there is a signature to verify."""
        return bool(self._signatures)

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self.digests.update(chunk)

    async def fetch(self, resolver: Resolver) -> None:
        """Look up the keys that are not known yet, all at once; DNS errors are kept for the results."""
        names = {_key_name(signature) for _, signature in self._signatures if not self._objection(signature)}
        wanted = []
        for name in sorted(names - self._keys.keys()):
            if (found := known_answer(resolver, name, "TXT")) is None:
                wanted.append(name)
            else:
                self._keys[name] = found
        if len(wanted) == 1:
            await self._fetch(resolver, wanted[0])
        elif wanted:
            await asyncio.gather(*(self._fetch(resolver, name) for name in wanted))

    async def _fetch(self, resolver: Resolver, name: str) -> None:
        self._keys[name] = await query_or_error(resolver, name, "TXT")

    async def results(self, resolver: Resolver) -> tuple[DkimFinding, ...]:
        """Return one finding for each signature, from the top; a single `none` without any. Ends the body."""
        await self.fetch(resolver)
        if self._results is None:
            self._results = self._verify_all()
        return self._results

    def results_so_far(self) -> tuple[DkimFinding, ...]:
        """Return the findings by the keys that are known; `temperror` where they are not. Ends the body."""
        return self._verify_all()

    def results_with(self, keys: Mapping[str, Answer]) -> tuple[DkimFinding, ...]:
        """Return the findings by `keys` (key records by their names) instead of the DNS. Ends the body."""
        self._keys = dict(keys)
        return self._verify_all()

    def _verify_all(self) -> tuple[DkimFinding, ...]:
        found = []
        for index, signature in self._signatures:
            finding = _describe(signature)
            try:
                found.append(self._verify(finding, index, signature))
            except Exception:
                logger.exception("verifying a signature of %s failed", signature.domain)
                found.append(replace(finding, result=DkimResult.NEUTRAL, reason="it could not be processed"))
        if self._ignored:
            found.append(DkimFinding(DkimResult.NEUTRAL, reason=f"{self._ignored} more signatures were not looked at"))
        return tuple(found) or (NOT_SIGNED,)

    def _verify(self, finding: DkimFinding, index: int, signature: Signature) -> DkimFinding:
        objection = self._objection(signature)
        if objection:
            result = DkimResult.PERMERROR if signature.problem else DkimResult.FAIL
            return replace(finding, result=result, reason=objection)
        name = _key_name(signature)
        answer = self._keys.get(name)
        if answer is None or isinstance(answer, DNSError):
            why = "could not be looked up" + (" in time" if answer is None else "")
            return replace(finding, result=DkimResult.TEMPERROR, reason=f"the key {name} {why}")
        records = key_records(answer.records)
        if not records:
            return replace(finding, result=DkimResult.PERMERROR, reason=f"there is no key {name}", no_key=True)
        body, length = self.digests.body(signature)
        intact = body == signature.body_hash
        digest = self.digests.header(index, signature)
        tried = [_try_key(finding, signature, parse_key(record), digest, intact, length) for record in records]
        best = min(tried, key=lambda tried: _PREFERENCE.index(tried.result))
        if best.result is DkimResult.PASS and (unsigned := self._unsigned_duplicates(signature)):
            best = replace(best, partly=True, reason=f"{best.reason}, not signed: another {' and '.join(unsigned)}")
        if best.result is DkimResult.PASS and best.algorithm.startswith("rsa") and best.key_bits < self._minimum_bits:
            reason = f"a {best.key_bits}-bit key is too short to count here; {self._minimum_bits} bits are required"
            return replace(best, result=DkimResult.POLICY, reason=reason)
        return best

    def _unsigned_duplicates(self, signature: Signature) -> list[str]:
        """Return the names of repeated fields of which not all are signed, though only one may exist.

        Anybody may have added the one that is shown (RFC 6376 section 8.15). The signature still passes, as that is
        what verifying means; what two From fields mean for DMARC is decided there.
        """
        if self._repeated is None:
            present = Counter(field.name.lower() for field in self._headers)
            self._repeated = {name: present[name] for name in _AT_MOST_ONE if present[name] > 1}
        return [_AT_MOST_ONE[name] for name, count in self._repeated.items() if count > signature.names.count(name)]

    def _objection(self, signature: Signature) -> str:
        """Return why this signature is invalid whatever the key; empty if that depends on the key."""
        if signature.problem:
            return signature.problem
        if signature.expires_at is not None and signature.expires_at < self.now - self._clock_skew:
            return "the signature has expired (x=)"
        if signature.signed_at is not None and signature.signed_at > self.now + self._clock_skew:
            return "the signature is from the future (t=)"
        return ""


_AT_MOST_ONE = {
    name.lower().encode(): name
    for name in ("From", "Sender", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID", "Content-Type")
}
"""Fields that readers see and that a message has at most once (RFC 5322 section 3.6, RFC 2045)."""
_PREFERENCE = (DkimResult.PASS, DkimResult.POLICY, DkimResult.FAIL, DkimResult.PERMERROR)
"""Which result is reported if there are several keys at one name, best first (RFC 6376 section 6.1.2)."""


def _try_key(
    finding: DkimFinding, signature: Signature, key: PublicKey | str, digest: bytes, intact: bool, length: int
) -> DkimFinding:
    """Return the finding with one key, or with the reason why it cannot be used.

    `digest` is that of the header; `intact` says whether the body is unchanged, `length` is its canonical length.
    """
    if isinstance(key, str):
        return replace(finding, tried=True, result=DkimResult.PERMERROR, reason=key)
    result, reason = _verify_with(key, signature, digest, intact, length)
    partly = signature.length is not None and signature.length < length
    return replace(
        finding, tried=True, key_bits=key.bits, testing=key.testing, result=result, reason=reason, partly=partly
    )


def _verify_with(
    key: PublicKey, signature: Signature, digest: bytes, intact: bool, length: int
) -> tuple[DkimResult, str]:
    """Return the result and the reason. See _try_key."""
    if not signature.algorithm.startswith(key.kind):
        return DkimResult.PERMERROR, f"the key is {key.kind}, the signature is not"
    if key.strict and signature.identity_domain != signature.domain:
        return DkimResult.PERMERROR, "the key does not allow subdomains in the identity (t=s)"
    unsigned_bytes = 0 if signature.length is None else length - signature.length
    if unsigned_bytes < 0:
        return DkimResult.FAIL, "the body is shorter than was signed (l=)"
    if not intact:
        return DkimResult.FAIL, "the body was changed after signing"
    if not key.verifies(signature.b, digest):
        return DkimResult.FAIL, "the header was changed after signing, or signed with another key"
    reason = f"{key.bits}-bit {key.kind} key"
    if key.too_short:
        return DkimResult.POLICY, f"a {reason} is too short to count (RFC 8301)"
    if unsigned_bytes and not signature.length:
        return DkimResult.POLICY, "nothing of the body is signed (l=0)"
    if unsigned_bytes:
        reason += f", the last {unsigned_bytes} bytes of the body are not signed (l=)"
    return DkimResult.PASS, reason


def _describe(signature: Signature) -> DkimFinding:
    """Return what is known about a signature before it is verified."""
    return DkimFinding(
        DkimResult.NEUTRAL,
        signature.domain,
        signature.selector,
        signature.identity,
        signature.algorithm,
        b=b64encode(signature.b[:6]).decode("ascii"),
    )


def _key_name(signature: Signature) -> str:
    return f"{signature.selector}._domainkey.{signature.domain}"
