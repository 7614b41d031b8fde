# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own `spf`: off unless wanted; then `fail` is refused, and nothing else."""

import pytest

from gatekeeper.checks.spf import Spf
from gatekeeper.verdict import PASS, Mode, Outcome
from tests.checking import World, rcpt

ZONE = """
fail.example TXT "v=spf1 -all exp=why.example"
why.example TXT "go away %{i}"
soft.example TXT "v=spf1 ~all"
pass.example TXT "v=spf1 ip4:192.0.2.1 -all"
broken.example TXT "v=spf1 bogus:x -all"
trouble.example TXT !SERVFAIL
"""


def world(**options: object) -> World:
    return World("spf", ZONE, {"spf": Spf.model_validate({"mode": Mode.ENFORCE} | options)})


async def test_it_is_off_unless_wanted() -> None:
    assert () == (await World("spf", ZONE).decide(rcpt(sender="u@fail.example"))).steps


async def test_fail_is_refused_with_the_domain_s_own_words() -> None:
    verdict = await world().verdict(rcpt(sender="u@fail.example"))
    expected = "550 5.7.23 SPF of fail.example does not allow 192.0.2.1 to send its mail: go away 192.0.2.1"
    assert expected == verdict.reply


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
    assert (Outcome.DEFER_IF_PERMIT, "451", "4.4.3") == (verdict.outcome, verdict.code, verdict.enhanced)


async def test_the_null_sender_is_judged_by_its_helo_name() -> None:
    assert "550" == (await world().verdict(rcpt(sender="", helo="fail.example"))).code


async def test_users_and_internal_hosts_are_not_judged() -> None:
    assert PASS == await world().verdict(rcpt(sender="u@fail.example", sasl_user="alice"))
    assert PASS == await world().verdict(rcpt(sender="u@fail.example", address="10.0.0.1"))
