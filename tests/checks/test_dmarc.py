# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own `dmarc`: how much of a published policy is obeyed."""

from typing import Any

import pytest

from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.checks.authentication.dmarc import DmarcCheck
from gatekeeper.core.message import parse
from gatekeeper.core.request import Stage
from gatekeeper.core.verdict import Decision
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import END_OF_DATA, Pipeline
from gatekeeper.signing.host_list import HostList
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import Keys
from tests.support.arc_messages import MESSAGE, NOW, RECORD, sealed
from tests.support.checking import SITE, rcpt
from tests.support.zones import txt

ZONE = """
_dmarc.reject.example TXT "v=DMARC1; p=reject"
_dmarc.quarantine.example TXT "v=DMARC1; p=quarantine"
_dmarc.none.example TXT "v=DMARC1; p=none"
_dmarc.pass.example TXT "v=DMARC1; p=reject"
pass.example TXT "v=spf1 ip4:192.0.2.1 -all"
_dmarc.trouble.example TXT !SERVFAIL
list.example TXT "v=spf1 ip4:192.0.2.1 -all"
open.example TXT "v=spf1 +all"
_dmarc.author.example TXT "v=DMARC1; p=reject"
"""


async def decide(
    domain: str,
    obey: str,
    stage: Stage = Stage.END_OF_MESSAGE,
    *,
    sender: str = "",
    raw: bytes = b"",
    zone: str = ZONE,
    **options: Any,
) -> Decision:
    """What becomes of a message from `domain`, sent by 192.0.2.1 without a signature, or of `raw`."""
    request = rcpt(sender=sender or f"u@{domain}", stage=stage)
    headers, body = parse(raw or f"From: <u@{domain}>\r\n\r\n".encode())
    resolver = TableResolver(Zone.parse(zone))
    facts = Facts(resolver, client=request.client, helo="h.example", sender=request.sender, receiver=SITE.hostname)
    verifier = DkimVerifier(headers, now=NOW)
    facts.add_message(headers, verifier)
    verifier.update(body)
    context = Context.of(
        site=SITE,
        resolver=resolver,
        store=MemoryStore(lambda: 0.0),
        clock=lambda: 0.0,
        keys=Keys(b"secret"),
        facts=facts,
    )
    pipeline = Pipeline({END_OF_DATA: (DmarcCheck.model_validate({"obey": obey, **options}),)})
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


@pytest.mark.parametrize(
    ("domain", "policy", "reason"),
    [
        ("reject.example", "none", "dmarc.override"),
        ("reject.example", "quarantine", "dmarc.quarantine"),
        ("none.example", "reject", "dmarc.reject"),
        ("pass.example", "reject", "dmarc.pass"),
    ],
)
async def test_an_override_counts_whatever_the_domain_says_and_is_obeyed(domain: str, policy: str, reason: str) -> None:
    assert (reason,) == (await decide(domain, "observe", overrides={domain: policy})).reasons


async def test_an_override_with_a_leading_dot_is_for_what_lies_below() -> None:
    zone = ZONE + '_dmarc.sub.none.example TXT "v=DMARC1; p=none"'
    overrides = {".none.example": "reject"}
    assert ("dmarc.reject",) == (await decide("sub.none.example", "observe", zone=zone, overrides=overrides)).reasons
    assert ("dmarc.fail",) == (await decide("none.example", "observe", overrides=overrides)).reasons


@pytest.mark.parametrize("entry", ["192.0.2.0/24", ".example.net", "mail.example.net"])
async def test_a_forwarder_that_is_trusted_may_fail(entry: str) -> None:
    hosts, _ = HostList.read([entry])
    request = rcpt()
    assert ("192.0.2.1", "mail.example.net") == (str(request.client.address), request.client.name)
    assert ("dmarc.forwarder",) == (await decide("reject.example", "reject", forwarders=hosts)).reasons


async def test_a_list_that_is_trusted_may_fail_if_it_proves_to_be_that_list() -> None:
    trusted = ("list.example",)
    assert ("dmarc.list",) == (await decide("reject.example", "reject", sender="b@list.example", lists=trusted)).reasons
    assert ("dmarc.reject",) == (await decide("reject.example", "reject", sender="b@pass.test", lists=trusted)).reasons


async def test_a_list_that_lets_everybody_send_proves_nothing() -> None:
    trusted = ("open.example",)
    found = await decide("reject.example", "reject", sender="b@open.example", lists=trusted)
    assert ("dmarc.reject",) == found.reasons


ARC_ZONE = ZONE + "".join(f"s._domainkey.{name} TXT {txt(RECORD)}\n" for name in ("list.example", "evil.example"))


