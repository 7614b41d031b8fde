# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM verification: messages signed by dkimpy and by the RFCs pass, anything changed fails, nothing raises."""

import asyncio
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.auth import dkim
from gatekeeper.auth.dkim import DkimFinding, DkimResult, DkimVerifier
from gatekeeper.auth.dkim_key import parse_key
from gatekeeper.auth.dkim_signature import Signature, empty_b, parse_signature
from gatekeeper.auth.tags import parse_tags
from gatekeeper.core.message import Header, parse
from gatekeeper.dnsclient.resolver import Answer, DNSTimeout, TableResolver
from gatekeeper.dnsclient.zone import Zone
from tests.support.dkim_messages import (
    ED_KEY,
    KEY,
    MESSAGE,
    NAME,
    NOW,
    RECORD,
    SHORT_KEY,
    by_dkimpy,
    public,
    relaxed,
    signed,
)
from tests.support.needs import ROOT
from tests.support.zones import Asked, txt


def zone(*records: str) -> TableResolver:
    """The DNS with these key records at NAME."""
    return TableResolver(Zone.parse("\n".join(f"{NAME} TXT {txt(record)}" for record in records)))


async def verify(
    message: bytes, resolver: TableResolver | None = None, cuts: Sequence[int] = (), now: float = NOW
) -> tuple[DkimFinding, ...]:
    headers, body = parse(message)
    verifier = DkimVerifier(headers, now=now)
    for start, end in pairwise([0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]):
        verifier.update(body[start:end])
    return await verifier.results(resolver or zone(RECORD))


async def only(message: bytes, resolver: TableResolver | None = None) -> tuple[DkimResult, str]:
    [found] = await verify(message, resolver)
    return found.result, found.reason


FORMS = [(head, body) for head in (b"simple", b"relaxed") for body in (b"simple", b"relaxed")]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("length", [True, False])
async def test_a_signature_of_dkimpys_verifies(form: tuple[bytes, bytes], length: bool) -> None:
    assert (DkimResult.PASS, "2048-bit rsa key") == await only(by_dkimpy(MESSAGE, form, length=length))


async def test_a_finding_tells_who_signed_with_what() -> None:
    [found] = await verify(signed(i="joe@example.com"))
    assert ("example.com", "sel", "joe@example.com", "rsa-sha256", 2048, False) == (
        found.domain, found.selector, found.identity, found.algorithm, found.key_bits, found.testing
    )  # fmt: skip
    assert re.fullmatch(r"[A-Za-z0-9+/]{8}", found.b)


async def test_the_example_of_rfc_8463_verifies_with_both_its_signatures() -> None:
    example = (
        "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
        " d=football.example.com; i=@football.example.com;\r\n"
        " q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
        " subject : date : message-id : from : subject : date;\r\n"
        " bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
        " b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n"
        " Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\n"
        "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n"
        " d=football.example.com; i=@football.example.com;\r\n"
        " q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r\n"
        " date : message-id : from : subject : date;\r\n"
        " bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
        " b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3\r\n"
        " DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz\r\n"
        " dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=\r\n"
        "From: Joe SixPack <joe@football.example.com>\r\n"
        "To: Suzie Q <suzie@shopping.example.net>\r\n"
        "Subject: Is dinner ready?\r\n"
        "Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
        "Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
        "\r\nHi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
    )
    world = (
        "brisbane._domainkey.football.example.com TXT "
        '"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="\n'
        "test._domainkey.football.example.com TXT "
        '"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/"'
        '"J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+"'
        '"l/K4w3QIDAQAB"'
    )
    found = await verify(example.encode(), TableResolver(Zone.parse(world)))
    assert [(DkimResult.PASS, 256), (DkimResult.PASS, 1024)] == [(one.result, one.key_bits) for one in found]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"From: Joe", b"From: Eve"),
        (b"Is  dinner", b"No dinner"),
        (b"\r\nTo: Sue <sue@example.net>", b""),
        # each with a character that base64 has not: a signature differs each time, and may hold any letters
        (b"We lost", b"We won"),
        (b"Hi.", b"Hi\r\n."),
        (b"c=relaxed/relaxed", b"c=relaxed/simple"),
        (b" i=@example.com", b" i=a@example.com"),
    ],
)
async def test_a_changed_message_fails(old: bytes, new: bytes) -> None:
    message = by_dkimpy(MESSAGE)
    assert old in message
    assert DkimResult.FAIL == (await only(message.replace(old, new)))[0]


