# SPDX-License-Identifier: GPL-3.0-or-later
"""iprev by Postfix's rules."""

import asyncio
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.auth.iprev import IprevFinding, IprevResult, check_iprev, is_hostname
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone

V4 = "1.2.0.192.in-addr.arpa"
V6 = ip_address("2001:db8::1").reverse_pointer


async def iprev(zone: str, client: str = "192.0.2.1") -> IprevFinding:
    return await check_iprev(TableResolver(Zone.parse(zone)), ip_address(client))


async def test_a_name_that_leads_back_is_confirmed() -> None:
    found = await iprev(f"{V4} PTR mail.example.com\nmail.example.com A 198.51.100.1\nmail.example.com A 192.0.2.1")
    assert (IprevResult.PASS, "mail.example.com", "mail.example.com") == (found.result, found.name, found.reverse)


async def test_an_ipv6_client_needs_an_aaaa_record() -> None:
    zone = f"{V6} PTR mail.example.com\nmail.example.com AAAA 2001:db8:0::1"
    assert IprevResult.PASS == (await iprev(zone, "2001:db8::1")).result


async def test_an_ipv4_client_whose_name_has_only_aaaa_fails() -> None:
    found = await iprev(f"{V4} PTR mail.example.com\nmail.example.com AAAA ::ffff:192.0.2.1")
    assert (IprevResult.FAIL, "", "mail.example.com") == (found.result, found.name, found.reverse)


async def test_an_ipv4_mapped_client_is_the_ipv4_client() -> None:
    zone = f"{V4} PTR mail.example.com\nmail.example.com A 192.0.2.1"
    assert IprevResult.PASS == (await iprev(zone, "::ffff:192.0.2.1")).result


async def test_of_two_names_only_the_first_counts() -> None:
    found = await iprev(f"{V4} PTR a.example.com\n{V4} PTR b.example.com\nb.example.com A 192.0.2.1")
    assert (IprevResult.FAIL, "a.example.com") == (found.result, found.reverse)


@pytest.mark.parametrize("name", ["1.2.3.4", "12", "a..b", "-a.example", "a-.example", "a\\032b.example", "."])
async def test_a_numeric_or_malformed_name_counts_as_none(name: str) -> None:
    zone = f"{V4} PTR {name}\n" if ".." not in name else ""
    found = await iprev(zone)
    assert (IprevResult.PERMERROR, "") == (found.result, found.reverse)


@pytest.mark.parametrize(
    "zone", [f"{V4} PTR !SERVFAIL", f"{V4} PTR a.example.com\na.example.com A !TIMEOUT"], ids=["there", "back"]
)
async def test_dns_trouble_is_a_temporary_error(zone: str) -> None:
    assert IprevResult.TEMPERROR == (await iprev(zone)).result


@pytest.mark.parametrize("zone", ["", f"{V4} PTR !NODATA"])
async def test_no_ptr_record_is_a_permanent_error(zone: str) -> None:
    found = await iprev(zone)
    assert (IprevResult.PERMERROR, "192.0.2.1 has no name: it has no PTR record") == (found.result, found.reason)


async def test_an_unknown_client_is_a_permanent_error() -> None:
    assert IprevResult.PERMERROR == (await check_iprev(TableResolver(Zone.parse("")), None)).result


@settings(max_examples=200, deadline=None)
@given(name=st.binary(min_size=1, max_size=20))
def test_whatever_a_ptr_record_says_is_safe_to_print(name: bytes) -> None:
    escaped = "".join(f"\\{byte:03d}" for byte in name)
    found = asyncio.run(iprev(f"{V4} PTR {escaped}.example.com"))
    assert found.reason.isascii()
    assert found.reason.isprintable()
    assert "" == found.reverse or is_hostname(found.reverse)
