# SPDX-License-Identifier: GPL-3.0-or-later
"""Allow entries with a condition: what the milter saw proven counts at RCPT, for that domain from that network."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc import DmarcFinding, DmarcResult
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.checks.tables.sender_proof import LIFETIME, ProofRecorder
from gatekeeper.core.request import Client, Request, Stage, parse_address
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import END_OF_DATA, Pipeline
from gatekeeper.stores.store import Keys
from tests.support.checking import SITE, World, rcpt

SIGNED = DkimFinding(DkimResult.PASS, domain="example.net")
PASSED = DmarcFinding(DmarcResult.PASS, domain="example.net", organizational="example.net", authenticates=True)


@dataclass
class Found(Facts):
    """Facts about a message that are known already."""

    signatures: tuple[DkimFinding, ...]
    finding: DmarcFinding
    sent_by: SpfFinding

    async def dkim(self) -> tuple[DkimFinding, ...]:
        return self.signatures

    async def dmarc(self) -> DmarcFinding:
        return self.finding

    async def spf(self) -> SpfFinding:
        return self.sent_by


async def message(
    world: World,
    dkim: DkimFinding = SIGNED,
    dmarc: DmarcFinding | None = None,
    *,
    address: str = "192.0.2.77",
    sender: str = "someone@example.net",
) -> None:
    """A message has come to its end, with these findings."""
    request = Request(stage=Stage.END_OF_MESSAGE, client=Client(address=parse_address(address)), sender=sender)
    finding = dmarc or PASSED
    context = Context.of(
        site=SITE,
        resolver=world.resolver,
        store=world.store,
        clock=lambda: world.now,
        keys=Keys(b"secret"),
        facts=Found((dkim,), finding, SpfFinding(SpfResult.NONE)),
    )
    pipeline = Pipeline({END_OF_DATA: (ProofRecorder(conditions=("dkim", "dmarc")),)})
    await context.settle(await pipeline.decide(request, context))


def world(folder: Path, condition: str, zone: str = "") -> World:
    (folder / "senders").write_text(f"example.net OK if={condition}\n")
    return World("check_sender_access hash:senders, reject", zone, folder=folder)


@pytest.mark.parametrize("condition", ["dkim", "dmarc"])
async def test_an_entry_holds_once_its_proof_was_seen_from_the_network(tmp_path: Path, condition: str) -> None:
    asked = world(tmp_path, condition)
    assert "access.unproven" == (await asked.decide(rcpt())).reasons[0]
    await message(asked)
    assert ("access.ok",) == (await asked.decide(rcpt())).reasons
    assert "access.unproven" == (await asked.decide(rcpt(address="198.51.100.1"))).reasons[0]


async def test_a_proof_is_forgotten_when_nothing_comes(tmp_path: Path) -> None:
    asked = world(tmp_path, "dkim")
    await message(asked)
    asked.now += LIFETIME + 1
    assert "access.unproven" == (await asked.decide(rcpt())).reasons[0]


@pytest.mark.parametrize(
    ("dkim", "sender"),
    [
        (DkimFinding(DkimResult.FAIL, domain="example.net"), "someone@example.net"),
        (DkimFinding(DkimResult.PASS, domain="other.example"), "someone@example.net"),
        (DkimFinding(DkimResult.PASS, domain="sub.example.net"), "someone@example.net"),
        (DkimFinding(DkimResult.PASS, domain="example.net", testing=True), "someone@example.net"),
        (DkimFinding(DkimResult.PASS, domain="example.net", partly=True), "someone@example.net"),
        (SIGNED, ""),
        (SIGNED, "someone@notexample.net"),
    ],
)
async def test_what_proves_nothing_of_the_sender_is_not_remembered(
    tmp_path: Path, dkim: DkimFinding, sender: str
) -> None:
    asked = world(tmp_path, "dkim")
    await message(asked, dkim, sender=sender)
    assert "access.unproven" == (await asked.decide(rcpt())).reasons[0]


async def test_dmarc_counts_within_its_organizational_domain(tmp_path: Path) -> None:
    asked = world(tmp_path, "dmarc")
    await message(asked, sender="bounce@mail.example.net")
    assert ("access.ok",) == (await asked.decide(rcpt(sender="bounce@mail.example.net"))).reasons
    await message(asked, dmarc=DmarcFinding(DmarcResult.FAIL, domain="example.net"))
    assert "access.unproven" == (await asked.decide(rcpt())).reasons[0]


@pytest.mark.parametrize(("condition", "reason"), [("dmarc", "access.ok"), ("dkim", "access.unproven")])
async def test_spf_proves_the_domain_for_dmarc_and_not_for_dkim(tmp_path: Path, condition: str, reason: str) -> None:
    asked = world(tmp_path, condition, 'example.net TXT "v=spf1 ip4:192.0.2.1 -all"\n')
    assert reason == (await asked.decide(rcpt())).reasons[0]


async def test_dmarc_that_anybody_passes_is_not_remembered(tmp_path: Path) -> None:
    asked = world(tmp_path, "dmarc")
    await message(asked, dmarc=replace(PASSED, authenticates=False))
    assert "access.unproven" == (await asked.decide(rcpt())).reasons[0]


@pytest.mark.parametrize("condition", ["spf", "dmarc"])
@pytest.mark.parametrize("record", ["+all", "exists:%{i}.s.example -all", "include:open.example", "ip4:0.0.0.0/0"])
async def test_spf_that_anybody_passes_proves_nothing(tmp_path: Path, condition: str, record: str) -> None:
    zone = f'example.net TXT "v=spf1 {record}"\nopen.example TXT "v=spf1 +all"\n*.s.example A 127.0.0.2\n'
    asked = world(tmp_path, condition, zone)
    decision = await asked.decide(rcpt())
    assert "access.unproven" == decision.reasons[0]
    if condition == "spf":
        term = record.split()[0]
        assert f"SPF: pass, which proves nothing of the sender ({term}); the entry does not count" in [
            note.found for note in decision.steps[0].notes
        ]


async def test_a_helo_name_proves_nothing_of_the_null_sender(tmp_path: Path) -> None:
    (tmp_path / "senders").write_text("<> OK if=spf\n")
    zone = 'example.net TXT "v=spf1 ip4:192.0.2.1 -all"\n'
    asked = World("check_sender_access hash:senders, reject", zone, folder=tmp_path)
    assert "access.unproven" == (await asked.decide(rcpt(sender="", helo="example.net"))).reasons[0]


async def test_the_explanation_says_whether_it_holds(tmp_path: Path) -> None:
    asked = world(tmp_path, "dkim")
    step = (await asked.decide(rcpt())).steps[0]
    said = [(note.what, note.found) for note in step.notes]
    assert ("if=dkim", "proof of example.net from 192.0.2.0/24 not seen in 36 days; the entry does not count") in said
