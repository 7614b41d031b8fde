# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own `dmarc`: how much of a published policy is obeyed."""

import pytest

from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.checks.dmarc import Dmarc
from gatekeeper.facts import Facts
from gatekeeper.message import parse
from gatekeeper.pipeline import END_OF_DATA, Context, Pipeline
from gatekeeper.request import Stage
from gatekeeper.resolver import TableResolver
from gatekeeper.store import Keys
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.verdict import Decision
from gatekeeper.zone import Zone
from tests.checking import SITE, rcpt

ZONE = """
_dmarc.reject.example TXT "v=DMARC1; p=reject"
_dmarc.quarantine.example TXT "v=DMARC1; p=quarantine"
_dmarc.none.example TXT "v=DMARC1; p=none"
_dmarc.pass.example TXT "v=DMARC1; p=reject"
pass.example TXT "v=spf1 ip4:192.0.2.1 -all"
_dmarc.trouble.example TXT !SERVFAIL
"""


async def decide(domain: str, obey: str, stage: Stage = Stage.END_OF_MESSAGE) -> Decision:
    """What becomes of a message from `domain`, sent by 192.0.2.1 without a signature."""
    request = rcpt(sender=f"u@{domain}", stage=stage)
    headers, _ = parse(f"From: <u@{domain}>\r\n\r\n".encode())
    resolver = TableResolver(Zone.parse(ZONE))
    facts = Facts(resolver, client=request.client, helo="h.example", sender=request.sender, receiver=SITE.hostname)
    facts.add_message(headers, DkimVerifier(headers, now=0.0))
    context = Context(
        site=SITE,
        resolver=resolver,
        store=MemoryStore(lambda: 0.0),
        clock=lambda: 0.0,
        keys=Keys(b"secret"),
        facts=facts,
    )
    pipeline = Pipeline({END_OF_DATA: (Dmarc.model_validate({"obey": obey}),)})
    return await pipeline.decide(request, context)


@pytest.mark.parametrize(
    ("domain", "obey", "code", "reason", "action"),
    [
        ("reject.example", "reject", "550", "dmarc.reject", ""),
        ("reject.example", "quarantine", "", "dmarc.quarantine", "HOLD"),
        ("reject.example", "observe", "", "dmarc.fail", ""),
        ("quarantine.example", "reject", "", "dmarc.quarantine", "HOLD"),
        ("quarantine.example", "observe", "", "dmarc.fail", ""),
        ("none.example", "reject", "", "dmarc.fail", ""),
        ("pass.example", "reject", "", "dmarc.pass", ""),
        ("trouble.example", "reject", "", "dmarc.temperror", ""),
        ("nothing.example", "reject", "", "dmarc.none", ""),
    ],
)
async def test_a_policy_is_obeyed_as_far_as_is_wanted(
    domain: str, obey: str, code: str, reason: str, action: str
) -> None:
    decision = await decide(domain, obey)
    assert (code, (reason,)) == (decision.verdict.code, decision.reasons)
    assert action == decision.verdict.text.partition(" ")[0] or code


async def test_the_refusal_names_the_domain_and_the_rule() -> None:
    verdict = (await decide("reject.example", "reject")).verdict
    expected = "DMARC policy of reject.example refuses mail that neither SPF nor DKIM proves to be its own"
    assert f"550 5.7.1 {expected}" == verdict.reply


async def test_before_the_message_is_there_it_has_no_opinion() -> None:
    assert () == (await decide("reject.example", "reject", Stage.DATA)).reasons
