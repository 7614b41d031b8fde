# SPDX-License-Identifier: GPL-3.0-or-later
"""`OK if=dkim` through a real Postfix: the milter sees a proof at the end of a mail, RCPT of the next goes by it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.replay.smtp import SmtpClient
from tests.lab import Lab
from tests.support.lab import new_lab
from tests.support.needs import ROOT
from tests.support.service import need_milter, until

pytestmark = pytest.mark.integration("gatekeeper", "postfix")

CASE = ROOT / "tests" / "smtp_fixtures" / "clean-signed-mail"
CONFIG = """\
hostname = "mx.example.org"
mynetworks = "10.0.0.0/8"
local_domains = "example.org"
recipient_delimiter = ""
[policy]
restrictions = "check_sender_access hash:senders, check_recipient_access hash:recipients"
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_milter()
    with new_lab((CASE / "dns.zone").read_text()) as lab:
        yield lab


def run(lab: Lab, condition: str) -> None:
    folder = lab.root / condition
    folder.mkdir()
    (folder / "senders").write_text(f"good.example OK if={condition}\n")
    (folder / "recipients").write_text("boss@example.org REJECT ask first\n")
    (folder / "gatekeeper.toml").write_text(CONFIG)
    lab.run(folder / "gatekeeper.toml")


def send(lab: Lab, recipient: str, address: str = "192.0.2.10", message: Path = CASE / "message.eml") -> str:
    """What Postfix says to RCPT, or to the message if it takes it."""
    with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
        smtp.command("EHLO pc")
        smtp.xclient({"ADDR": address, "NAME": "mail.good.example", "HELO": "mail.good.example"})
        smtp.command("EHLO mail.good.example")
        smtp.command("MAIL FROM:<alice@good.example>")
        reply = smtp.command(f"RCPT TO:<{recipient}>")
        if not reply.startswith("250"):
            return reply
        smtp.command("DATA")
        return smtp.content(message.read_bytes())


@pytest.mark.parametrize("condition", ["dkim", "dmarc"])
def test_mail_passes_once_the_milter_has_seen_its_domain_proven(lab: Lab, condition: str) -> None:
    run(lab, condition)
    elsewhere = "198.51.100.7"  # SPF knows nothing of it: what is proven there, DKIM proves
    assert send(lab, "boss@example.org", elsewhere).startswith("554 5.7.1")
    assert send(lab, "bob@example.org", elsewhere).startswith("250")
    until(lambda: send(lab, "boss@example.org", elsewhere).startswith("250"), "the proof is remembered")
    assert send(lab, "boss@example.org", "203.0.113.7").startswith("554 5.7.1"), "not from another network"


def test_spf_proves_at_once(lab: Lab) -> None:
    run(lab, "spf")
    assert send(lab, "boss@example.org").startswith("250")
    assert send(lab, "boss@example.org", "198.51.100.7").startswith("554 5.7.1")
