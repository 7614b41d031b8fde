# SPDX-License-Identifier: GPL-3.0-or-later
"""check_*_{a,mx,ns}_access: whose servers are looked up, in which order, and what DNS trouble does."""

from pathlib import Path

import pytest

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.tables.server_access import MAX_ADDRESSES
from tests.support.checking import World, rcpt, reply

ZONE = """
good.example  MX 10 mx.host.example
good.example  NS ns.host.example
mx.host.example A 192.0.2.7
mx.host.example AAAA 2001:db8::7
ns.host.example A 192.0.2.8
plain.example A 192.0.2.9
null.example MX 0 .
null.example A 192.0.2.9
down.example ANY !SERVFAIL
"""
SENDER = "check_sender_{}_access inline:{{ {} }}"


@pytest.mark.parametrize(
    ("type", "entry", "sender", "expected"),
    [
        ("mx", "host.example=REJECT", "good.example", "554 5.7.1"),
        ("mx", "192.0.2=REJECT", "good.example", "554 5.7.1"),
        ("mx", "2001:db8::7=REJECT", "good.example", "554 5.7.1"),
        ("mx", "192.0.2.9=REJECT", "plain.example", "554 5.7.1"),
        ("mx", "plain.example=REJECT", "plain.example", "554 5.7.1"),
        ("mx", "192.0.2.9=REJECT", "null.example", ""),
        ("mx", "192.0.2.9=REJECT", "[192.0.2.9]", "554 5.7.1"),
        ("mx", "example=REJECT", "down.example", ""),
        ("a", "192.0.2.9=REJECT", "plain.example", "554 5.7.1"),
        ("a", "plain.example=REJECT", "plain.example", ""),
        ("ns", "ns.host.example=REJECT", "good.example", "554 5.7.1"),
        ("ns", "192.0.2.8=REJECT", "deep.below.good.example", "554 5.7.1"),
        ("ns", "192.0.2.9=REJECT", "[192.0.2.9]", ""),
        ("ns", "example=REJECT", "down.example", ""),
    ],
)
async def test_the_servers_of_a_sender_are_looked_up(type: str, entry: str, sender: str, expected: str) -> None:
    assert expected == await reply(SENDER.format(type, entry), rcpt(sender=f"u@{sender}"), ZONE)


async def test_an_ok_for_a_server_permits_nothing() -> None:
    assert "451 4.3.5" == await reply(SENDER.format("mx", "host.example=OK"), rcpt(sender="u@good.example"), ZONE)


def test_an_ok_for_a_server_is_warned_of() -> None:
    reader = CheckBuilder({}, Path("/nonexistent"))
    reader.check(["check_helo_ns_access", "inline:{ a.example=OK }"], SourceLine("g.toml", 3))
    what = "an OK for what a stranger chooses (PTR, servers) is answered 451 4.3.5; write DUNNO"
    assert [f"g.toml:3: warning: {what}"] == [str(problem) for problem in reader.problems]


async def test_a_name_with_endless_servers_is_not_looked_up_without_end() -> None:
    zone = "".join(f"many.example A 10.0.{n // 256}.{n % 256}\n" for n in range(MAX_ADDRESSES + 5))
    world = World(SENDER.format("a", "10.0.0.3=REJECT, 10.0.0.104=REJECT"), zone)
    assert "access.reject" == (await world.verdict(rcpt(sender="u@many.example"))).reason
    world = World(SENDER.format("a", "10.0.0.104=REJECT"), zone)
    assert "" == (await world.verdict(rcpt(sender="u@many.example"))).reason
