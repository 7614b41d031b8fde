# SPDX-License-Identifier: GPL-3.0-or-later
"""Our Authentication-Results field holds nothing that a stranger wrote, and no forged one stays."""

import re
from base64 import b64encode

import authres
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatekeeper.auth.arc import ArcFinding, ArcResult
from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc import DmarcFinding, DmarcResult
from gatekeeper.auth.dmarc_record import DmarcPolicy
from gatekeeper.auth.forged_results import claims_to_be_ours, mentions_method
from gatekeeper.auth.iprev import IprevFinding, IprevResult
from gatekeeper.auth.results import results_field
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.core.message import Header

OURS = "mx.example.org"


def unfolded(field: Header) -> str:
    return field.line.decode("ascii").replace("\r\n", "")


def test_all_methods_stand_in_one_folded_field() -> None:
    field = results_field(
        OURS,
        iprev=IprevFinding(IprevResult.PASS, "a.example", "a.example", "192.0.2.1 is a.example", "192.0.2.1"),
        spf=[
            SpfFinding(SpfResult.PASS, "mailfrom", "example.com", "", "example.com lets 192.0.2.1 send: mx"),
            SpfFinding(SpfResult.NONE, "helo", "a.example", "", "a.example publishes no SPF record"),
        ],
        dkim=[
            DkimFinding(
                DkimResult.PASS, "example.com", "sel", "@example.com", "rsa-sha256", 2048, "Ab+/cd==", "2048-bit key"
            )
        ],
        dmarc=DmarcFinding(
            DmarcResult.FAIL,
            "sub.example.com",
            record_domain="example.com",
            record_policy="quarantine",
            policy=DmarcPolicy.REJECT,
            reason="neither passed",
        ),
    )
    assert b"Authentication-Results" == field.name
    assert (
        b" mx.example.org;\r\n"
        b"\tiprev=pass (192.0.2.1 is a.example) policy.iprev=192.0.2.1;\r\n"
        b"\tspf=pass (example.com lets 192.0.2.1 send: mx)\r\n"
        b"\tsmtp.mailfrom=example.com;\r\n"
        b"\tspf=none (a.example publishes no SPF record) smtp.helo=a.example;\r\n"
        b"\tdkim=pass (2048-bit key) header.d=example.com header.i=@example.com\r\n"
        b'\theader.s=sel header.a=rsa-sha256 header.b="Ab+/cd==";\r\n'
        b"\tdmarc=fail (neither passed) header.from=sub.example.com\r\n"
        b"\tpolrec.p=quarantine polrec.domain=example.com policy.dmarc=reject"
    ) == field.value


def test_without_any_result_the_field_says_none() -> None:
    assert "Authentication-Results: mx.example.org;\tnone" == unfolded(results_field(OURS))


def test_an_odd_authserv_id_is_quoted() -> None:
    assert b' "Our \\"Mail\\" (one)";\r\n\tnone' == results_field('Our "Mail" (one)').value


@pytest.mark.parametrize(
    ("identity", "shown"),
    [
        ("joe@example.com", "joe@example.com"),
        ("dkim=pass@example.com", "@example.com"),
        ('"x; spf=pass"@example.com', "@example.com"),
        ("joe@exam ple.com", ""),
    ],
)
def test_a_local_part_that_could_look_like_a_result_is_left_out(identity: str, shown: str) -> None:
    text = unfolded(results_field(OURS, dkim=[DkimFinding(DkimResult.FAIL, "example.com", identity=identity)]))
    assert shown == "".join(re.findall(r"header\.i=(\S+)", text))


EVIL = st.text(max_size=30) | st.lists(
    st.sampled_from(["\r\n", "\n", ")", "(", ";", " dkim=pass", '"', "\\", "X-A: b", "\x00", "é", "=", "a" * 300]),
    max_size=6,
).map("".join)


@settings(max_examples=300)
@given(words=st.lists(EVIL, min_size=12, max_size=12), result=st.sampled_from([DkimResult.FAIL, DkimResult.NONE]))
def test_no_word_of_a_stranger_adds_a_header_a_result_or_a_comment(words: list[str], result: DkimResult) -> None:
    a, b, c, d, e, f, g, h, i, j, k, m = words
    field = results_field(
        OURS,
        iprev=IprevFinding(IprevResult.FAIL, a, b, c, d),
        spf=[SpfFinding(SpfResult.FAIL, "mailfrom", e, f, g)],
        dkim=[DkimFinding(result, h, i, j, k, 0, m, a), DkimFinding(result, b, c, f"x@{d}", e, 0, f, g)] * 4,
        dmarc=DmarcFinding(DmarcResult.FAIL, h, i, j, DmarcPolicy.NONE, DmarcPolicy.NONE, k),
    )
    value = field.value.decode("ascii")
    assert re.fullmatch(r"(?:[ -~]|\r\n\t)+", value)
    assert len(value) < 16384
    assert all(len(line) < 998 for line in value.split("\r\n"))
    found = authres.AuthenticationResultsHeader.parse(unfolded(field))
    assert ["iprev", "spf", *["dkim"] * 8, "dmarc"] == [one.method for one in found.results]
    # A property such as `header.b=none` is no result, whatever a stranger's words make it look like.
    assert 11 == len(re.findall(r"(?<![\w.])\w+=(?:pass|fail|none)\b", value))


