# SPDX-License-Identifier: GPL-3.0-or-later
"""reject_unknown_client_hostname and its sister: who has no name, and who only has none just now."""

from dataclasses import replace

import pytest

from tests.support.checking import SITE, World, rcpt, reply

ZONE = """
1.2.0.192.in-addr.arpa PTR mail.example.net.
mail.example.net A 192.0.2.1
2.2.0.192.in-addr.arpa PTR elsewhere.example.net.
elsewhere.example.net A 192.0.2.99
3.2.0.192.in-addr.arpa PTR !SERVFAIL
4.2.0.192.in-addr.arpa PTR fails.example.net.
fails.example.net A !TIMEOUT
5.2.0.192.in-addr.arpa PTR v6.example.net.
v6.example.net AAAA 2001:db8::1
6.2.0.192.in-addr.arpa PTR 192.0.2.6.
"""


@pytest.mark.parametrize(
    ("address", "client", "reverse"),
    [
        ("192.0.2.1", "", ""),  # Postfix had trouble, we have none
        ("192.0.2.2", "450 4.7.25", ""),
        ("192.0.2.3", "450 4.7.25", "450 4.7.1"),
        ("192.0.2.4", "450 4.7.25", ""),
        ("192.0.2.5", "450 4.7.25", ""),  # an IPv4 client whose name has only AAAA
        ("192.0.2.6", "450 4.7.25", "450 4.7.1"),  # a numeric PTR counts as none
        ("192.0.2.7", "450 4.7.25", "450 4.7.1"),
    ],
)
async def test_unknown_is_looked_up_again(address: str, client: str, reverse: str) -> None:
    request = rcpt(address=address, name="unknown")
    assert client == await reply("reject_unknown_client_hostname", request, ZONE)
    assert reverse == await reply("reject_unknown_reverse_client_hostname", request, ZONE)


async def test_a_name_that_postfix_knows_is_not_looked_up() -> None:
    words = "reject_unknown_client_hostname, reject_unknown_reverse_client_hostname"
    decision = await World(words, "1.2.0.192.in-addr.arpa PTR !SERVFAIL").decide(rcpt())
    assert () == decision.reasons


@pytest.mark.parametrize(("address", "code"), [("192.0.2.3", "450 4.7.25"), ("192.0.2.7", "550 5.7.25")])
async def test_the_parameter_never_makes_dns_trouble_permanent(address: str, code: str) -> None:
    site = replace(SITE, unknown_client_reject_code="550")
    request = rcpt(address=address, name="unknown")
    assert code == await reply("reject_unknown_client_hostname", request, ZONE, site)


async def test_a_client_without_an_address_is_let_pass() -> None:
    assert "" == await reply("reject_unknown_client_hostname", rcpt(address="unknown", name="unknown"))
