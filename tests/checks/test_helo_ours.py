# SPDX-License-Identifier: GPL-3.0-or-later
"""reject_helo_ours: a stranger who claims to be us, and all those who say our name with good reason."""

from dataclasses import replace
from typing import Any

import pytest

from gatekeeper.core.request import parse_address
from gatekeeper.pipeline.site import Site
from tests.support.checking import SITE, World, rcpt

OURS = replace(SITE, local_domains=("example.com", "shop.example", "customer.example", ".below.example", "localhost"))
ZONE = """
mx.example.com   A    198.51.100.25
mx.example.com   A    198.51.100.26
mx.example.com   AAAA 2001:db8::25
customer.example A    192.0.2.80
customer.example TXT  "v=spf1 ip4:192.0.2.90 -all"
shop.example     A    !SERVFAIL
example.com      TXT  "v=spf1 +all"
"""


async def judged(helo: str, site: Site = OURS, server: str = "10.9.9.9", **changes: Any) -> str:
    request = rcpt(helo=helo, **changes)._replace(server_address=parse_address(server))
    verdict = await World("reject_helo_ours", ZONE, site=site).verdict(request)
    return f"{verdict.code} {verdict.enhanced}".strip()


@pytest.mark.parametrize(
    "helo",
    [
        *("mx.example.com", "MX.Example.COM", "mx.example.com.", "example.com", "customer.example"),
        *("[198.51.100.25]", "198.51.100.26", "[IPv6:2001:db8::25]", "2001:db8:0::25"),
        *("[10.9.9.9]", "10.9.9.9"),
    ],
)
async def test_a_stranger_who_claims_to_be_us_is_refused(helo: str) -> None:
    assert "554 5.7.1" == await judged(helo)


@pytest.mark.parametrize(
    "helo",
    ["mail.example.net", "www.example.com", "host.below.example", "localhost", "localhost.localdomain", "[192.0.2.1]"],
)
async def test_what_is_not_ours_alone_passes(helo: str) -> None:
    assert "" == await judged(helo)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("mynetworks", {"address": "10.1.2.3"}),
        ("logged in", {"sasl_user": "alice"}),
        ("another relay of the same name", {"address": "198.51.100.26"}),
        ("this machine itself", {"address": "10.9.9.9"}),
    ],
)
async def test_who_is_us_may_say_so(why: str, changes: dict[str, Any]) -> None:
    assert "" == await judged("mx.example.com", **changes), why


async def test_a_customer_s_server_may_be_called_like_his_domain() -> None:
    assert "" == await judged("customer.example", address="192.0.2.80")
    assert "" == await judged("customer.example", address="192.0.2.90"), "SPF allows it"


async def test_an_address_literal_that_tells_the_truth_passes() -> None:
    assert "" == await judged("[198.51.100.25]", address="198.51.100.25")


async def test_dns_trouble_defers() -> None:
    assert "450 4.7.1" == await judged("shop.example")


async def test_nothing_is_ours_where_we_have_no_name() -> None:
    nameless = replace(OURS, hostname="localhost", local_domains=())
    assert "" == await judged("localhost", nameless)
    assert "" == await judged("[198.51.100.25]", nameless)
