# SPDX-License-Identifier: GPL-3.0-or-later
"""ARC: the whole public suite, and what it does not ask: hostile chains, DNS trouble, what handlers said."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.auth.arc import ArcFinding, ArcResult, ArcVerifier
from gatekeeper.auth.digests import Digests
from gatekeeper.auth.received_results import parse_received_results
from gatekeeper.core.message import crlf, parse
from gatekeeper.dnsclient.resolver import Answer, TableResolver
from gatekeeper.dnsclient.zone import Zone
from tests.support.arc_messages import MESSAGE, NOW, RECORD, expected, sealed, suite
from tests.support.zones import txt

ZONE = Zone.parse(f"s._domainkey.list.example. TXT {txt(RECORD)}\ns._domainkey.slow.example. TXT !SERVFAIL")


class Counting(TableResolver):
    """A table that counts the questions."""

    count = 0

    async def query(self, name: str, type: str) -> Answer:
        self.count += 1
        return await super().query(name, type)


async def validate(
    raw: bytes, zone: Zone = ZONE, *, chunk: int = 0, resolver: TableResolver | None = None
) -> ArcFinding:
    headers, body = parse(crlf(raw))
    digests = Digests(headers)
    verifier = ArcVerifier(headers, digests, now=NOW)
    for start in range(0, len(body), chunk or len(body) or 1):
        digests.update(body[start : start + (chunk or len(body))])
    return await verifier.result(resolver or TableResolver(zone))


async def test_every_case_of_the_public_suite_comes_out_as_it_should() -> None:
    cases = list(suite())
    found = [
        (name, str((await validate(case["message"].encode(), Zone.parse(zone))).result)) for name, case, zone in cases
    ]
    assert [(name, expected(case)) for name, case, _ in cases] == found
    assert 171 == len(found)


@pytest.mark.parametrize("hops", [1, 2, 5])
async def test_a_chain_tells_who_sealed_it_and_what_they_said(hops: int) -> None:
    raw = MESSAGE
    for _ in range(hops):
        raw = sealed(raw)
    arc = await validate(raw)
    assert (ArcResult.PASS, ["list.example"] * hops, 0, True) == (
        arc.result,
        [hop.domain for hop in arc.hops],
        arc.oldest_pass,
        arc.signs_from,
    )
    assert arc.hops[0].stated.passed("dmarc")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"from"], ArcResult.PASS),
        ([b"to", b"from", b"subject"], ArcResult.PASS),
        ([b"to", b"subject"], ArcResult.FAIL),
        ([b"x-from", b"from-x"], ArcResult.FAIL),
    ],
)
async def test_a_signature_that_does_not_sign_from_is_none(fields: list[bytes], expected: ArcResult) -> None:
    arc = await validate(sealed(MESSAGE, fields=fields))
    assert expected == arc.result
    assert (expected is ArcResult.FAIL) == ("does not sign From" in arc.reason)


async def test_an_older_signature_that_does_not_sign_from_only_ends_what_still_verifies() -> None:
    arc = await validate(sealed(sealed(MESSAGE, fields=[b"to"])))
    assert (ArcResult.PASS, 2) == (arc.result, arc.oldest_pass)


async def test_a_key_behind_the_texts_of_other_services_is_found() -> None:
    others = "".join(f's._domainkey.list.example. TXT "v=spf{n} -all"\n' for n in range(5))
    zone = Zone.parse(f"{others}s._domainkey.list.example. TXT {txt(RECORD)}\n")
    assert ArcResult.PASS == (await validate(sealed(MESSAGE), zone)).result


async def test_what_was_changed_between_two_handlers_is_told_by_the_oldest_pass() -> None:
    raw = sealed(sealed(MESSAGE).replace(b"Subject: hello", b"Subject: [list] hello"))
    arc = await validate(raw)
    assert (ArcResult.PASS, 2) == (arc.result, arc.oldest_pass)


async def test_a_byte_at_a_time_gives_the_same() -> None:
    assert await validate(sealed(MESSAGE)) == await validate(sealed(MESSAGE), chunk=1)


async def test_a_key_that_cannot_be_looked_up_decides_nothing() -> None:
    arc = await validate(sealed(MESSAGE, "slow.example"))
    assert ArcResult.TEMPERROR == arc.result


async def test_a_long_chain_that_is_no_good_costs_few_questions() -> None:
    raw = MESSAGE
    for instance in range(1, 51):
        fields = f"ARC-Authentication-Results: i={instance}; x\r\n"
        for kind in (
            f"ARC-Message-Signature: bh=YQ==; h=from; i={instance}",
            f"ARC-Seal: i={instance}; cv={'pass' if instance > 1 else 'none'}",
        ):
            fields += f"{kind}; a=rsa-sha256; b=YQ==; d=d{instance}.example; s=s\r\n"
        raw = fields.encode() + raw
    resolver = Counting(ZONE)
    arc = await validate(raw, resolver=resolver)
    assert (ArcResult.FAIL, True) == (arc.result, resolver.count <= 6)


async def test_fifty_one_sets_are_too_many() -> None:
    raw = b"".join(b"ARC-Seal: i=1\r\n" for _ in range(151)) + MESSAGE
    assert ArcFinding(ArcResult.FAIL, "there are more than 50 ARC sets") == await validate(raw)


async def test_a_message_without_sets_asks_nothing() -> None:
    resolver = Counting(ZONE)
    assert (ArcResult.NONE, 0) == ((await validate(MESSAGE, resolver=resolver)).result, resolver.count)


SEALED = sealed(sealed(MESSAGE))


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, SEALED.index(b"From: ") - 1), byte=st.integers(0, 255))
def test_no_change_of_a_byte_raises_or_adds_a_handler(at: int, byte: int) -> None:
    changed = SEALED[:at] + bytes([byte]) + SEALED[at + 1 :]
    arc = asyncio.run(validate(changed))
    assert arc.result is not ArcResult.PASS or ["list.example"] * 2 == [hop.domain for hop in arc.hops]


@settings(max_examples=200, deadline=None)
@given(
    fields=st.lists(
        st.tuples(
            st.sampled_from([b"ARC-Seal", b"ARC-Message-Signature", b"arc-authentication-results"]),
            st.binary(max_size=80),
        ),
        max_size=6,
    )
)
def test_no_field_raises(fields: list[tuple[bytes, bytes]]) -> None:
    raw = b"".join(
        name + b": i=1; " + value.replace(b"\n", b"").replace(b"\r", b"") + b"\r\n" for name, value in fields
    )
    assert asyncio.run(validate(raw + MESSAGE)).result in (ArcResult.NONE, ArcResult.FAIL)


@pytest.mark.parametrize(
    ("value", "passed"),
    [
        (b" i=1; mx.example; dmarc=pass header.from=x.example", True),
        (b" i = 1 ; mx.example 1; spf=fail; dmarc = pass", True),
        (b" i=1; mx.example; dmarc/1=pass", True),
        (b" i=1; mx.example; dmarc=pass; dmarc=fail", False),
        (b" i=1; mx.example; (dmarc=pass;) dmarc=fail", False),
        (b' i=1; mx.example; x="; dmarc=pass"', False),
        (b" i=1; mx.example; dkim=fail (; dmarc=pass)", False),
        (b" i=1; mx.example; dkim=fail (unfinished; dmarc=pass", False),
        (b" i=1; dmarc=pass", False),
        (b" i=1; mx.example; dmarc=passport", False),
        (b"(" * 50000 + b"; dmarc=pass", False),
    ],
)
def test_what_a_handler_said_is_read_with_care(value: bytes, passed: bool) -> None:
    assert passed == parse_received_results(value).passed("dmarc")


@given(value=st.binary(max_size=200))
def test_reading_what_was_said_never_raises(value: bytes) -> None:
    assert parse_received_results(value).authserv_id.isprintable()