async def test_what_relaxed_form_allows_to_change_may_change() -> None:
    message = by_dkimpy(MESSAGE).replace(b"From: Joe", b"FROM:   Joe").replace(b"We lost  the", b"We lost the")
    assert DkimResult.PASS == (await only(b"X-New: field\r\n" + message + b"\r\n\r\n"))[0]


async def test_fields_of_one_name_are_taken_from_the_bottom() -> None:
    message = b"To: first@example.net\r\n" + MESSAGE
    once = signed(message, names="from:to")
    assert DkimResult.PASS == (await only(once.replace(b"first@", b"other@")))[0]
    assert DkimResult.FAIL == (await only(once.replace(b"<sue@", b"<other@")))[0]
    assert DkimResult.FAIL == (await only(signed(message, names="from:to:to").replace(b"first@", b"other@")))[0]


async def test_an_oversigned_field_may_not_be_added() -> None:
    message = signed(names="from:from:to:subject:reply-to")
    assert DkimResult.PASS == (await only(message))[0]
    assert DkimResult.FAIL == (await only(b"From: eve@example.com\r\n" + message))[0]
    assert DkimResult.FAIL == (await only(message.replace(b"To:", b"Reply-To: eve@example.com\r\nTo:")))[0]


@pytest.mark.parametrize(
    ("added", "names", "said"),
    [
        (b"Subject: other\r\n", "from:to:subject", ", not signed: another Subject"),
        (b"From: a@b.example\r\nsubject: x\r\n", "from:to:subject", ", not signed: another From and Subject"),
        (b"Date: today\r\n", "from:to:subject", ", not signed: another Date"),
        (b"Subject: other\r\n", "from:to:subject:subject", ""),
        (b"Content-Type: text/html\r\n", "from:to:subject", ""),
        (b"Content-Type: text/html\r\nContent-Type: text/plain\r\n", "from", ", not signed: another Content-Type"),
        (b"Received: from x by y\r\n", "from:received", ""),
    ],
)
async def test_a_field_that_somebody_may_have_added_to_what_is_signed_is_told(
    added: bytes, names: str, said: str
) -> None:
    raw = signed(added + MESSAGE, names=names) if said == "" else added + signed(names=names)
    assert (DkimResult.PASS, "2048-bit rsa key" + said) == await only(raw)