@pytest.mark.parametrize(
    ("raw", "sealers", "reason"),
    [
        (sealed(MESSAGE), ("list.example",), "dmarc.sealer"),
        (sealed(sealed(MESSAGE)), ("list.example",), "dmarc.sealer"),
        (sealed(MESSAGE), ("other.example",), "dmarc.reject"),
        (sealed(MESSAGE, "evil.example"), ("list.example",), "dmarc.reject"),
        (sealed(sealed(MESSAGE), "evil.example"), ("list.example",), "dmarc.reject"),
        (sealed(sealed(MESSAGE, "evil.example")), ("list.example",), "dmarc.sealer"),
        (sealed(MESSAGE).replace(b"Hello", b"Hullo"), ("list.example",), "dmarc.reject"),
        (sealed(MESSAGE).replace(b"dmarc=pass", b"dmarc=fail"), ("list.example",), "dmarc.reject"),
    ],
)
async def test_a_chain_counts_if_all_since_dmarc_passed_are_trusted(
    raw: bytes, sealers: tuple[str, ...], reason: str
) -> None:
    decision = await decide("author.example", "reject", raw=raw, zone=ARC_ZONE, sealers=sealers)
    assert (reason,) == decision.reasons


NO_DOMAIN, SEVERAL = b"From: Bank\r\n\r\n", b"From: a@nothing.example, b@none.example\r\n\r\n"
TOO_MANY = b"From: " + b", ".join(b"a@%d.example" % n for n in range(20)) + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "wanted", "obey", "code", "action"),
    [
        (NO_DOMAIN, "", "observe", "", ""),
        (NO_DOMAIN, "", "quarantine", "", "HOLD"),
        (NO_DOMAIN, "", "reject", "550", ""),
        (NO_DOMAIN, "accept", "reject", "", ""),
        (NO_DOMAIN, "quarantine", "observe", "", "HOLD"),
        (NO_DOMAIN, "reject", "observe", "550", ""),
        (TOO_MANY, "", "observe", "", ""),
        (TOO_MANY, "accept", "reject", "550", ""),
        (TOO_MANY, "reject", "observe", "550", ""),
    ],
)
async def test_where_no_domain_can_be_judged_mail_is_treated_as_dmarc_is_unless_that_is_said(
    raw: bytes, wanted: str, obey: str, code: str, action: str
) -> None:
    decision = await decide("x.example", obey, raw=raw, malformed_from=wanted)
    assert (code, ("dmarc.permerror",)) == (decision.verdict.code, decision.reasons)
    assert action == ("" if code else decision.verdict.text.partition(" ")[0])


@pytest.mark.parametrize(
    ("wanted", "code", "action"), [("", "", ""), ("accept", "", ""), ("quarantine", "", "HOLD"), ("reject", "550", "")]
)
async def test_mail_of_several_domains_of_which_none_fails_is_refused_only_on_demand(
    wanted: str, code: str, action: str
) -> None:
    zone = ZONE.replace("_dmarc.none.example", "_dmarc.other.example")
    decision = await decide("x.example", "reject", raw=SEVERAL, zone=zone, malformed_from=wanted)
    assert (code, ("dmarc.permerror",)) == (decision.verdict.code, decision.reasons)
    assert action == ("" if code else decision.verdict.text.partition(" ")[0])


@pytest.mark.parametrize(
    "author",
    [
        "Customer Service, Bank <service@reject.example>",
        "service@reject.example\r\nFrom: service@reject.example",
        "a@quarantine.example, service@reject.example",
        "a@pass.example, service@reject.example",
        '"service@reject.example", a@pass.example',
    ],
)
async def test_a_from_that_is_a_little_wrong_does_not_escape_the_policy(author: str) -> None:
    raw = f"From: {author}\r\n\r\n".encode()
    decision = await decide("x.example", "reject", raw=raw, sender="a@pass.example")
    assert ("550", ("dmarc.reject",)) == (decision.verdict.code, decision.reasons)
    assert "policy of reject.example refuses" in decision.verdict.reply


async def test_an_override_counts_for_each_of_several_domains() -> None:
    raw = b"From: a@reject.example, b@none.example\r\n\r\n"
    for overrides, reason in [
        ({"reject.example": "none"}, "dmarc.override"),
        ({"reject.example": "none", "none.example": "quarantine"}, "dmarc.quarantine"),
        ({"none.example": "none"}, "dmarc.reject"),
    ]:
        decision = await decide("x.example", "reject", raw=raw, overrides=overrides)
        assert (reason,) == decision.reasons


async def test_quarantine_may_be_a_field_instead() -> None:
    verdict = (await decide("quarantine.example", "reject", quarantine="header")).verdict
    assert "PREPEND X-Gatekeeper-Quarantine: DMARC policy of quarantine.example" == verdict.text
