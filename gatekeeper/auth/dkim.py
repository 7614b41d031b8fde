# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM verification (RFC 6376, 8301, 8463, 8616): which domains take responsibility for this message?

The body is hashed as its chunks come, once for each distinct way that a signature wants it; keys come from our
resolver; OpenSSL does the arithmetic. Every signature gets a result and a reason in our words: nothing a stranger
wrote is in it but domains in normal form. Nothing is raised for what a message or a key record says.
"""

import asyncio
import logging
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gatekeeper.auth.digests import Digests
from gatekeeper.auth.dkim_key import MINIMUM_RSA_BITS, PublicKey, parse_key
from gatekeeper.auth.dkim_signature import Signature, parse_signature
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import Answer, DNSError, Resolver, known_answer, query_or_error

logger = logging.getLogger(__name__)

MAX_SIGNATURES = 8
"""Signatures looked at, from the top: each may cost a look-up, a body hash and a verification."""
CLOCK_SKEW = 300.0
"""Seconds that a signer's clock and ours may be apart (OpenDKIM's ClockDrift)."""
_MAX_KEYS = 4  # TXT records tried at one name


class DkimResult(StrEnum):
    """RFC 8601 section 2.7.1. `policy`: it verifies, and is not accepted; `neutral`: it was not looked at."""

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    POLICY = "policy"
    NEUTRAL = "neutral"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class DkimFinding:
    """What came out for one signature. `identity` is `i=`, `b` the first eight characters of its `b=` (RFC 6008).

    `testing` is the key's t=y; `no_key` means that its name does not exist in the DNS,
    `tried` that a key record was found and tried.
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


NOT_SIGNED = DkimFinding(DkimResult.NONE, reason="the message is not signed")


class DkimVerifier:
    """The signatures of one message. Feed the body with `update`; `fetch` may run meanwhile; then ask `results`.

    `now` is seconds since the epoch. The body must have CRLF line ends, as on the wire. `digests` may be asked for more
    than DKIM needs, before the body comes. Only signatures that are `wanted` are looked at; those of RSA keys below
    `minimum_bits` do not count. `clock_skew`: seconds by which `t=` and `x=` may be off.
    """

    def __init__(
        self,
        headers: Sequence[Header],
        *,
        now: float,
        max_signatures: int = MAX_SIGNATURES,
        wanted: Callable[[Signature], bool] = lambda signature: True,
        minimum_bits: int = MINIMUM_RSA_BITS,
        clock_skew: float = CLOCK_SKEW,
    ) -> None:
        self._headers = headers
        self._minimum_bits = minimum_bits
        self._clock_skew = clock_skew
        self.now = now
        places = [index for index, field in enumerate(headers) if field.name.lower() == b"dkim-signature"]
        self._ignored = max(0, len(places) - max_signatures)
        signatures = ((index, parse_signature(headers[index])) for index in places[:max_signatures])
        self._signatures = [(index, signature) for index, signature in signatures if wanted(signature)]
        self.digests = Digests(headers)
        for _, signature in self._signatures:
            if not signature.problem:
                self.digests.want(signature)
        self._keys: dict[str, Answer | DNSError] = {}
        self._results: tuple[DkimFinding, ...] | None = None
        self._twice: dict[bytes, int] | None = None

    @property
    def signed(self) -> bool:
        """Whether there is a signature to verify."""
        return bool(self._signatures)

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self.digests.update(chunk)

    async def fetch(self, resolver: Resolver) -> None:
        """Look up the keys that are not known yet, all at once. DNS trouble is kept for the results."""
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
        """One finding for each signature, from the top; a single `none` if there is none. Ends the body."""
        await self.fetch(resolver)
        if self._results is None:
            self._results = self._verify_all()
        return self._results

    def results_so_far(self) -> tuple[DkimFinding, ...]:
        """The findings by the keys that are known; `temperror` for those that are not. Ends the body."""
        return self._verify_all()

    def results_with(self, keys: Mapping[str, Answer]) -> tuple[DkimFinding, ...]:
        """The findings by `keys`, the key records by their names, instead of the DNS. Ends the body."""
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
        records = [record for record in answer.records if isinstance(record, bytes)]
        if not records:
            return replace(finding, result=DkimResult.PERMERROR, reason=f"there is no key {name}", no_key=True)
        body, length = self.digests.body(signature)
        intact = body == signature.body_hash
        digest = self.digests.header(index, signature)
        tried = [
            _judge(finding, signature, parse_key(record), digest, intact, length) for record in records[:_MAX_KEYS]
        ]
        best = min(tried, key=lambda tried: _PREFERRED.index(tried.result))
        if best.result is DkimResult.PASS and (added := self._added(signature)):
            best = replace(best, reason=f"{best.reason}, not signed: another {' and '.join(added)}")
        if best.result is DkimResult.PASS and best.algorithm.startswith("rsa") and best.key_bits < self._minimum_bits:
            reason = f"a {best.key_bits}-bit key is too short to count here; {self._minimum_bits} bits are wanted"
            return replace(best, result=DkimResult.POLICY, reason=reason)
        return best

    def _added(self, signature: Signature) -> list[str]:
        """Names of fields that readers take for one, stand there twice, and are not all signed (RFC 6376 section 8.15):
        anybody may have added the one that is shown. It still passes, as that is what verifying means; what DMARC makes
        of two From fields is said there.
        """
        if self._twice is None:
            present = Counter(field.name.lower() for field in self._headers)
            self._twice = {name: present[name] for name in _ONCE if present[name] > 1}
        return [_ONCE[name] for name, count in self._twice.items() if count > signature.names.count(name)]

    def _objection(self, signature: Signature) -> str:
        """Why no key is needed to see that this signature is not valid; empty if one is."""
        if signature.problem:
            return signature.problem
        if signature.expires_at is not None and signature.expires_at < self.now - self._clock_skew:
            return "the signature has expired (x=)"
        if signature.signed_at is not None and signature.signed_at > self.now + self._clock_skew:
            return "the signature is from the future (t=)"
        return ""


