# SPDX-License-Identifier: GPL-3.0-or-later
"""ARC validation (RFC 8617): what earlier handlers of a message said about it, and whether their chain verifies.

A chain passes if its newest ARC-Message-Signature and every ARC-Seal verify. That says who handled the message, not
that any of them deserves trust: which sealers are trusted is for a check to say (`verify.trusted_sealers`).

Cheap tests come first: checking the structure costs no look-up, and the keys of all the other sets are only looked up
once the newest set has verified. The seals are hashed in one pass. No message or key record, however malformed, raises
an exception. We do not seal; a sealer would be a module beside this one that uses the same sets and digests.
"""

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gatekeeper.auth import canonicalization
from gatekeeper.auth.arc_set import ArcSet, BadChain, parse_chain
from gatekeeper.auth.digests import Digests, with_empty_b
from gatekeeper.auth.dkim import CLOCK_SKEW
from gatekeeper.auth.dkim_key import PublicKey, key_records, parse_key
from gatekeeper.auth.received_results import ReceivedResults, parse_received_results
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import Answer, DNSError, Resolver, known_answer, query_or_error

logger = logging.getLogger(__name__)

_EARLY_KEYS = 6
"""Keys that are looked up before the newest set has been verified."""
_FAILED = "fail"


class ArcResult(StrEnum):
    """Results of chain validation (RFC 8617 section 4.4).

    `temperror`: a key could not be looked up (section 7.3 leaves this case to the implementation).
    """

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    TEMPERROR = "temperror"


@dataclass(frozen=True, slots=True)
class Hop:
    """What one handler sealed: `domain` is `d=` of its ARC-Seal, `stated` its ARC-Authentication-Results."""

    domain: str
    selector: str
    stated: ReceivedResults


@dataclass(frozen=True, slots=True)
class ArcFinding:
    """The result of validating a chain, with its `hops` from the first instance on if it passes.

    `oldest_pass` is the lowest instance whose ARC-Message-Signature still verifies, 0 if all do (RFC 8617 section
    5.2): the message was changed after any earlier instance. `signs_from` is false if the newest one signs no field at
    all. `remote_ip` is the address of the client that brought the message, for whoever seals it next.
    """

    result: ArcResult
    reason: str = ""
    hops: tuple[Hop, ...] = ()
    oldest_pass: int = 0
    signs_from: bool = False
    remote_ip: str = ""


NO_CHAIN = ArcFinding(ArcResult.NONE, "the message has no ARC sets")


class _NotValid(Exception):
    """The chain does not pass; carries the finding with its result and reason."""

    def __init__(self, reason: str, result: ArcResult = ArcResult.FAIL) -> None:
        super().__init__(reason)
        self.finding = ArcFinding(result, reason)


