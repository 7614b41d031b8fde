# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM verification beside Debian's opendkim: the same messages and keys, both through their milters.

Where we differ, the case says both. Ours are the classes of RFC 8601: `fail` is a signature that was tried or is out of
time, `permerror` one that cannot be tried at all (opendkim says `fail` of keys that are missing, revoked or not for
this). Four pass with opendkim that do not with us: with l=0 nothing of the body is signed, `%` and quote marks are no
base64, and the version of a key record comes first. The only ones that pass with us alone have a bare CR or LF in what
is signed: opendkim drops or mends it, while it is neither white space nor a line end (RFC 6376 section 2.8).
"""

import re
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.dkim_messages import ED_KEY, KEY, MESSAGE, SHORT_KEY, by_dkimpy, public, signed
from tests.support.milter_service import serving
from tests.support.opendkim_world import Mail, deliver, opendkim
from tests.support.zones import txt

pytestmark = pytest.mark.integration("gatekeeper", "opendkim")

NOW = int(time.time())
P = public()
SHORT = cast("RSAPrivateKey", SHORT_KEY)
SHORTEST = cast(
    "RSAPrivateKey",
    load_pem_private_key(
        b"""-----BEGIN RSA PRIVATE KEY-----
MIIBOQIBAAJBAMbSlgbNKafEspeFa/MLShVe1w8OWtG7Lwbsg7wYlRP867HBgpuZ
8pLbVpmM9ih1h+7tgen06UP0Fned9FTruvMCAwEAAQJAA9HJ1gmc8j8iGy0R/NJL
swtmYECrV/oblit3AGcMfhzGE0tvZIiv7AnfJvitslYPevYrzgSsWyjXUVB5hLTK
UQIhAOJTxHgc7ZGDkVU/RD+lQcJGVfMjhpb0nWspdB/lRY1rAiEA4OOuAcH2GO5j
/lWkSBkcOPIRMzxEw84uG7fwufc2IpkCIE94YnBamACUVh+8y1YdzO1OjTeGreer
lOrf72qTssxpAiA9cNbMciJ7Qz4ccWd1ry6PvErItbGP0Ve1iPaCyDCJGQIgPdan
zYBC6jXZTxzIOIJL5BLrTtbIZu1/gQPY8yJS6B4=
-----END RSA PRIVATE KEY-----
""",
        None,
    ),
)
SMALL, LARGE = generate_private_key(65537, 1024), generate_private_key(65537, 4096)
KEYS = {
    "sel": f"v=DKIM1; k=rsa; p={P}",
    "bare": f"p={P}",
    "short": f"v=DKIM1; p={public(SHORT)}",
    "shortest": f"v=DKIM1; p={public(SHORTEST)}",
    "small": f"v=DKIM1; p={public(SMALL)}",
    "large": f"v=DKIM1; p={public(LARGE)}",
    "ed": f"v=DKIM1; k=ed25519; p={public(ED_KEY)}",
    "other": f"v=DKIM1; p={public(generate_private_key(65537, 2048))}",
    "strict": f"v=DKIM1; t=s; p={P}",
    "testing": f"v=DKIM1; t=y; p={P}",
    "revoked": "v=DKIM1; p=",
    "sha1": f"v=DKIM1; h=sha1; p={P}",
    "both": f"v=DKIM1; h=sha1:sha256; p={P}",
    "tls": f"v=DKIM1; s=tlsrpt; p={P}",
    "mail": f"v=DKIM1; s=tlsrpt:email; p={P}",
    "dsa": f"v=DKIM1; k=dsa; p={P}",
    "new": f"v=DKIM2; p={P}",
    "junk": "v=DKIM1; p=AAAA",
    "none": "v=DKIM1; k=rsa",
    "quoted": f'v=DKIM1; p="{P}"',
    "late": f"k=rsa; v=DKIM1; p={P}",
}
TWO_LINES = MESSAGE.replace(b"Subject: Is  dinner\r\n\tready?", b"Subject:  two  spaces \r\n  and a fold")


NO_SUBJECT = b"From: Joe <joe@example.com>\r\n\r\nHi.\r\n"


def by_hand(raw: bytes) -> bytes:
    """`raw` with a simple/simple signature over From and Subject, in that order, made of the very bytes."""
    header, _, body = raw.partition(b"\r\n\r\n")
    digest = b64encode(sha256(body).digest()).decode()
    field = f"DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=example.com; s=sel; h=from:subject; bh={digest}; b="
    subject, author = (header + b"\r\n").split(b"From:")
    made = KEY.sign(b"From:" + author + subject + field.encode(), PKCS1v15(), SHA256())
    return field.encode() + b64encode(made) + b"\r\n" + raw


@dataclass(frozen=True)
class Case:
    raw: bytes
    opendkim: str
    ours: str = ""
    """Where it is not the same."""


def simple(raw: bytes = TWO_LINES, **options: object) -> bytes:
    return by_dkimpy(raw, (b"simple", b"simple"), **options)


def changed(old: bytes, new: bytes, raw: bytes | None = None) -> bytes:
    raw = raw or signed()
    assert old in raw
    return raw.replace(old, new)


CASES = {
    "signed": Case(signed(), "pass"),
    "simple, folded, two spaces": Case(simple(), "pass"),
    "simple, a space less": Case(changed(b"Subject:  two", b"Subject: two", simple()), "fail"),
    "simple, unfolded": Case(changed(b"spaces \r\n  and", b"spaces   and", simple()), "fail"),
    "simple, the name in capitals": Case(changed(b"\r\nSubject:", b"\r\nSUBJECT:", simple()), "fail"),
    "simple, empty lines at the end": Case(simple() + b"\r\n\r\n", "pass"),
    "simple, a space at the end": Case(simple() + b" \r\n", "fail"),
    "relaxed, refolded": Case(changed(b"dinner\r\n\tready", b"dinner \r\n   ready"), "pass"),
    "relaxed, order of other names": Case(
        changed(b"To: Sue <sue@example.net>\r\n", b"", signed()).replace(
            b"Received: from", b"To: Sue <sue@example.net>\r\nReceived: from"
        ),
        "pass",
    ),
    "relaxed, body spaces": Case(changed(b"lost  the", b"lost \t the"), "pass"),
    "relaxed, body changed": Case(changed(b"lost  the", b"won  the"), "fail"),
    "From changed": Case(changed(b"From: Joe", b"From: Eve"), "fail"),
    "two of a name, order changed": Case(
        b"To: b@x.example\r\n" + changed(b"To: b@x.example\r\n", b"", signed(b"To: b@x.example\r\n" + MESSAGE)), "pass"
    ),
    "a second Subject above": Case(b"Subject: other\r\n" + signed(), "pass"),
    "a second From above": Case(b"From: eve@evil.example\r\n" + signed(), "pass"),
    "a second From above, oversigned": Case(
        b"From: eve@evil.example\r\n" + signed(names="from:from:to:subject"), "fail"
    ),
    "a second From below": Case(changed(b"\r\nTo:", b"\r\nFrom: eve@evil.example\r\nTo:"), "fail"),
    "512 bits": Case(signed(s="shortest", key=SHORTEST), "policy"),
    "768 bits": Case(signed(s="short", key=SHORT), "policy"),
    "1024 bits": Case(signed(s="small", key=SMALL), "pass"),
    "4096 bits": Case(signed(s="large", key=LARGE), "pass"),
    "ed25519": Case(signed(s="ed", key=ED_KEY), "pass"),
    "another key": Case(signed(s="other"), "fail"),
    "no key": Case(signed(s="missing"), "fail", "permerror"),
    "a bare key": Case(signed(s="bare"), "pass"),
    "t=s, i=d": Case(signed(s="strict", i="joe@example.com"), "pass"),
    "t=s, i below d": Case(signed(s="strict", i="joe@mail.example.com"), "fail", "permerror"),
    "i below d": Case(signed(i="joe@mail.example.com"), "pass"),
    "i outside d": Case(signed(i="joe@example.org"), "permerror"),
    "i beside d": Case(signed(i="joe@notexample.com"), "permerror"),
    "t=y": Case(signed(s="testing"), "pass"),
    "revoked": Case(signed(s="revoked"), "fail", "permerror"),
    "h=sha1 for the key": Case(signed(s="sha1"), "fail", "permerror"),
    "h=sha1:sha256 for the key": Case(signed(s="both"), "pass"),
    "s=tlsrpt": Case(signed(s="tls"), "fail", "permerror"),
    "s=tlsrpt:email": Case(signed(s="mail"), "pass"),
    "k=dsa": Case(signed(s="dsa"), "fail", "permerror"),
    "v=DKIM2": Case(signed(s="new"), "fail", "permerror"),
    "a key that is none": Case(signed(s="junk"), "permerror"),
    "a record without p": Case(signed(s="none"), "temperror", "permerror"),
    "quote marks in p": Case(signed(s="quoted"), "pass", "permerror"),
    "v behind k": Case(signed(s="late"), "pass", "permerror"),
    "rsa-sha1": Case(signed(a="rsa-sha1"), "fail", "permerror"),
    "an unknown algorithm": Case(signed(a="rsa-sha512"), "permerror"),
    "v=2": Case(signed(v="2"), "permerror"),
    "without bh": Case(signed(bh="-"), "permerror"),
    "without h": Case(changed(b"h=from:to:subject; ", b""), "nothing", "permerror"),
    "h without From": Case(signed(names="to:subject"), "permerror"),
    "c unknown": Case(signed(c="loose/relaxed"), "permerror"),
    "q unknown": Case(signed(q="http"), "permerror"),
    "q with another": Case(signed(q="dns/txt:http"), "pass"),
    "expired": Case(signed(t=str(NOW - 90000), x=str(NOW - 86400)), "permerror", "fail"),
    "expires later": Case(signed(t=str(NOW - 60), x=str(NOW + 86400)), "pass"),
    "expires before it was made": Case(signed(t=str(NOW - 60), x=str(NOW - 70)), "permerror"),
    "from the future": Case(signed(t=str(NOW + 86400)), "permerror", "fail"),
    "l, all": Case(signed(l="26"), "pass"),
    "l, a part": Case(signed(l="10"), "pass"),
    "l, appended": Case(signed(l="26") + b"Buy this.\r\n", "pass"),
    "l, past the end": Case(signed(l="27"), "fail"),
    "l=0": Case(signed(l="0"), "pass", "policy"),
    "a tag twice": Case(changed(b"d=example.com; ", b"d=example.com; d=example.com; "), "fail", "permerror"),
    "a tag that is unknown": Case(signed(foo="bar"), "pass"),
    "b is no base64": Case(changed(b" b=", b" b=%%%"), "pass", "permerror"),
    "an empty body": Case(signed(MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"), "pass"),
    "bare CR in the body": Case(simple(MESSAGE + b"a\rb\r\n"), "pass"),
    "bare LF in the body": Case(by_hand(b"Subject: a\r\n" + NO_SUBJECT + b"a\nb\r\n"), "fail", "pass"),
    "bare CR in a signed field": Case(signed(b"Subject: a\rb\r\n" + NO_SUBJECT), "fail", "pass"),
    "bare CR in a signed field, simple": Case(by_hand(b"Subject: a\r b\r\n" + NO_SUBJECT), "pass"),
    "bare CR before a fold, simple": Case(by_hand(b"Subject: a\r\r\n b\r\n" + NO_SUBJECT), "fail", "fail"),
    "no space behind the colon, simple": Case(by_hand(b"Subject:a\r\n" + NO_SUBJECT), "pass"),
    "8-bit": Case(signed("Subject: grüß\r\n".encode() + MESSAGE + b"\xff\xfe\r\n"), "pass"),
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("verifier")
    (folder / "keys").write_text("".join(f"{name}._domainkey.example.com {record}\n" for name, record in KEYS.items()))
    (folder / "opendkim.conf").write_text(
        f"Mode v\nTestPublicKeys {folder}/keys\nSocket local:{folder}/socket\nUMask 0\nMinimumKeyBits 1024\n"
    )
    with opendkim(folder / "opendkim.conf", folder / "socket") as socket:
        yield socket


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    zone = "".join(f"{name}._domainkey.example.com TXT {txt(record)}\n" for name, record in KEYS.items())
    with serving(zone=zone) as socket:
        yield socket


def told(socket: str, raw: bytes) -> str:
    """The result of DKIM in the field that a milter adds."""
    outcome = deliver(socket, Mail(raw, client="192.0.2.1", name="client.example"))
    found = [match[1] for _, value in outcome.fields if (match := re.search(r"dkim=(\w+)", value))]
    return found[0] if found else "nothing"


@pytest.mark.parametrize("name", CASES)
def test_both_verifiers_say_the_same(peer: str, ours: str, name: str) -> None:
    case = CASES[name]
    assert (case.opendkim, case.ours or case.opendkim) == (told(peer, case.raw), told(ours, case.raw))
