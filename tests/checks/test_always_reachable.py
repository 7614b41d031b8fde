# SPDX-License-Identifier: GPL-3.0-or-later
"""As shipped, nothing that a client does keeps its mail from our postmaster and abuse mailboxes."""

from typing import Any

import pytest

from gatekeeper.checks.authentication.spf import SpfCheck
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.checks.limits.ratelimit import RateLimit
from gatekeeper.config.schema import DEFAULT_RESTRICTIONS
from gatekeeper.core.verdict import PASS
from tests.support.checking import SITE, World, rcpt

ZONE = """
example.com                 MX   10 mx.example.com
example.net                 MX   10 mx.example.net
3.2.0.192.zen.spamhaus.org  A    127.0.0.2
forged.example              MX   10 mx.example.net
forged.example              TXT  "v=spf1 -all"
broken.example              MX   !SERVFAIL
broken.example              A    !SERVFAIL
broken.example              AAAA !SERVFAIL
"""
GUILTY: dict[str, dict[str, Any]] = {
    "an invalid HELO": {"helo": "a..b"},
    "a HELO without a dot": {"helo": "localhost"},
    "our own name as HELO": {"helo": SITE.hostname},
    "a sender without a domain": {"sender": "someone"},
    "a sender of no domain that there is": {"sender": "a@nowhere.example"},
    "a sender whose DNS is broken": {"sender": "a@broken.example"},
    "a forged sender": {"sender": "a@forged.example"},
    "a client on a DNS list": {"address": "192.0.2.3"},
    "a client that nobody knows": {},
}


def shipped(*, limit: str = "100/1h") -> World:
    """The default list, with all of it switched on."""
    sections = {
        "spf": SpfCheck.model_validate({"mode": "enforce"}),
        "greylist": Greylist.model_validate({"clients": "all", "learning": 0}),
        "ratelimit": RateLimit.model_validate({"client_messages": limit}),
    }
    return World(DEFAULT_RESTRICTIONS, ZONE, sections)


@pytest.mark.parametrize("changes", GUILTY.values(), ids=GUILTY)
async def test_who_is_refused_can_write_to_postmaster_and_abuse(changes: dict[str, Any]) -> None:
    assert (await shipped().verdict(rcpt(**changes))).refuses
    for recipient in ("postmaster@example.com", "Abuse@relay.example"):
        assert not (await shipped().verdict(rcpt(recipient=recipient, **changes))).refuses


async def test_a_client_over_its_limits_can_write_to_postmaster() -> None:
    world = shipped(limit="0/1h")
    assert "ratelimit.messages" == (await world.verdict(rcpt())).reason
    assert not (await world.verdict(rcpt(recipient="postmaster@example.com"))).refuses


async def test_others_postmasters_are_not_ours() -> None:
    assert PASS == await World("permit_always_reachable").verdict(rcpt(recipient="postmaster@elsewhere.example"))
    assert (await shipped().verdict(rcpt(recipient="abuse@elsewhere.example", helo="localhost"))).refuses


async def test_a_permit_is_no_more_than_dunno() -> None:
    decision = await World("permit_always_reachable, reject").decide(rcpt(recipient="postmaster@example.com"))
    assert (("always_reachable",), "") == (decision.reasons, decision.verdict.reply)
