# SPDX-License-Identifier: GPL-3.0-or-later
"""Host names and addresses as Postfix sees them; where Postfix is installed, its own library is the judge."""

import ctypes
from ctypes.util import find_library
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.postfix.hostname_syntax import is_address, is_hostname, is_literal, without_final_dot
from tests.support.needs import missing

LIBRARIES = Path("/usr/lib/postfix")


@pytest.mark.parametrize("name", ["a", "a-b.example", "_dmarc", "1-2", "1.2.3.4x", "0x7f.1", "a." + "b" * 63])
def test_a_hostname(name: str) -> None:
    assert is_hostname(name)


@pytest.mark.parametrize(
    "name", ["", "a.", ".a", "a..b", "-a", "a-", "a.-b", "1.2.3", "123", "b" * 64, "é.de", "*.a", "a b"]
)
def test_no_hostname(name: str) -> None:
    assert not is_hostname(name)


@pytest.mark.parametrize("text", ["192.0.2.1", "01.2.3.4", "0.0.0.0", "::1", "2001:db8::1", "::ffff:1.2.3.4"])
def test_an_address(text: str) -> None:
    assert is_address(text)


@pytest.mark.parametrize("text", ["", "1.2.3", "256.1.1.1", "0.1.2.3", "1::2::3", ":1", "fe80::1%eth0", "IPv6:::1"])
def test_no_address(text: str) -> None:
    assert not is_address(text)


def test_a_literal_needs_the_tag_for_ipv6_in_any_case() -> None:
    assert [True, True, False, False] == [is_literal(t) for t in ("192.0.2.1", "ipv6:2001:db8::1", "2001:db8::1", "x")]


def test_one_final_dot_is_dropped_and_two_are_kept() -> None:
    assert ["a", "a..", ".", ""] == [without_final_dot(name) for name in ("a.", "a..", ".", "")]


@pytest.fixture(scope="module")
def postfix() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """libpostfix-util and libpostfix-global."""
    if not (LIBRARIES / "libpostfix-global.so").exists() or find_library("c") is None:
        missing("Postfix's libraries are not installed: apt-get install postfix")
    util = ctypes.CDLL(str(LIBRARIES / "libpostfix-util.so"), mode=ctypes.RTLD_GLOBAL)
    other = ctypes.CDLL(str(LIBRARIES / "libpostfix-global.so"))
    other.valid_mailhost_addr.restype = ctypes.c_char_p
    return util, other


@given(text=st.text("a19fF.:-_[%", max_size=24) | st.from_regex(r"(IPv6:)?[0-9a-f:.]{2,20}", fullmatch=True))
def test_postfix_agrees(postfix: tuple[ctypes.CDLL, ctypes.CDLL], text: str) -> None:
    util, other = postfix
    raw = text.encode()
    assert bool(util.valid_hostname(raw, 0)) == is_hostname(text)
    assert bool(util.valid_hostaddr(raw, 0)) == is_address(text)
    assert (other.valid_mailhost_addr(raw, 0) is not None) == is_literal(text)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert {is_hostname(text), is_address(text), is_literal(text)} <= {True, False}
