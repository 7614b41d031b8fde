# SPDX-License-Identifier: GPL-3.0-or-later
"""gatekeeper's milter as a process of its own, with a DNS and keys; messages for both directions."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gatekeeper.dnsclient.zone import Zone
from tests.lab.dns import DnsServer
from tests.support.service import Service, need_milter

KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
PUBLIC = base64.b64encode(
    KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
).decode()
ZONE = f"""\
sel._domainkey.ours.example. TXT "v=DKIM1; p={PUBLIC}"
client.example. TXT "v=spf1 ip4:192.0.2.1 -all"
client.example. MX 10 mail.client.example.
_dmarc.client.example. TXT "v=DMARC1; p=reject"
slow.example. TXT !TIMEOUT
"""
CONFIG = """\
hostname = "mx.ours.example"
mynetworks = ["127.0.0.0/8", "198.51.100.0/24"]
[dns]
nameservers = ["{dns}"]
timeout = "{timeout}"
[store]
url = "{store}"
[milter]
listen = "unix:{folder}/milter.sock"
workers = 1
{milter}
[signing]
key_table = "{folder}/KeyTable"
signing_table = "refile:{folder}/SigningTable"
"""
INBOUND = b"From: a@client.example\r\nSubject:  two  spaces\r\nTo: b@ours.example\r\n\r\nHello\r\n"
OUTBOUND = (
    b"From: Ann <ann@ours.example>\r\nSubject: =?utf-8?q?x?=\r\n\tfolded\r\nTo: b@client.example\r\n\r\nHello\r\n"
)


@contextmanager
def serving(
    more: str = "",
    signing: str = "",
    zone: str | Zone = ZONE,
    timeout: str = "3s",
    store: str = "memory:",
    prelude: str = "",
    milter: str = "",
    faulty: bool = False,
) -> Iterator[str]:
    """The milter with `more` configuration on top, `signing` and `milter` in those sections, asking `zone`; its socket.
    A `faulty` one may say that something has gone wrong."""
    need_milter()
    zone = Zone.parse(zone) if isinstance(zone, str) else zone
    with TemporaryDirectory(prefix="gatekeeper-test-") as name, DnsServer(zone) as dns:
        folder = Path(name)
        folder.chmod(0o755)
        pem = KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for file, content in (
            ("sel.private", pem),
            ("KeyTable", b"ours ours.example:sel:%b/sel.private\nbad bad.example:sel:AAAA\n" % name.encode()),
            ("SigningTable", b"*@ours.example ours\n*@bad.example bad\n"),
            (
                "gatekeeper.toml",
                (
                    more
                    + CONFIG.format(dns=dns.address, folder=folder, timeout=timeout, store=store, milter=milter)
                    + signing
                ).encode(),
            ),
        ):
            (folder / file).write_bytes(content)
            (folder / file).chmod(0o600 if file == "sel.private" else 0o644)
        service = Service(folder / "gatekeeper.toml", "milter", prelude=prelude)
        service.wait_for("^listening milter")
        yield f"{folder}/milter.sock"
        assert 0 == service.end()
        wrong = [line for line in service.lines if "Traceback" in line or "claimed not to reply" in line]
        assert faulty or wrong == []


def verifies(raw: bytes, fields: list[tuple[str, str]]) -> bool:
    """dkimpy's opinion of the message as Postfix sends it on, with the fields that the milter put on top."""
    top = b"".join(
        f"{name}:{value}\r\n".encode().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for name, value in fields
    )
    return bool(dkim.verify(top + raw, dnsfunc=lambda name, timeout=5: f"v=DKIM1; p={PUBLIC}".encode()))
