# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own `spf`: off unless wanted; then `fail` is refused, and nothing else."""

import pytest

from gatekeeper.checks.authentication.spf import SpfCheck
from gatekeeper.core.verdict import PASS, Mode, Outcome
from tests.support.checking import World, rcpt

ZONE = r"""
fail.example TXT "v=spf1 -all exp=why.example"
why.example TXT "go away %{i}"
soft.example TXT "v=spf1 ~all"
pass.example TXT "v=spf1 ip4:192.0.2.1 -all"
broken.example TXT "v=spf1 bogus:x -all"
trouble.example TXT !SERVFAIL
forged.example TXT "v=spf1 -all exp=lies.example"
lies.example TXT "250 ok\013\010550 5.0.0 \027[31m %{s}"
"""


def world(**options: object) -> World:
    return World("spf", ZONE, {"spf": SpfCheck.model_validate({"mode": Mode.ENFORCE} | options)})


async def test_it_is_off_unless_wanted() -> None:
    assert () == (await World("spf", ZONE).decide(rcpt(sender="u@fail.example"))).steps


async def test_fail_is_refused_with_the_domain_s_own_words() -> None:
    verdict = await world().verdict(rcpt(sender="u@fail.example"))
    expected = "550 5.7.23 SPF of fail.example does not allow 192.0.2.1 to send its mail"
    assert f"{expected}; fail.example explains: go away 192.0.2.1" == verdict.reply


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        ("pass.example", "spf.pass"),
        ("soft.example", "spf.softfail"),
        ("broken.example", "spf.permerror"),
        ("trouble.example", "spf.temperror"),
        ("nothing.example", "spf.none"),
    ],
)
async def test_anything_else_passes_and_is_written_down(domain: str, reason: str) -> None:
    decision = await world().decide(rcpt(sender=f"u@{domain}"))
    assert (PASS, (reason,)) == (decision.verdict, decision.reasons)


async def test_dns_trouble_defers_where_that_is_wanted() -> None:
    verdict = await world(temperror="defer").verdict(rcpt(sender="u@trouble.example"))
    assert (Outcome.DEFER_IF_PERMIT, "450", "4.7.24") == (verdict.outcome, verdict.code, verdict.enhanced)


async def test_the_null_sender_is_judged_by_its_helo_name() -> None:
    assert "550" == (await world().verdict(rcpt(sender="", helo="fail.example"))).code


async def test_users_and_internal_hosts_are_not_judged() -> None:
    assert PASS == await world().verdict(rcpt(sender="u@fail.example", sasl_user="alice"))
    assert PASS == await world().verdict(rcpt(sender="u@fail.example", address="10.0.0.1"))


async def test_a_helo_name_that_may_not_be_used_is_refused_too() -> None:
    verdict = await world().verdict(rcpt(sender="u@pass.example", helo="fail.example"))
    expected = ("spf.helo_fail", "550 5.7.23 SPF of fail.example does not allow 192.0.2.1 to greet with this name")
    assert expected == (verdict.reason, verdict.reply.partition(";")[0])


@pytest.mark.parametrize("helo", ["soft.example", "broken.example", "trouble.example", "localhost", "[192.0.2.1]"])
async def test_of_a_helo_name_nothing_but_fail_counts(helo: str) -> None:
    decision = await world(temperror="defer", permerror="reject").decide(rcpt(sender="u@pass.example", helo=helo))
    assert (PASS, ("spf.pass",)) == (decision.verdict, decision.reasons)


async def test_helo_is_left_alone_where_that_is_wanted() -> None:
    decision = await world(helo=False).decide(rcpt(sender="u@pass.example", helo="fail.example"))
    assert (PASS, ("spf.pass",)) == (decision.verdict, decision.reasons)


async def test_a_record_that_is_wrong_is_refused_where_that_is_wanted() -> None:
    verdict = await world(permerror="reject").verdict(rcpt(sender="u@broken.example"))
    assert ("spf.permerror", "550", "5.7.24") == (verdict.reason, verdict.code, verdict.enhanced)


async def test_an_explanation_cannot_end_the_reply_nor_pass_for_our_words() -> None:
    reply = (await world().verdict(rcpt(sender="u@forged.example"))).reply
    assert "its mail; forged.example explains: 250 ok" in reply
    assert reply.isascii()
    assert reply.isprintable()


@pytest.mark.parametrize("recipient", ["postmaster@example.com", "abuse@example.com"])
async def test_our_postmaster_hears_who_fails_spf(recipient: str) -> None:
    decision = await world().decide(rcpt(sender="u@fail.example", recipient=recipient))
    assert (PASS, ("spf.fail",)) == (decision.verdict, decision.reasons)


async def test_who_is_permitted_further_up_is_not_judged() -> None:
    zone = ZONE + "1.2.0.192.allow.example A 127.0.0.2"
    words = "permit_dnswl_client allow.example, spf"
    section = SpfCheck.model_validate({"mode": Mode.ENFORCE})
    assert PASS == await World(words, zone, {"spf": section}).verdict(rcpt(sender="u@fail.example"))
