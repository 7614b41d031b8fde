# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile mail through the real milter: a definite result each time, nothing in the log that broke.

The time limit is the client's: every answer comes within its 20 seconds, most within milliseconds.
"""

import base64
import secrets
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.milter_service import PUBLIC, serving
from tests.support.zones import txt

pytestmark = pytest.mark.integration("gatekeeper")

MODULUS = secrets.randbits(16384) | 1 << 16383 | 1
HUGE_KEY = RSAPublicNumbers(65537, MODULUS).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
ZONE = f"""
s._domainkey.x.example. TXT {txt("v=DKIM1; p=" + PUBLIC)}
huge._domainkey.x.example. TXT {txt("v=DKIM1; p=" + base64.b64encode(HUGE_KEY).decode())}
long._domainkey.x.example. TXT {txt("v=DKIM1; n=" + "x" * 60000)}
many._domainkey.x.example. {{many}}
loop._domainkey.x.example. CNAME pool._domainkey.x.example.
pool._domainkey.x.example. CNAME loop._domainkey.x.example.
lame._domainkey.x.example. TXT !SERVFAIL
_dmarc.x.example. TXT "v=DMARC1; p=reject"
x.example. TXT "v=spf1 include:x.example -all"
loop.example. TXT "v=spf1 include:loop.example include:pool.example a:cname.example -all"
pool.example. TXT "v=spf1 include:loop.example -all"
cname.example. CNAME eman.example.
eman.example. CNAME cname.example.
long.example. TXT {txt("v=spf1 " + "ip4:192.0.2.1 " * 4500)}
""".replace("{many}", "TXT " + txt("v=DKIM1"))
BODY = b"Hello\r\n"
FROM = b"From: a@x.example\r\n"


def signature(names: str = "from", selector: str = "s", **tags: str) -> bytes:
    more = "".join(f"; {name}={value}" for name, value in tags.items())
    return (
        f"DKIM-Signature: v=1; a=rsa-sha256; d=x.example; s={selector}; c=relaxed/relaxed; h={names}; "
        f"bh=YWFh; b=YWFh{more}\r\n"
    ).encode()


def field(name: str, value: str) -> bytes:
    return f"{name}: {value}\r\n".encode()


def chain(count: int) -> bytes:
    """ARC sets that are well-formed and sign nothing."""
    common = "a=rsa-sha256; d=x.example; s=s; b=YWFh"
    return b"".join(
        field("ARC-Seal", f"i={i}; {common}; cv={'pass' if i > 1 else 'none'}")
        + field("ARC-Message-Signature", f"i={i}; {common}; bh=YWFh; l={i}; h=from:" + ":".join(["x"] * 100))
        + field("ARC-Authentication-Results", f"i={i}; mx.example; dmarc=pass")
        for i in range(count, 0, -1)
    )


HEADERS = {
    "100 000 fields": b"".join(b"X-%d: v\r\n" % n for n in range(100_000)) + FROM,
    "100 000 fields of one name, signed": b"Received: v\r\n" * 100_000
    + signature(":".join(["received"] * 1700 + ["from"])) * 8
    + FROM,
    "10 000 signatures": b"".join(signature(selector=f"s{n}") for n in range(10_000)) + FROM,
    "signatures with every length": b"".join(signature(l=str(n)) for n in range(8)) + FROM,
    "comments nested 5 000 deep in From": b"From: " + b"(" * 5000 + b")" * 5000 + b" a@x.example\r\n",
    "an open comment of 60 kB": b"From: " + b"(" * 60_000 + b" a@x.example\r\n",
    "a quoted name of 60 kB": b'From: "' + b'\\"' * 30_000 + b'" <a@x.example>\r\n',
    "10 000 addresses": b"From: " + b"a@x.example, " * 10_000 + b"a@x.example\r\n",
    "10 000 From fields": FROM * 10_000,
    "comments nested in results": (
        field("Authentication-Results", "(" * 9000 + ")" * 9000 + "mx.ours.example; a=b") + FROM
    ),
    "5 000 forged results": field("Authentication-Results", "mx.ours.example; spf=pass") * 5000 + FROM,
    "encoded words in results": field("Authentication-Results", "=?utf-8?q?mx?= " * 4000) * 10 + FROM,
    "lines of 60 kB, signed": field("X", "a b" * 20_000) * 50 + signature("from:" + ":".join(["x"] * 50)) * 8 + FROM,
    "a field of white space": field("X", " \t" * 30_000) + signature("from:x") + FROM,
    "a key of 16 384 bits": signature(selector="huge", z=base64.b64encode(b"\1" * 2048).decode()) + FROM,
    "a key record of 60 kB": signature(selector="long") + FROM,
    "a key behind a loop": signature(selector="loop") + FROM,
    "a key on a lame server": signature(selector="lame") + FROM,
    "tags without end": b"DKIM-Signature: " + b"".join(b"t%d=1;" % n for n in range(9000)) + b"\r\n" + FROM,
    "a chain of 50": chain(50) + FROM,
    "a chain of 3 000": b"ARC-Seal: i=1\r\n" * 3000 + FROM,
    "8-bit and control characters": b"From: \xff\xfe\x01\x7f <a@x.example>\r\nSubject: \x80\x81\r\n",
    "a domain of 120 labels": b"From: a@" + b".".join([b"a"] * 120) + b"\r\n",
    "nothing but From": FROM,
}
SENDERS = [b"a@loop.example", b"a@cname.example", b"a@long.example", b"a" * 60_000 + b"@x.example", b"@", b"\xff@\xfe"]


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    with serving(zone=ZONE) as path:
        yield path


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_gets_one_field_and_an_answer(socket_path: str, name: str) -> None:
    with MilterClient(socket_path) as client:
        client.open()
        client.envelope(b"a@x.example")
        outcome = client.content(HEADERS[name] + b"\r\n" + BODY)
    assert (CONTINUE, ["Authentication-Results"]) == (outcome.answer, [name for name, _ in outcome.fields])
    assert len(outcome.fields[0][1]) < 6000


@pytest.mark.parametrize("sender", SENDERS, ids=lambda sender: repr(sender[:30]))
def test_a_hostile_sender_gets_one_field_and_an_answer(socket_path: str, sender: bytes) -> None:
    with MilterClient(socket_path) as client:
        client.open()
        client.envelope(sender)
        outcome = client.content(FROM + b"\r\n" + BODY)
    assert (CONTINUE, 1) == (outcome.answer, len(outcome.fields))


BODIES = {
    "one line": b"a" * 65_535,
    "empty lines": b"\r\n" * 32_000,
    "bare CR": b"\r" * 65_535,
    "lines of a space": b" \r\n" * 21_000,
    "NUL": b"\0" * 65_535,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_of_ten_megabytes_is_hashed_as_it_comes(socket_path: str, name: str) -> None:
    with MilterClient(socket_path) as client:
        client.open()
        client.envelope(b"a@x.example")
        fields = b"".join(signature(l=str(n)) for n in range(7)) + signature() + FROM
        outcome = client.content(fields + b"\r\n" + BODIES[name] * (10_000_000 // len(BODIES[name])))
    assert CONTINUE == outcome.answer
    assert 8 == outcome.fields[0][1].count("dkim=")
