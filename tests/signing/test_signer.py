# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures: each is verified by dkimpy and by a verifier of our own that shares no code with the signer.

dkimpy verifies Ed25519 only with PyNaCl, which the project does not need; those are verified by the second alone,
and by opendkim in tests/opendkim/test_opendkim_reads_ours.py.
"""

import re

import dkim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.core.message import Header
from gatekeeper.signing.keys import BadKey, PrivateKey
from gatekeeper.signing.signer import OPENDKIM_HEADERS, SignOptions
from tests.support.signed_messages import FORMS, HEADER, MESSAGES, NOW, identity, sign, signed
from tests.support.signing_world import ed25519, rsa, sent, verifies


def tag(field: Header, name: str) -> str:
    found = re.search(rb"[;\s]" + name.encode() + rb"=([^;]*)", field.value)
    return re.sub(r"\s", "", found[1].decode()) if found else ""


def dkimpy_verifies(message: bytes, key: PrivateKey) -> bool:
    return bool(dkim.verify(message, dnsfunc=lambda name, timeout=5: key.record().encode()))


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("options", FORMS, ids=lambda options: options.canonicalization)
def test_what_is_signed_verifies(name: str, options: SignOptions) -> None:
    message = signed(MESSAGES[name], options)
    assert dkimpy_verifies(message, rsa())
    assert verifies(message, rsa().record())


@pytest.mark.parametrize("options", FORMS, ids=lambda options: options.canonicalization)
def test_an_ed25519_signature_verifies(options: SignOptions) -> None:
    message = signed(MESSAGES["white space"], options, [identity(ed25519())])
    assert verifies(message, ed25519().record())


def test_both_algorithms_may_sign_at_once() -> None:
    fields = sign(MESSAGES["plain"], identities=[identity(rsa()), identity(ed25519())])
    assert ["rsa-sha256", "ed25519-sha256"] == [tag(field, "a") for field in fields]
    for field, key in zip(fields, (rsa(), ed25519()), strict=True):
        assert verifies(field.line + b"\r\n" + MESSAGES["plain"], key.record())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Hello\r\n", b"Hallo\r\n"),
        (b"Subject: Hello", b"Subject: Hallo"),
        (b"From: Joe", b"From: Eve"),
        (b"From: Joe", b"From: eve@example.org\r\nFrom: Joe"),
        (b"\r\n\r\n", b"\r\nFrom: eve@example.org\r\n\r\n"),
        (b"d=example.com", b"d=example.org"),
    ],
)
def test_what_was_changed_does_not_verify(old: bytes, new: bytes) -> None:
    message = signed(MESSAGES["plain"])
    assert old in message
    assert not verifies(message.replace(old, new, 1), rsa().record())
    assert not dkimpy_verifies(message.replace(old, new, 1), rsa())


def test_the_tags_say_who_signed_what_and_when() -> None:
    options = SignOptions(lifetime=3600)
    (field,) = sign(MESSAGES["plain"], options, [identity(signer="joe@a.example.com")])
    assert b"DKIM-Signature" == field.name
    assert ["1", "rsa-sha256", "relaxed/simple", "example.com", "mail", str(NOW), str(NOW + 3600)] == [
        tag(field, name) for name in ("v", "a", "c", "d", "s", "t", "x")
    ]
    assert ("joe@a.example.com", "From:To:Subject:Date:From") == (tag(field, "i"), tag(field, "h"))


def test_there_is_no_expiry_and_no_length_unless_asked_for() -> None:
    (field,) = sign(MESSAGES["plain"])
    assert ["", "", ""] == [tag(field, name) for name in ("x", "l", "i")]


@pytest.mark.parametrize(
    ("signer", "shown"),
    [
        ("joe@example.com", "joe@example.com"),
        ("@LISTS.Example.com", "@LISTS.Example.com"),
        ("joe@example.org", ""),
        ("joe@notexample.com", ""),
        ("joe", ""),
        ("a;b=c d@example.com", "a=3Bb=3Dc=20d@example.com"),
    ],
)
def test_a_signer_outside_the_domain_is_left_out_and_any_other_is_quoted(signer: str, shown: str) -> None:
    (field,) = sign(MESSAGES["plain"], identities=[identity(signer=signer)])
    assert shown == tag(field, "i")
    assert verifies(field.line + b"\r\n" + MESSAGES["plain"], rsa().record())


def test_all_fields_that_opendkim_signs_are_signed_in_their_order_and_no_other() -> None:
    names = [*OPENDKIM_HEADERS[::-1], "Message-ID", "MIME-Version", "Sender", "X-Other", "Received"]
    message = b"".join(f"{name}: x@example.com\r\n".encode() for name in names) + b"\r\n"
    (field,) = sign(message, SignOptions(sign_headers=OPENDKIM_HEADERS, oversign_present=()))
    assert ":".join([*OPENDKIM_HEADERS[::-1], "From"]) == tag(field, "h")
    assert verifies(field.line + b"\r\n" + message, rsa().record())


def test_one_click_unsubscription_is_oversigned_where_it_is_and_only_there() -> None:
    both = b"List-Unsubscribe: <https://example.com/u>\r\nlist-unsubscribe-post: List-Unsubscribe=One-Click\r\n"
    (field,) = sign(both + MESSAGES["plain"])
    assert tag(field, "h").endswith(":From:List-Unsubscribe:List-Unsubscribe-Post")
    assert 2 == tag(field, "h").lower().count("list-unsubscribe-post")
    assert dkimpy_verifies(field.line + b"\r\n" + both + MESSAGES["plain"], rsa())
    assert "List" not in tag(sign(MESSAGES["plain"])[0], "h")


def test_a_field_that_is_oversigned_is_signed_even_if_it_is_not_in_the_list() -> None:
    (field,) = sign(MESSAGES["plain"], SignOptions(sign_headers=("To",), oversign_headers=("Subject", "Foo")))
    assert "From:To:Subject:Subject:Foo" == tag(field, "h")
    assert dkimpy_verifies(field.line + b"\r\n" + MESSAGES["plain"], rsa())


def test_no_line_of_a_signature_is_longer_than_78_characters() -> None:
    many = b"".join(f"{name}: x@example.com\r\n".encode() for name in OPENDKIM_HEADERS * 3)
    (field,) = sign(many + b"\r\n", identities=[identity(signer=f"{'j' * 60}@example.com")])
    lines = field.line.split(b"\r\n")
    assert 78 >= max(map(len, lines))
    assert all(line[:1] == b"\t" for line in lines[1:])
    assert field.value.startswith(b" v=1; ")
    assert verifies(field.line + b"\r\n" + many + b"\r\n", rsa().record())


def test_the_names_of_the_fields_stand_on_a_line_of_their_own_and_are_broken_only_where_one_is_too_short() -> None:
    (field,) = sign(MESSAGES["plain"])
    names = tag(field, "h")
    assert f"\th={names};" in field.value.decode().split("\r\n")
    for length, more in ((64, ":From:From;"), (65, ":From:\r\n\tFrom;")):
        name = "X" * length  # with a tab and "h=" before it
        raw = f"{name}: x\r\nFrom: a@example.com\r\n\r\n".encode()
        (field,) = sign(raw, SignOptions(sign_headers=(name,)))
        assert f"\r\n\th={name}{more}\r\n" in field.value.decode()
        assert verifies(field.line + b"\r\n" + raw, rsa().record())


@pytest.mark.parametrize("options", FORMS, ids=lambda options: options.canonicalization)
def test_a_signature_holds_when_postfix_has_handed_it_on(options: SignOptions) -> None:
    # libmilter takes line ends as LF, Postfix keeps the header so in its queue and sends CRLF
    (field,) = sign(MESSAGES["plain"], options)
    queued = field.line.replace(b"\r\n", b"\n")
    assert b"\r" not in queued
    assert verifies(queued.replace(b"\n", b"\r\n") + b"\r\n" + MESSAGES["plain"], rsa().record())


@given(st.lists(st.sampled_from([b"a", b" ", b"\t", b"\r\n", b"\r", b"\n", b"bc"]), max_size=20), st.integers(1, 5))
def test_any_chunking_of_the_body_gives_the_same_signature(parts: list[bytes], size: int) -> None:
    message = HEADER + b"\r\n" + b"".join(parts)
    for options in FORMS:
        assert sign(message, options) == sign(message, options, chunk=size)


@given(st.lists(st.tuples(st.sampled_from(["To", "Subject", "X-a", "From"]), st.binary(max_size=30)), max_size=8))
def test_whatever_the_header_holds_the_signature_is_one_and_verifies(fields: list[tuple[str, bytes]]) -> None:
    clean = [(name.encode(), re.sub(rb"[\r\n\0]", b"", value)) for name, value in fields]
    message = b"".join(name + b": " + value + b"\r\n" for name, value in clean) + HEADER + b"\r\nHello\r\n"
    for options in FORMS[::3]:
        assert verifies(signed(message, options), rsa().record())


def test_a_broken_key_raises_bad_key() -> None:
    with pytest.raises(BadKey):
        sign(MESSAGES["plain"], identities=[identity(PrivateKey(b"broken", "broken.private"))])


LINES = st.lists(st.sampled_from([b"a", b" ", b"\t", b"\r\n", b".", b"bc=", b"\xff", b"\0", b"x" * 997]), max_size=25)


@settings(max_examples=60, deadline=None)
@given(LINES, st.lists(st.sampled_from([b"a", b"\r\n\t", b"\r\n  b", b" ", b"\xe2\x82\xac", b"y" * 998]), max_size=9))
def test_whatever_is_sent_dkimpy_verifies_it_fed_byte_by_byte(body: list[bytes], subject: list[bytes]) -> None:
    message = HEADER + b"Cc: c@example.com" + b"".join(subject) + b"\r\n\r\n" + b"".join([*body, b"\r\n"])
    for options in FORMS[::3]:
        fields = sign(message, options, chunk=1)
        arrived = b"".join(field.line + b"\r\n" for field in fields) + sent(message)
        assert dkimpy_verifies(arrived, rsa())
        assert verifies(arrived, rsa().record())


def test_the_set_of_signed_fields_can_be_changed_and_from_is_always_in_it() -> None:
    message = b"X-Mine: 1\r\nX-Other: 2\r\nReceived: x\r\n" + HEADER + b"Bcc: b@example.com\r\n\r\nHello\r\n"
    for changes, names in (
        ({"sign_headers": ("*", "+X-Mine", "-to")}, "X-Mine:From:Subject:Date:From"),
        ({"sign_headers": ("X-*", "Received")}, "X-Mine:X-Other:From:From"),
        ({"sign_headers": ("Subject",), "omit_headers": ("From", "Date")}, "From:Subject:From"),
        ({"sign_headers": ("*", "+Bcc"), "omit_headers": ("*", "-Bcc", "+Date")}, "From:To:Subject:Bcc:From"),
    ):
        options = SignOptions(**changes)
        (field,) = sign(message, options)
        assert names == tag(field, "h")
        assert verifies(field.line + b"\r\n" + message, rsa().record())


def test_what_is_asked_for_stands_in_the_signature() -> None:
    options = SignOptions(body_length=3, request_reports=True, lifetime=10**9)
    (field,) = sign(MESSAGES["plain"], options)
    assert ("3", "y", str(NOW + 10**9)) == tuple(tag(field, name) for name in ("l", "r", "x"))
    arrived = field.line + b"\r\n" + MESSAGES["plain"] + b"anything\r\n"
    assert dkimpy_verifies(arrived, rsa())
    (field,) = sign(MESSAGES["plain"], SignOptions(body_length=1000))
    assert "7" == tag(field, "l")


def test_a_field_name_that_would_break_the_signature_is_not_signed() -> None:
    message = b"X-a;b: 1\r\nX-c: 2\r\n" + HEADER + b"\r\nHello\r\n"
    (field,) = sign(message, SignOptions(sign_headers=("X-*",)))
    assert "X-c:From:From" == tag(field, "h")