@pytest.mark.parametrize(
    ("remote_ip", "shown"), [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", '"2001:db8::1"'), ("", ""), ("1.2) ;", "")]
)
@pytest.mark.parametrize("result", ArcResult)
def test_arc_tells_from_whom_the_message_came(result: ArcResult, remote_ip: str, shown: str) -> None:
    text = unfolded(results_field(OURS, arc=ArcFinding(result, "words", remote_ip=remote_ip)))
    assert f"\tarc={result} (words)" in text
    assert ([shown] if shown else []) == re.findall(r"smtp\.remote-ip=(\S+)", text)


# --- forged fields


def claimed(value: str | bytes, ours: str = OURS, name: bytes = b"Authentication-Results") -> bool:
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return claims_to_be_ours(Header(name, raw), ours)


@pytest.mark.parametrize(
    "value",
    [
        " mx.example.org; spf=pass",
        "mx.example.org;spf=pass",
        " MX.Example.ORG; spf=pass",
        " mx.example.org",
        " mx.example.org.; spf=pass",
        " mx.example.org 1; spf=pass",
        " mx.example.org (ours) 1 (really); spf=pass",
        "\r\n\tmx.example.org\r\n ; spf=pass",
        ' "mx.example.org"; spf=pass',
        ' "mx.exa\\mple.org" ; spf=pass',
        ' " mx.example.org "; spf=pass',
        " (a comment) mx.example.org; spf=pass",
        " (a (nested) \\) comment;) mx.example.org; spf=pass",
        " (unfinished mx.example.org; spf=pass",
        " (unfinished; mx.example.org; spf=pass",
        ' "mx.example.org; spf=pass',
        " mx.example.org/1; spf=pass",
        " mx.example.org spf=pass",
        " mx.example.org, spf=pass",
        " mx.example.org: spf=pass",
        " mx.example.org () foo; spf=pass",
        " mx . example . org; spf=pass",
        " mx.(x)example.org; spf=pass",
        " ; mx.example.org; spf=pass",
        " =mx.example.org; spf=pass",
        " <mx.example.org>; spf=pass",
        " mx.other.net mx.example.org; spf=pass",
        " ((x) mx.example.org; spf=pass ) mx.other.net; spf=fail",
        " mx.other.net; spf=fail\nAuthentication-Results: mx.example.org; spf=pass",
        " mx.other.net\r; mx.example.org; spf=pass",
        " =?us-ascii?q?mx=2Eexample.org?=; spf=pass",
        f" =?utf-8?B?{b64encode(b'mx.example.org; spf=pass').decode()}?=",
        " =?us-ascii?q?mx.exam?= =?us-ascii?q?ple.org?=; spf=pass",
        " =?no-such-set?q?mx.example.org?=; spf=pass",
        " ｍｘ.example.org; spf=pass",
        " mx。example。org; spf=pass",
        " mx.exam\u200bple.org; spf=pass",
        " mx.example.org\x00; spf=pass",
        b" mx.example.org\xff; spf=pass".decode("utf-8", "surrogateescape"),
    ],
)
def test_whatever_a_reader_may_take_for_ours_is_claimed(value: str) -> None:
    assert claimed(value)


@pytest.mark.parametrize(
    "value",
    [
        " mx.other.net; spf=pass",
        " mx.other.net; spf=pass smtp.helo=mx.example.org",
        ' mx.other.net; spf=pass reason="mx.example.org; dkim=pass"',
        " mx.other.net (relay for mx.example.org) 1; spf=pass",
        " (mx.example.org) mx.other.net; spf=pass",
        " mx.example.org.evil.net; spf=pass",
        " xmx.example.org; spf=pass",
        " x-mx.example.org; spf=pass",
        " example.org; spf=pass",
        " mx.other.net x y; spf=pass smtp.helo=mx.example.org",
        " =?us-ascii?q?mx.other.net?=; spf=pass",
        " mx.bücher.example; spf=pass",
        "",
        " ;",
        " (",
    ],
)
def test_the_fields_of_others_are_kept(value: str) -> None:
    assert not claimed(value)


def test_a_u_label_claims_an_authserv_id_of_a_labels() -> None:
    assert claimed(" mx.bücher.example; spf=pass", "mx.xn--bcher-kva.example")
    assert claimed(" mx.xn--bcher-kva.example; spf=pass", "mx.bücher.example")