_ONCE = {
    name.lower().encode(): name
    for name in ("From", "Sender", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID", "Content-Type")
}
"""Fields of which a message has one at most (RFC 5322 section 3.6, RFC 2045), with what readers see first."""
_PREFERRED = (DkimResult.PASS, DkimResult.POLICY, DkimResult.FAIL, DkimResult.PERMERROR)
"""Of several keys at one name, the one that says most (RFC 6376 section 6.1.2)."""


def _judge(
    finding: DkimFinding, signature: Signature, key: PublicKey | str, digest: bytes, intact: bool, length: int
) -> DkimFinding:
    """The finding with one key: `digest` of the header, whether the body is `intact`, its canonical `length`."""
    if isinstance(key, str):
        return replace(finding, tried=True, result=DkimResult.PERMERROR, reason=key)
    result, reason = _with(key, signature, digest, intact, length)
    return replace(finding, tried=True, key_bits=key.bits, testing=key.testing, result=result, reason=reason)


def _with(key: PublicKey, signature: Signature, digest: bytes, intact: bool, length: int) -> tuple[DkimResult, str]:
    """The result, and the reason."""
    if not signature.algorithm.startswith(key.kind):
        return DkimResult.PERMERROR, f"the key is {key.kind}, the signature is not"
    if key.strict and signature.identity_domain != signature.domain:
        return DkimResult.PERMERROR, "the key does not allow subdomains in the identity (t=s)"
    unsigned = 0 if signature.length is None else length - signature.length
    if unsigned < 0:
        return DkimResult.FAIL, "the body is shorter than was signed (l=)"
    if not intact:
        return DkimResult.FAIL, "the body was changed after signing"
    if not key.verifies(signature.b, digest):
        return DkimResult.FAIL, "the header was changed after signing, or signed with another key"
    reason = f"{key.bits}-bit {key.kind} key"
    if key.too_short:
        return DkimResult.POLICY, f"a {reason} is too short to count (RFC 8301)"
    if unsigned and not signature.length:
        return DkimResult.POLICY, "nothing of the body is signed (l=0)"
    if unsigned:
        reason += f", the last {unsigned} bytes of the body are not signed (l=)"
    return DkimResult.PASS, reason


def _describe(signature: Signature) -> DkimFinding:
    """What is known of a signature before it is judged."""
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