@pytest.mark.parametrize(
    ("raw", "record", "expected"),
    [
        (signed(), RECORD, True),
        (signed(l="3"), RECORD, False),
        (signed(MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\nWhole.\r\n", l="8"), RECORD, True),
        (signed(), f"{RECORD}; t=y", False),
        (b"From: a@b.example\r\n" + signed(), RECORD, False),
        (signed(b"From: a@b.example\r\n" + MESSAGE, names="from:from:to:subject"), RECORD, True),
    ],
)
async def test_a_signature_authenticates_if_it_is_no_test_and_nothing_can_be_added(
    raw: bytes, record: str, expected: bool
) -> None:
    [found] = await verify(raw, zone(record))
    assert (DkimResult.PASS, expected) == (found.result, found.authenticates)


async def test_a_signature_never_covers_itself_but_may_cover_others() -> None:
    twice = signed(signed(), names="from:dkim-signature:dkim-signature")
    assert [DkimResult.PASS, DkimResult.PASS] == [found.result for found in await verify(twice)]


@pytest.mark.parametrize("key", [KEY, ED_KEY], ids=["rsa", "ed25519"])
@given(cuts=st.lists(st.integers(0, 80), max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_chunking_of_the_body_gives_the_same_result(
    key: RSAPrivateKey | Ed25519PrivateKey, cuts: list[int]
) -> None:
    kind = "ed25519" if isinstance(key, Ed25519PrivateKey) else "rsa"
    [found] = asyncio.run(verify(signed(key=key), zone(f"k={kind}; p={public(key)}"), cuts))
    assert DkimResult.PASS == found.result


@pytest.mark.parametrize(
    ("tags", "result", "reason"),
    [
        ({"v": "2"}, "permerror", "the version (v=) is not 1"),
        ({"v": "-"}, "permerror", "the tag v= is missing or empty"),
        ({"a": "rsa-sha1"}, "permerror", "rsa-sha1 is no longer valid (RFC 8301)"),
        ({"a": "dsa-sha256"}, "permerror", "the algorithm (a=) is not supported here"),
        ({"a": "ed25519-sha256"}, "permerror", "the key is rsa, the signature is not"),
        ({"c": "loose"}, "permerror", "the canonicalization (c=) is not known"),
        ({"d": "com"}, "permerror", "the domain (d=) is malformed"),
        ({"d": "exa mple.com"}, "permerror", "the domain (d=) is malformed"),
        ({"s": "a..b"}, "permerror", "the selector (s=) is malformed"),
        ({"names": "to:subject"}, "permerror", "From is not signed (h=)"),
        ({"names": "from::to"}, "permerror", "the list of signed fields (h=) is malformed"),
        ({"names": "From : To"}, "pass", "2048-bit rsa key"),
        ({"i": "joe@example.net"}, "permerror", "the identity (i=) does not lie within the domain (d=)"),
        ({"i": "joe@notexample.com"}, "permerror", "the identity (i=) does not lie within the domain (d=)"),
        ({"i": "example.com"}, "permerror", "the identity (i=) does not lie within the domain (d=)"),
        ({"i": "joe=3D@mail.example.com"}, "pass", "2048-bit rsa key"),
        ({"l": "10"}, "pass", "2048-bit rsa key, the last 16 bytes of the body are not signed (l=)"),
        ({"l": "0"}, "policy", "nothing of the body is signed (l=0)"),
        ({"l": "26"}, "pass", "2048-bit rsa key"),
        ({"l": "27"}, "fail", "the body is shorter than was signed (l=)"),
        ({"l": "9" * 76}, "fail", "the body is shorter than was signed (l=)"),
        ({"q": "dns/txt:foo"}, "pass", "2048-bit rsa key"),
        ({"q": "foo"}, "permerror", "the key is not in the DNS (q=)"),
        ({"t": f"{NOW:.0f}"}, "pass", "2048-bit rsa key"),
        ({"t": f"{NOW + 3600:.0f}"}, "fail", "the signature is from the future (t=)"),
        ({"t": "yesterday"}, "permerror", "the tag t= is not a number"),
        ({"x": f"{NOW + 1:.0f}"}, "pass", "2048-bit rsa key"),
        ({"x": f"{NOW - 300:.0f}"}, "pass", "2048-bit rsa key"),
        ({"x": f"{NOW - 301:.0f}"}, "fail", "the signature has expired (x=)"),
        ({"t": "20", "x": "20"}, "permerror", "it expires (x=) before it was made (t=)"),
        ({"bh": "AAAA"}, "fail", "the body was changed after signing"),
        ({"bh": "A"}, "permerror", "the tag bh= is not base64"),
        ({"z": "From:joe=40example.com"}, "pass", "2048-bit rsa key"),
        ({"unknown": "tag"}, "pass", "2048-bit rsa key"),
        ({"un-known": "tag"}, "permerror", "a tag name is malformed"),
    ],
    ids=str,
)
async def test_every_tag_of_a_signature_is_obeyed(tags: dict[str, str], result: str, reason: str) -> None:
    assert (result, reason) == await only(signed(**tags))  # type: ignore[arg-type]  # `names` is a tag here


async def test_a_tag_that_stands_twice_is_an_error() -> None:
    message = signed().replace(b"; d=example.com", b"; d=example.com; d=example.com")
    assert (DkimResult.PERMERROR, "a tag appears twice") == await only(message)


P = public()


@pytest.mark.parametrize(
    ("record", "result", "reason"),
    [
        (f"p={P}", "pass", "2048-bit rsa key"),
        (f"v=DKIM1;p={P};", "pass", "2048-bit rsa key"),
        (f"v=DKIM1; p={P[:60]} {P[60:]}", "pass", "2048-bit rsa key"),
        (f"v=DKIM1; k=rsa; p={public(form=PublicFormat.PKCS1)}", "pass", "2048-bit rsa key"),
        (f"v=DKIM2; p={P}", "permerror", "the record is not a DKIM key"),
        ("v=spf1 -all", "permerror", "the record is not a DKIM key"),
        ("hello", "permerror", "the key record is malformed: the tag list is malformed"),
        ("", "permerror", "the key record has no key in it"),
        ("v=DKIM1; k=rsa", "permerror", "the key record has no key in it"),
        ("v=DKIM1; p=", "permerror", "the key has been revoked"),
        ("v=DKIM1; p=AAAA", "permerror", "the key is malformed"),
        ("v=DKIM1; p=%%%", "permerror", "the key is malformed"),
        (f"v=DKIM1; k=dsa; p={P}", "permerror", "the key type (k=) is not supported here"),
        (f"v=DKIM1; k=ed25519; p={P}", "permerror", "the key is malformed"),
        (f"k=ed25519; p={public(ED_KEY)}", "permerror", "the key is ed25519, the signature is not"),
        (f"v=DKIM1; h=sha1; p={P}", "permerror", "the key is not for SHA-256 (h=)"),
        (f"v=DKIM1; h=sha1 : sha256; p={P}", "pass", "2048-bit rsa key"),
        (f"v=DKIM1; s=tlsrpt; p={P}", "permerror", "the key is not for mail (s=)"),
        (f"v=DKIM1; s=email:foo; p={P}", "pass", "2048-bit rsa key"),
        (f"v=DKIM1; g=nobody; x=y; p={P}", "pass", "2048-bit rsa key"),
        (f"v=DKIM1; t=s; p={P}", "permerror", "the key does not allow subdomains in the identity (t=s)"),
        (f"v=DKIM1; t=y; p={P}", "pass", "2048-bit rsa key"),
    ],
    ids=lambda value: re.sub(r"p=.{9,}", "p=…", str(value))[:30],  # without the key, which is another in each process
)
async def test_every_tag_of_a_key_record_is_obeyed(record: str, result: str, reason: str) -> None:
    assert (result, reason) == await only(signed(i="joe@mail.example.com"), zone(record))


async def test_a_strict_key_verifies_where_i_equals_d() -> None:
    assert DkimResult.PASS == (await only(signed(i="joe@EXAMPLE.com"), zone(f"t=y:s; p={P}")))[0]


async def test_a_key_in_testing_says_so() -> None:
    [found] = await verify(signed(), zone(f"t=y; p={P}"))
    assert found.testing


async def test_a_key_below_1024_bits_never_counts() -> None:
    assert isinstance(SHORT_KEY, RSAPrivateKey)
    resolver = zone(f"p={public(SHORT_KEY)}")
    assert (DkimResult.POLICY, "a 768-bit rsa key is too short to count (RFC 8301)") == await only(
        signed(key=SHORT_KEY), resolver
    )
    assert DkimResult.FAIL == (await only(signed(key=SHORT_KEY).replace(b"Joe", b"Eve"), resolver))[0]


@pytest.mark.parametrize(
    "others",
    [
        [f"v=spf1 ip4:192.0.2.{n} -all" for n in range(5)],
        [f"google-site-verification={n}" for n in range(9)],
        [
            "v=DMARC1; p=reject",
            "v=BIMI1; l=",
            "v=STSv1; id=1",
            "v=TLSRPTv1; rua=mailto:a@example.com",
            "MS=ms1",
            "x; y",
        ],
        [f"{'x' * n} p=1" for n in range(5)],
    ],
    ids=["spf", "verification", "versions", "words"],
)
async def test_a_key_behind_the_texts_of_other_services_is_found(others: list[str]) -> None:
    assert (DkimResult.PASS, "2048-bit rsa key") == await only(signed(), zone(*others, RECORD))


async def test_at_most_four_records_are_tried_as_keys() -> None:
    found = await only(signed(), zone(*(f"v=DKIM1; n={n}; p=" for n in range(4)), RECORD))
    assert (DkimResult.PERMERROR, "the key has been revoked") == found


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (RECORD.removeprefix("v=DKIM1; ") + "; v=DKIM1", "the record is not a DKIM key: v=DKIM1 must come first"),
        ("n=1; " + RECORD, "the record is not a DKIM key: v=DKIM1 must come first"),
        ("t=y;" + RECORD, "the record is not a DKIM key: v=DKIM1 must come first"),
        (RECORD.replace("p=", 'p="') + '"', "the key is malformed: there are quote marks or backslashes in it (p=)"),
        (RECORD[:60] + '" "' + RECORD[60:], "the key is malformed: there are quote marks or backslashes in it (p=)"),
        (RECORD.replace("p=", "p=\\"), "the key is malformed: there are quote marks or backslashes in it (p=)"),
    ],
)
async def test_a_record_that_is_no_key_says_why(record: str, reason: str) -> None:
    assert (DkimResult.PERMERROR, reason) == await only(signed(), zone(record))


async def test_of_several_records_at_one_name_any_may_verify() -> None:
    other = public(generate_private_key(65537, 1024))
    assert DkimResult.PASS == (await only(signed(), zone("v=spf1 -all", f"p={other}", RECORD)))[0]
    assert DkimResult.FAIL == (await only(signed(), zone("v=spf1 -all", f"p={other}")))[0]


@pytest.mark.parametrize(
    ("fault", "result", "reason"),
    [
        ("SERVFAIL", "temperror", f"the key {NAME} could not be looked up"),
        ("TIMEOUT", "temperror", f"the key {NAME} could not be looked up"),
        ("NXDOMAIN", "permerror", f"there is no key {NAME}"),
        ("NODATA", "permerror", f"there is no key {NAME}"),
    ],
)
async def test_trouble_with_the_dns_is_told_from_a_missing_key(fault: str, result: str, reason: str) -> None:
    assert (result, reason) == await only(signed(), TableResolver(Zone.parse(f"{NAME} TXT !{fault}")))


async def test_of_an_empty_body_nothing_need_be_signed() -> None:
    assert DkimResult.PASS == (await only(signed(MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", l="0")))[0]


async def test_a_message_without_signatures_gives_none() -> None:
    assert (DkimResult.NONE, "the message is not signed") == await only(MESSAGE)


async def test_u_labels_are_looked_up_as_a_labels() -> None:
    world = TableResolver(Zone.parse(f"sel._domainkey.xn--bcher-kva.example TXT {txt(RECORD)}"))
    [found] = await verify(signed(d="bücher.example"), world)
    assert (DkimResult.PASS, "xn--bcher-kva.example") == (found.result, found.domain)


async def test_signatures_beyond_the_cap_are_not_looked_at_and_their_number_is_told() -> None:
    message = b"".join(b"DKIM-Signature: v=%d\r\n" % number for number in range(30)) + MESSAGE
    found = await verify(message)
    assert 9 == len(found)
    assert (DkimResult.NEUTRAL, "22 more signatures were not looked at") == (found[-1].result, found[-1].reason)


async def test_a_key_is_asked_for_once_and_not_for_signatures_that_cannot_be_valid() -> None:
    asked = Asked(f"{NAME} TXT {txt(RECORD)}")
    headers, body = parse(signed(signed(signed(signed(), s="old", x="5"), s="bad", v="7")))
    verifier = DkimVerifier(headers, now=NOW)
    await verifier.fetch(asked)
    verifier.update(body)
    found = await verifier.results(asked)
    assert [DkimResult.PASS, DkimResult.PERMERROR, DkimResult.FAIL, DkimResult.PASS] == [one.result for one in found]
    assert found == await verifier.results(asked)
    assert [(NAME, "TXT")] == asked.questions


async def test_the_body_is_hashed_once_for_each_canonicalization_however_many_signatures_want_it() -> None:
    headers, _ = parse(signed(signed(signed(by_dkimpy(MESSAGE, (b"simple", b"simple"))), l="3")))
    assert 2 == len(DkimVerifier(headers, now=NOW).digests._bodies)


SIGNED = signed(i="joe@example.com", t="5", q="dns/txt")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_change_of_a_byte_goes_unnoticed_or_raises(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, SIGNED.index(b"Date:") - 1))
    byte = data.draw(st.integers(0, 255))
    changed = SIGNED[:at] + bytes([byte]) + SIGNED[at + 1 :]
    found = asyncio.run(verify(changed))
    assert all(one.reason.isascii() and one.reason.isprintable() for one in found)
    if DkimResult.PASS in [one.result for one in found]:
        assert same(changed) == same(SIGNED)


def same(message: bytes) -> list[tuple[bytes, bytes]]:
    """The signed fields in the form that may not change; names and the letters of base64's padding aside."""
    headers, _ = parse(message)
    wanted = {b"from", b"to", b"subject", b"dkim-signature"}
    found = [relaxed(field) for field in headers if field.name.lower() in wanted]
    return [(line.partition(b":")[0], re.sub(rb"(?<=; b=).*", b"", line.partition(b":")[2])) for line in found]


WORDS = st.sampled_from(
    [b"v=1", b"a=rsa-sha256", b"d=example.com", b"d=\xff.com", b"s=sel", b"b=AAAA", b"bh=AAAA", b"h=from", b"h=\x00"]
)
NOISE = st.binary(max_size=6) | st.sampled_from([b";", b"=", b"\r\n ", b"i=", b"l=", b"t=", b"x=", b"c=/", b"9" * 400])


@given(pieces=st.lists(WORDS | NOISE, max_size=16))
def test_no_signature_field_raises(pieces: list[bytes]) -> None:
    found = parse_signature(Header(b"DKIM-Signature", b";".join(pieces)))
    assert isinstance(found, Signature)
    assert found.problem.isascii()


@given(record=st.binary(max_size=60) | st.lists(WORDS | NOISE, max_size=6).map(b";".join))
def test_no_key_record_raises(record: bytes) -> None:
    key = parse_key(record)
    assert isinstance(key, str)
    assert key.isascii()


@given(names=st.lists(st.from_regex(rb"[A-Za-z][A-Za-z0-9_]{0,4}", fullmatch=True), unique=True, max_size=6))
def test_a_tag_list_is_read_as_it_was_written(names: list[bytes]) -> None:
    tags = {name: b"value of " + name for name in names}
    text = b" ;\r\n\t".join(name + b" = " + value for name, value in tags.items())
    if tags:
        assert tags == parse_tags(text)
        assert tags == parse_tags(text + b";")


@pytest.mark.parametrize(
    ("value", "emptied"),
    [
        (b" v=1; b=abc; d=e", b" v=1; b=; d=e"),
        (b" b = a\r\n b\r\n", b" b ="),
        (b" bh=b=; b=x", b" bh=b=; b="),
        (b" v=1; bb=x;\r\n\tb=a=\r\n =; t=1", b" v=1; bb=x;\r\n\tb=; t=1"),
    ],
)
def test_only_the_value_of_b_is_emptied(value: bytes, emptied: bytes) -> None:
    assert emptied == empty_b(value)


async def test_a_message_of_many_fields_and_a_long_list_of_names_takes_no_long_time() -> None:
    headers = b"".join(b"X-%d: a\r\n" % number for number in range(5000))
    names = ":".join(["from", *["x-1"] * 3000])
    assert DkimResult.PASS == (await only(signed(headers + MESSAGE, names=names)))[0]


async def test_an_answer_of_another_type_is_no_key() -> None:
    class Odd(TableResolver):
        async def query(self, name: str, type: str) -> Answer:
            return Answer(name, type, ("text",))

    assert DkimResult.PERMERROR == (await only(signed(), Odd(Zone.parse(""))))[0]


async def test_the_keys_of_all_signatures_are_asked_for_at_once_and_one_that_fails_harms_no_other() -> None:
    world = Zone.parse("\n".join(f"{n}._domainkey.example.com TXT {txt(RECORD)}" for n in "abc"))

    class Together(TableResolver):
        """Answers when three have asked."""

        asked = 0
        all_asked = asyncio.Event()

        async def query(self, name: str, type: str) -> Answer:
            self.asked += 1
            if self.asked == 3:
                self.all_asked.set()
            await self.all_asked.wait()
            if name.startswith("b."):
                raise DNSTimeout("too late")
            return await super().query(name, type)

    async with asyncio.timeout(20):
        found = await verify(signed(signed(signed(s="a"), s="b"), s="c"), Together(world))
    assert [DkimResult.PASS, DkimResult.TEMPERROR, DkimResult.PASS] == [one.result for one in found]


async def test_a_signature_that_breaks_us_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    record = RECORD + "; n=broken"
    monkeypatch.setattr(dkim, "parse_key", lambda text: 1 / 0 if b"broken" in text else parse_key(text))
    broken = Zone.parse(f"{NAME} TXT {txt(RECORD)}\nbad._domainkey.example.com TXT {txt(record)}")
    found = await verify(signed(signed(), s="bad"), TableResolver(broken))
    assert [DkimResult.NEUTRAL, DkimResult.PASS] == [one.result for one in found]
    assert "it could not be processed" == found[0].reason


def test_of_dkimpy_nothing_is_used_but_its_tag_parser() -> None:
    """Its RSA is Python and holds the lock, its results have no classes, it reads one TXT record."""
    used = {
        (path.name, line.strip())
        for path in (ROOT / "gatekeeper").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) dkim\b", line)
    }
    assert {("tags.py", "from dkim.util import DuplicateTag, InvalidTagValueList, parse_tag_value")} == used