@pytest.mark.parametrize("name", [b"AUTHENTICATION-RESULTS", b"authentication-results "])
def test_the_name_of_the_field_is_read_without_case(name: bytes) -> None:
    assert claimed(" mx.example.org; spf=pass", name=name)


@pytest.mark.parametrize("name", [b"X-Authentication-Results", b"ARC-Authentication-Results", b"Received"])
def test_other_fields_claim_nothing(name: bytes) -> None:
    assert not claimed(" mx.example.org; spf=pass", name=name)


def test_five_thousand_nested_comments_hide_nothing() -> None:
    deep = "(" * 5000 + ")" * 5000
    assert claimed(f" {deep} mx.example.org; spf=pass")
    assert claimed(f" mx.example.org {deep}; spf=pass")
    assert claimed(f" {deep[1:]} mx.example.org; spf=pass")
    assert claimed(f" {deep[:-1]} mx.example.org; spf=pass")
    assert not claimed(f" {deep} mx.other.net; spf=pass")


def test_a_field_of_any_size_is_read_in_linear_time() -> None:
    for piece in ("(", '"', "\\", "=?a?q?", " ", "(mx.example.org", "=?a?b?AAAA?= ", "mx.example.", "((a)", ";"):
        claimed(piece * (200_000 // len(piece)))


BLANKS = st.lists(st.sampled_from([" ", "\t", "\r\n ", "(c)", "((a) \\) b)", "(mx.other.net; x)"]), max_size=4).map(
    "".join
)


@settings(max_examples=300)
@given(blanks=st.lists(BLANKS, min_size=4, max_size=4), upper=st.lists(st.booleans(), min_size=14, max_size=14),
       version=st.sampled_from(["", " 1", "(x)2"]), quoted=st.booleans())  # fmt: skip
def test_every_well_formed_spelling_of_our_name_is_claimed(
    blanks: list[str], upper: list[bool], version: str, quoted: bool
) -> None:
    a, b, c, d = blanks
    name = "".join(letter.upper() if up else letter for letter, up in zip(OURS, upper, strict=True))
    name = f'"{name}"' if quoted else name
    assert claimed(f"{a}{name}{b}{version}{c};{d}spf=pass")


SYNTAX = st.sampled_from(
    [*'();"\\=?<>@,. \t\r\n1', "mx.example.org", "mx.", "other.net", "=?utf-8?q?", "?=", "é", "\udcff"]
)


@settings(max_examples=500)
@given(text=st.lists(SYNTAX, max_size=16).map("".join))
@example(text="=?utf-8?b?A?=")
def test_nothing_raises_and_what_authres_reads_as_ours_is_claimed(text: str) -> None:
    found = claimed(text)
    try:
        read = authres.AuthenticationResultsHeader.parse_value(text.replace("\r\n", "") + "; none").authserv_id
    except Exception:  # noqa: BLE001 (authres raises much that it does not name)
        return
    if read == OURS:
        assert found


@settings(max_examples=500)
@given(text=st.lists(SYNTAX, max_size=16).map("".join))
def test_what_a_reader_finds_before_the_first_semicolon_when_it_drops_comments_is_claimed(text: str) -> None:
    plain = re.sub(r"\([^()]*\)", "", text.replace("\r\n", ""))
    if plain.partition(";")[0].strip() == OURS:
        assert claimed(text)


def test_our_own_field_claims_to_be_ours() -> None:
    for authserv_id in (OURS, 'Our "Mail" (one)', "MX.Example.org", "a b"):
        assert claims_to_be_ours(results_field(authserv_id), authserv_id)


@pytest.mark.parametrize(
    ("reason", "comment"),
    [
        ("the signature has expired (x=)", "the signature has expired tag x"),
        ("nothing of the body is signed (l=0)", "nothing of the body is signed tag l 0"),
        ("rsa-sha1 is no longer valid (RFC 8301)", "rsa-sha1 is no longer valid, RFC 8301"),
        ("the tag bh= is not base64", "the tag bh is not base64"),
        ("(spf=pass (x) dkim=pass", "?spf?pass, x dkim?pass"),
    ],
)
def test_our_reasons_stay_readable_in_a_comment_and_nothing_looks_like_a_result(reason: str, comment: str) -> None:
    field = results_field("mx.example.org", dkim=[DkimFinding(DkimResult.FAIL, reason=reason)])
    assert f"dkim=fail ({comment})" in " ".join(field.value.decode().split())


@given(text=st.lists(SYNTAX | st.sampled_from(["dkim", "=pass", "; dkim = pass"]), max_size=10).map("".join))
def test_no_result_of_a_method_is_overlooked(text: str) -> None:
    found = mentions_method(Header(b"Authentication-Results", text.encode("utf-8", "surrogateescape")), "dkim")
    assert found or "dkim" not in text
