# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditions on allow entries, `OK if=spf|dkim|dmarc`: proof that the sender's domain is not forged.

SPF is known at RCPT. DKIM and DMARC are known only at the end of a message, long after the entry was looked up. So the
milter remembers, for LIFETIME, from which client network (/24, /64) a sender's domain has sent mail that was signed by
that domain or a parent of it (dkim), or whose From passed DMARC in that domain or its organizational domain (dmarc).
An entry counts if that was seen; with `if=dmarc` also if SPF passes now. So the first mail from a network never passes
by `if=dkim`: it is judged like any other.

Proof is more than a pass: `authenticates` of each finding is asked, because anybody passes SPF that ends in `+all`, or
a signature by a test key or over half a message.

Known limits: a client that shares the network with a proven sender can forge that sender there; and so can whoever
sends a signed message again from a network of his own. Nothing is written unless some entry requires it; store
keys are keyed hashes.
"""

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from gatekeeper.auth.domains import is_within
from gatekeeper.auth.spf import SpfResult
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.checks.base.client_network import network_of
from gatekeeper.core.request import Request, Stage, domain_of
from gatekeeper.core.verdict import PASS, Verdict, printable
from gatekeeper.pipeline.context import Context
from gatekeeper.stores.store import Keys, StoreError

CONDITIONS = ("spf", "dkim", "dmarc")
ASKING_SPF = ("spf", "dmarc")
LIFETIME = 36 * 86400.0
"""Seconds for which the last proof is remembered: as long as greylisting knows a client."""


async def is_proven(condition: str, request: Request, context: Context) -> bool:
    """Return whether the sender of `request` is proven as `condition` requires, and note why."""
    what = f"if={condition}"
    if condition in ASKING_SPF:
        spf = await context.facts.spf()
        proven = spf.authenticates and spf.identity == "mailfrom"  # a HELO name says nothing of the null sender
        if proven:
            context.note(what, f"SPF of {printable(spf.domain, 255)} passes")
            return True
        if condition == "spf":
            why = f"SPF: {spf.result}"
            if spf.result is SpfResult.PASS:
                why += f", which proves nothing of the sender ({spf.mechanism})"
            context.note(what, f"{why}; the entry does not count")
            return False
    key, origin = _key(condition, request, context)
    try:
        seen = bool(key) and await context.store.get(key) is not None
    except StoreError:
        context.note(what, "the store does not answer; the entry does not count")
        return False
    result = "seen lately" if seen else f"not seen in {LIFETIME / 86400:.0f} days; the entry does not count"
    context.note(what, f"proof of {origin} {result}")
    return seen


class ProofRecorder(ConfiguredCheck):
    """Remembers what was proven at the end of a message; never refuses anything."""

    name: ClassVar[str] = "remember"
    needs: ClassVar[tuple[str, ...]] = ("sender",)

    conditions: tuple[str, ...] = ()

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Register the proof, which is written after the decision; always pass."""
        if request.stage is not Stage.END_OF_MESSAGE:
            return PASS
        proofs: dict[str, Callable[[str, Context], Coroutine[Any, Any, bool]]] = {
            "dkim": _is_signed_by,
            "dmarc": _passes_dmarc,
        }
        for condition in self.conditions:
            key, _ = _key(condition, request, context)
            if key and await proofs[condition](domain_of(request.sender or ""), context):
                self._record(key, context)
        return PASS

    def _record(self, key: str, context: Context) -> None:
        context.after(
            lambda _decision: context.store.set(key, b"1", LIFETIME), lambda decision: not decision.verdict.refuses
        )


async def _is_signed_by(domain: str, context: Context) -> bool:
    return any(found.authenticates and is_within(domain, found.domain) for found in await context.facts.dkim())


async def _passes_dmarc(domain: str, context: Context) -> bool:
    found = await context.facts.dmarc()
    return found.authenticates and (
        is_within(domain, found.domain) or (found.organizational != "" and is_within(domain, found.organizational))
    )


def _key(condition: str, request: Request, context: Context) -> tuple[str, str]:
    """Return the store key of a proof, empty if there can be none, and in words what it proves."""
    domain, address = domain_of(request.sender or ""), request.client.address
    if not domain or address is None:
        return "", "a sender without domain"
    network = network_of(address, 24, 64)
    # Facts are the same in observe mode, so the keys are those of enforce mode.
    return Keys(context.keys.secret)("proof", condition, domain, network), f"{domain} from {network}"
