# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names look like a dial-in client's, and which of correct senders' do not."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.greylisting.dynamic_hostname import looks_dynamic


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("p5dc4ea01.dip0.t-ipconnect.de", "93.196.234.1"),
        ("192-0-2-1.example.net", "192.0.2.1"),
        ("1.2.0.192.example.net", "192.0.2.1"),
        ("host-192-000-002-001.example.net", "192.0.2.1"),
        ("c0000201.example.net", "192.0.2.1"),
        ("adsl-77.example.net", "192.0.2.1"),
        ("x.dyn.example.net", "192.0.2.1"),
        ("pool-7.example.net", "192.0.2.1"),
        ("ip192000002001.example.net", "192.0.2.1"),
    ],
)
def test_dial_in_names(name: str, address: str) -> None:
    assert looks_dynamic(name, ip_address(address))


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("mail-wm1-f41.google.com", "209.85.128.41"),
        ("mail-am6eur05on2061.outbound.protection.outlook.com", "40.107.22.61"),
        ("a8-54.smtp-out.amazonses.com", "54.240.8.54"),
        ("mta-69-56.sparkpostmail.com", "147.253.69.56"),
        ("mo529.mail-out.ovh.net", "178.32.228.29"),
        ("mail.example.net", "192.0.2.1"),
        ("mail.dyn.com", "192.0.2.1"),
        ("mail.residentialhomes.example.net", "192.0.2.1"),
        ("mail.example.net", "2001:db8::1"),
    ],
)
def test_names_of_correct_senders(name: str, address: str) -> None:
    assert not looks_dynamic(name, ip_address(address))


@given(st.text(), st.ip_addresses())
def test_any_name_is_judged(name: str, address: object) -> None:
    assert looks_dynamic(name, address) in (True, False)  # type: ignore[arg-type]  # IPv4Address or IPv6Address
