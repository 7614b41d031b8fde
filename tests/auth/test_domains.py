# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains as they are compared: whatever a stranger writes becomes a normal form or nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.auth.domains import configured_domain, configured_mailbox, is_within, normal_domain

ODD = st.text() | st.text("aB0-_.。é\u00ad\ud800 \r\n@\\", max_size=20)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.COM", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("example.com.", ""),
        ("a..b", ""),
        ("a b.example", ""),
        ("a\r\nb.example", ""),
        ("[192.0.2.1]", ""),
        ("a" * 64 + ".example", ""),
        ("a." * 127 + "example", ""),
        ("", ""),
    ],
)
def test_a_domain_is_lower_case_a_labels_or_nothing(text: str, name: str) -> None:
    assert name == normal_domain(text)


@given(ODD)
def test_no_text_raises_and_the_normal_form_is_safe_and_final(text: str) -> None:
    name = normal_domain(text)
    assert re.fullmatch(r"[a-z0-9_.-]*", name)
    assert name == normal_domain(name)
    if text.isascii():
        assert name == normal_domain(text.upper())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" Example.COM. ", "example.com"),
        (".BÜCHER.example", ".xn--bcher-kva.example"),
        ("bücher。example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
        (".", ""),
        ("..example.com", ""),
        ("example.com..", ""),
        ("*.example.com", ""),
        ("a b.example", ""),
        ("!example.com", ""),
        ("", ""),
    ],
)
def test_a_domain_in_a_configuration_may_have_blanks_around_it_and_a_final_dot(text: str, name: str) -> None:
    assert name == configured_domain(text)


@pytest.mark.parametrize(
    ("text", "mailbox"),
    [
        ("Joe@Bücher.example.", "Joe@xn--bcher-kva.example"),
        ("@Example.com", "@example.com"),
        ("Example.com", "example.com"),
        ('"a@b"@Example.com', '"a@b"@example.com'),
        ("joe@*", "joe@*"),
        ("joe@lists.%", "joe@lists.%"),
        ("<>", "<>"),
    ],
)
def test_a_mailbox_in_a_configuration_has_its_domain_in_the_same_form(text: str, mailbox: str) -> None:
    assert mailbox == configured_mailbox(text)


@given(ODD)
def test_the_form_of_a_configuration_is_the_one_of_mail(text: str) -> None:
    name = configured_domain(text)
    assert name == configured_domain(name) == configured_domain(f" {name}. " if name else "")
    assert name.removeprefix(".") == normal_domain(name.removeprefix("."))
    if found := normal_domain(text):
        assert found == configured_domain(text)
    assert configured_mailbox(text) == configured_mailbox(configured_mailbox(text))


@given(ODD.map(normal_domain), ODD.map(normal_domain))
def test_what_lies_within_ends_with_it_at_a_dot(name: str, domain: str) -> None:
    assert is_within(name, domain) == (name == domain or name.endswith(f".{domain}"))
    if name and domain:
        assert is_within(f"{name}.{domain}", domain)
        assert not is_within(f"x{domain}", domain)
