# SPDX-License-Identifier: GPL-3.0-or-later
"""Odd messages through a real Postfix: what the sink receives bears a signature that holds, by dkimpy and by our own
verifier. Postfix starts once; each message goes in by SMTP and by sendmail(1)."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import dkim
import pytest

from gatekeeper.core.message import from_file, parse
from gatekeeper.replay.smtp import SmtpClient
from tests.lab import Lab
from tests.support.lab import new_lab
from tests.support.signing_world import ed25519, ed25519_pem, rsa, verifies, write_key

pytestmark = pytest.mark.integration("gatekeeper", "postfix")

HEADER = b"From: Bob <bob@example.org>\r\nTo: alice@good.example\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n"
HEADER += b"Message-ID: <%b@example.org>\r\n"
MESSAGES = {
    "plain": HEADER + b"Subject: hello\r\n\r\nHello\r\n",
    "a line of 3000 bytes": HEADER + b"\r\n" + 3000 * b"x" + b"\r\nend\r\n",
    "a line of 998 bytes": HEADER + b"\r\n" + 998 * b"x" + b"\r\n" + 999 * b"y" + b"\r\nend\r\n",
    "long lines of words": HEADER + b"Subject: " + 400 * b"to and " + b"\r\n\r\n" + 700 * b"word " + b"\r\nend\r\n",
    "a header line of 3000 bytes": HEADER + b"Subject: " + 3000 * b"y" + b"\r\n\r\nHello\r\n",
    "many recipients": HEADER.replace(b"To: ", b"To: " + 300 * b"bcd@good.example,\r\n\t") + b"\r\nHello\r\n",
    "bare CR": HEADER + b"Subject: a\rb\r\n\r\nab\rcd\r\nend\r\n",
    "bare LF": HEADER + b"Subject: a\n b\r\n\r\nab\ncd\r\nend\r\n",
    "8-bit": HEADER
    + b"Subject: Gr\xfc\xdfe\r\nReply-To: B\xc3\xb6 <b@example.org>\r\n\r\nGr\xfc\xdfe \xe2\x82\xac\r\n",
    "NUL": HEADER + b"Subject: a\0b\r\n\r\nab\0cd\r\n",
    "no body": HEADER,
    "empty body": HEADER + b"\r\n",
    "only empty lines": HEADER + b"\r\n\r\n\r\n\r\n",
    "no final line end": HEADER + b"\r\nHello",
    "neither Date nor Message-ID": b"From: bob@example.org\r\nX-Tag: %b\r\n\r\nHello\r\n",
    "folded with tabs": HEADER + b"Subject: a\r\n\tb\r\n \t c \r\n\r\nHello\r\n",
    "an empty fold": HEADER + b"Subject: a\r\n \r\n b\r\n\r\nHello\r\n",
    "space at the ends": HEADER + b"Subject: a  \r\nCc:\r\nReply-To :x@example.org\r\n\r\nHello  \r\n\t\r\n \r\n",
    "dots": HEADER + b"\r\n.\r\n..\r\n. x\r\n",
    "text in the header": HEADER + b"this is no header field\r\n\r\nHello\r\n",
    "an address without a domain": HEADER + b"Cc: root, (a) x@good.example\r\n\r\nHello\r\n",
}
FORMS = ("simple/simple", "relaxed/relaxed")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


@pytest.fixture(scope="module", params=FORMS)
def config(lab: Lab, request: pytest.FixtureRequest) -> Path:
    folder = Path(mkdtemp(dir=lab.root))  # a new one: it may be made again, if tests come in another order
    folder.chmod(0o755)
    write_key(folder / "rsa.pem")
    write_key(folder / "ed.pem", ed25519_pem())
    (folder / "gatekeeper.toml").write_text(
        'hostname = "mx.example.org"\nmynetworks = "127.0.0.0/8"\nlocal_domains = []\nrecipient_delimiter = ""\n'
        f'[signing]\nkey_table = ["k example.org:mail:{folder}/rsa.pem", "e example.org:ed:{folder}/ed.pem"]\n'
        f'signing_table = ["example.org k", ".org e", "* e"]\nmultiple_signatures = true\n'
        f'canonicalization = "{request.param}"\n'
    )
    return folder / "gatekeeper.toml"


@pytest.fixture
def relay(lab: Lab, config: Path) -> Lab:
    """The lab with this configuration at work, whichever the test before had."""
    if lab.config != config:
        lab.run(config)
    return lab


def submit(lab: Lab, message: bytes) -> None:
    with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
        for command in ("EHLO pc", "MAIL FROM:<bob@example.org> BODY=8BITMIME", "RCPT TO:<a@good.example>", "DATA"):
            smtp.command(command)
        smtp.content(message)


def holds(message: bytes) -> bool:
    """Both signatures, each by what can verify it."""
    top, rest = message[: message.index(b"DKIM-Signature", 1)], message[message.index(b"DKIM-Signature", 1) :]
    first, second = (rest, top + rest) if b"s=ed" in top else (top + rest, rest)
    record = rsa().record().encode()
    return (
        bool(dkim.verify(first, dnsfunc=lambda name, timeout=5: record))
        and verifies(first, rsa().record())
        and verifies(second, ed25519().record())
    )


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("way", ["SMTP", "sendmail"])
def test_a_signature_holds_when_it_arrives(relay: Lab, name: str, way: str) -> None:
    tag = f"{way}-{list(MESSAGES).index(name)}-{relay.service.pid}".encode()
    message = MESSAGES[name] % tag
    if way == "SMTP":
        submit(relay, message)
    else:
        relay.postfix.sendmail(message.replace(b"\r\n", b"\n"), sender="bob@example.org", recipient="a@good.example")
    delivery = relay.sink.find(tag)
    assert delivery is not None
    assert 2 == delivery.content.count(b"DKIM-Signature:")
    assert holds(delivery.content)


MBOX = b"From joe@example.com Sun Nov 29 14:17:37 2026\r\n"


@pytest.mark.parametrize("way", ["SMTP", "sendmail"])
def test_what_begins_as_in_a_mailbox_is_read_as_postfix_reads_it(relay: Lab, way: str) -> None:
    tag = f"mbox-{way}-{relay.service.pid}".encode()
    message = MBOX + b">" + MBOX + MESSAGES["plain"] % tag
    if way == "SMTP":
        submit(relay, message)
    else:
        relay.postfix.sendmail(message.replace(b"\r\n", b"\n"), sender="bob@example.org", recipient="a@good.example")
    delivery = relay.sink.find(tag)
    assert delivery is not None
    assert holds(delivery.content)
    read, _ = from_file(message) if way == "sendmail" else parse(message)
    assert read == [field for field in parse(delivery.content)[0] if field.name in {one.name for one in read}]


def test_what_comes_back_from_a_filter_is_not_signed_twice_unless_the_filter_changed_it(relay: Lab) -> None:
    tag = f"again-{relay.service.pid}".encode()
    submit(relay, MESSAGES["plain"] % tag)
    first = relay.sink.find(tag)
    assert first is not None
    submit(relay, b"X-Again: same%b\r\n" % tag + first.content)
    submit(relay, b"X-Again: other%b\r\n" % tag + first.content + b"footer\r\n")
    for name, count in ((b"same", 2), (b"other", 4)):
        found = relay.sink.find(name + tag)
        assert found is not None
        assert count == found.content.count(b"DKIM-Signature:")


def test_postfix_is_asked_for_a_macro_that_it_does_not_send_by_itself(lab: Lab) -> None:
    folder = lab.root / "macros"
    folder.mkdir()
    write_key(folder / "rsa.pem")
    (folder / "gatekeeper.toml").write_text(
        'hostname = "mx.example.org"\nmynetworks = "127.0.0.0/8"\nlocal_domains = []\nrecipient_delimiter = ""\n'
        f'[signing]\ndomains = "example.org"\nselector = "mail"\nkey_file = "{folder}/rsa.pem"\n'
        'internal_hosts = "192.0.2.1"\ndaemon_names = []\nmacros = ["client_port"]\n'
    )
    lab.run(folder / "gatekeeper.toml")
    tag = f"macro-{lab.service.pid}".encode()
    submit(lab, MESSAGES["plain"] % tag)
    delivery = lab.sink.find(tag)
    assert delivery is not None
    assert b"DKIM-Signature:" in delivery.content