class ArcVerifier:
    """Validates the chain of one message, using the `digests` that the body is fed to.

    Create it before the body arrives. `now` is seconds since the epoch.
    """

    def __init__(self, headers: Sequence[Header], digests: Digests, *, now: float) -> None:
        self._headers = headers
        self._digests = digests
        self._now = now
        self._keys: dict[str, Answer | DNSError] = {}
        self._finding: ArcFinding | None = None
        self._sets: tuple[ArcSet, ...] = ()
        try:
            self._sets = parse_chain(headers)
            if not self._sets:
                self._finding = NO_CHAIN
            self._check_statuses()
        except BadChain as error:
            self._finding = ArcFinding(ArcResult.FAIL, str(error))
        if self._finding is None:
            for arc in self._sets:
                digests.want(arc.signature)

    def _check_statuses(self) -> None:
        """Raise BadChain unless every `cv=` fits (RFC 8617 section 5.2, steps 2 and 3).

        A chain that has failed stays failed, and only the first set begins a chain.
        """
        for instance, arc in reversed([*enumerate(self._sets, 1)]):
            status = arc.seal.status
            if status == _FAILED:
                raise BadChain(f"instance {instance} says that the chain had already failed (cv=fail)")
            if status != ("none" if instance == 1 else "pass"):
                raise BadChain(f"the ARC-Seal of instance {instance} says cv={status}")

    async def fetch(self, resolver: Resolver) -> None:
        """Look up the keys of the newest sets; DNS errors are kept for the result."""
        if self._finding is None:
            await self._fetch(resolver, [*self._key_names()][:_EARLY_KEYS])

    async def result(self, resolver: Resolver) -> ArcFinding:
        """Return the finding for the chain. Ends the body."""
        if self._finding is None:
            try:
                self._finding = await self._validate(resolver)
            except _NotValid as failure:
                self._finding = failure.finding
            except Exception:
                logger.exception("validating an ARC chain failed")
                self._finding = ArcFinding(ArcResult.FAIL, "it could not be processed")
        return self._finding

    def _key_names(self) -> Iterator[str]:
        """Yield the names of all keys, from the newest set back, each once."""
        names = (name for arc in reversed(self._sets) for name in (_key_name(arc.signature), _key_name(arc.seal)))
        yield from dict.fromkeys(names)

    async def _fetch(self, resolver: Resolver, names: Iterable[str]) -> None:
        wanted = []
        for name in names:
            if name not in self._keys and (found := known_answer(resolver, name, "TXT")) is not None:
                self._keys[name] = found
            elif name not in self._keys:
                wanted.append(name)
        if wanted:
            answers = await asyncio.gather(*(query_or_error(resolver, name, "TXT") for name in wanted))
            self._keys.update(zip(wanted, answers, strict=True))

    async def _validate(self, resolver: Resolver) -> ArcFinding:
        """Verify signatures and seals (RFC 8617 section 5.2, steps 4 to 6). Raises _NotValid."""
        await self.fetch(resolver)
        newest = len(self._sets)
        seals = self._seal_digests()
        self._verify_signature(newest)
        self._verify_seal(newest, seals[-1])
        await self._fetch(resolver, (_key_name(arc.seal) for arc in self._sets))
        for instance in range(newest - 1, 0, -1):
            self._verify_seal(instance, seals[instance - 1])
        hops = tuple(
            Hop(arc.seal.domain, arc.seal.selector, parse_received_results(self._headers[arc.results_index].value))
            for arc in self._sets
        )
        reason = f"i={newest}, sealed by {hops[-1].domain}"
        signs_from = b"from" in self._sets[-1].signature.names
        return ArcFinding(ArcResult.PASS, reason, hops, self._oldest_pass(), signs_from)

    def _verify_signature(self, instance: int) -> None:
        arc = self._sets[instance - 1]
        signature, whose = arc.signature, f"the ARC-Message-Signature of instance {instance}"
        # RFC 6376 section 5.4; an empty h= is what the public suite lets pass
        if any(signature.names) and b"from" not in signature.names:
            raise _NotValid(f"{whose} does not sign From (h=)")
        if signature.expires_at is not None and signature.expires_at < self._now:
            raise _NotValid(f"{whose} has expired (x=)")
        if signature.signed_at is not None and signature.signed_at > self._now + CLOCK_SKEW:
            raise _NotValid(f"{whose} is from the future (t=)")
        keys = self._usable_keys(_key_name(signature), signature.algorithm, whose)
        body, length = self._digests.body(signature)
        if body != signature.body_hash or (signature.length or 0) > length:
            raise _NotValid(f"the body was changed after {whose}")
        digest = self._digests.header(arc.signature_index, signature)
        if not any(key.verifies(signature.b, digest) for key in keys):
            raise _NotValid(f"the header was changed after {whose}, or it was made with another key")

    def _verify_seal(self, instance: int, digest: bytes) -> None:
        seal, whose = self._sets[instance - 1].seal, f"the ARC-Seal of instance {instance}"
        keys = self._usable_keys(_key_name(seal), seal.algorithm, whose)
        if not any(key.verifies(seal.b, digest) for key in keys):
            raise _NotValid(f"{whose} does not verify: the ARC fields were changed, or it was made with another key")

    def _usable_keys(self, name: str, algorithm: str, whose: str) -> list[PublicKey]:
        answer = self._keys[name]
        if isinstance(answer, DNSError):
            raise _NotValid(f"the key {name} of {whose} could not be looked up", ArcResult.TEMPERROR)
        problem = f"there is no key {name}"
        keys = []
        for record in key_records(answer.records):
            key = parse_key(record)
            if isinstance(key, str):
                problem = f"{key} ({name})"
            elif key.too_short:
                problem = f"the key {name} is too short to count"
            elif not algorithm.startswith(key.kind):
                problem = f"the key {name} is {key.kind}, the signature is not"
            else:
                keys.append(key)
        if not keys:
            raise _NotValid(f"{whose}: {problem}")
        return keys

    def _seal_digests(self) -> list[bytes]:
        """Return for each instance the SHA-256 that its seal signs (RFC 8617 section 5.1.1).

        A seal covers all sets up to its own, in relaxed form.
        """
        digests = []
        so_far = hashlib.sha256()
        for arc in self._sets:
            for index in (arc.results_index, arc.signature_index):
                so_far.update(self._digests.canonical(index, relaxed=True) + b"\r\n")
            own = so_far.copy()
            own.update(canonicalization.header(with_empty_b(self._headers[arc.seal_index]), relaxed=True))
            digests.append(own.digest())
            so_far.update(self._digests.canonical(arc.seal_index, relaxed=True) + b"\r\n")
        return digests

    def _oldest_pass(self) -> int:
        """Return the lowest instance whose signature still verifies, going back from the newest; 0 if all do.

        Only keys that have been looked up already are used: this is a courtesy to whoever debugs a chain.
        """
        oldest = len(self._sets)
        for instance in range(oldest - 1, 0, -1):
            if _key_name(self._sets[instance - 1].signature) not in self._keys:
                break
            try:
                self._verify_signature(instance)
            except _NotValid:
                break
            oldest = instance
        return 0 if oldest == 1 else oldest


class _SignedBy(Protocol):
    @property
    def domain(self) -> str: ...
    @property
    def selector(self) -> str: ...


def _key_name(signed: _SignedBy) -> str:
    return f"{signed.selector}._domainkey.{signed.domain}"
