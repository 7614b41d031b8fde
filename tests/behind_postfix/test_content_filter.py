# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail that a content filter hands back, behind a real Postfix: judged once, by the client that sent it, and what was
found out about it survives the second pass, with and without the milter in it."""

import os
import signal
from collections.abc import Iterator

import pytest

from gatekeeper.core.message import crlf, parse
from gatekeeper.replay import fixture
from gatekeeper.replay.smtp import SmtpClient
from tests.lab import Lab
from tests.lab.ports import free_port
from tests.lab.sink import Sink
from tests.support.lab import new_lab
from tests.support.needs import ROOT
from tests.support.service import until

pytestmark = pytest.mark.integration("gatekeeper", "postfix")

CASE = fixture.read(ROOT / "tests" / "smtp_fixtures" / "clean-signed-mail")
FORGED = b"".join(
    b"Authentication-Results: %s; spf=pass smtp.mailfrom=evil.example\r\n" % name
    for name in (b"mx.example.org", b"mx.example.org/anything", b'"MX.example.org/4AbCdE"')
)
OTHERS = b"Authentication-Results: mx.other.example/1; spf=fail\r\n"


class Filtered:
    """A lab whose port 25 has a content filter: what comes to it, and two ports to hand it back."""

    def __init__(self, lab: Lab, sink: Sink) -> None:
        self.lab = lab
        self.filter = sink
        self.ports = {"no_milters": lab.postfix.ports.reinject, "milters": free_port()}
        master = lab.postfix.config / "master.cf"
        here = f"127.0.0.1:{lab.postfix.ports.smtp} inet n - n - - smtpd\n"
        assert here in master.read_text()
        master.write_text(
            master.read_text().replace(here, f"{here}  -o content_filter=smtp:[127.0.0.1]:{sink.port}\n")
            + f"127.0.0.1:{self.ports['milters']} inet n - n - - smtpd\n"
            "  -o { smtpd_recipient_restrictions = permit_mynetworks, reject }\n"
        )
        os.kill(int((lab.postfix.queue / "pid" / "master.pid").read_text()), signal.SIGHUP)
        until(lambda: lab.postfix.log.exists() and "reload" in lab.postfix.log.read_text(), "Postfix reloads")

    def through(self, mark: bytes, back: str) -> tuple[bytes, bytes]:
        """A good mail with forged results: as the filter gets it, and as it arrives after it was handed `back`."""
        with SmtpClient("127.0.0.1", self.lab.postfix.ports.smtp) as smtp:
            smtp.xclient({"ADDR": "192.0.2.10", "NAME": "mail.good.example"})
            raw = b"X-Mark: " + mark + b"\r\n" + FORGED + OTHERS + crlf(CASE.files["message.eml"])
            self._send(smtp, raw)
        first = self.filter.find(mark)
        assert first is not None, self.lab.postfix.why_it_failed()
        with SmtpClient("127.0.0.1", self.ports[back]) as smtp:
            self._send(smtp, b"X-Filtered: clean\r\n" + first.content)
        last = self.lab.sink.find(mark)
        assert last is not None, self.lab.postfix.why_it_failed()
        return first.content, last.content

    def _send(self, smtp: SmtpClient, raw: bytes) -> None:
        for command in (
            "EHLO mail.good.example", "MAIL FROM:<alice@good.example>", "RCPT TO:<bob@example.org>", "DATA"
        ):  # fmt: skip
            assert smtp.command(command)[0] in "23"
        assert smtp.content(raw).startswith("250")


@pytest.fixture(scope="module")
def filtered() -> Iterator[Filtered]:
    with new_lab(CASE.zone) as lab:
        sink = Sink()
        yield Filtered(lab, sink)
        sink.close()


def results(raw: bytes) -> list[bytes]:
    return [field.value for field in parse(raw)[0] if field.name.lower() == b"authentication-results"]


@pytest.mark.parametrize("job_id", [False, True])
@pytest.mark.parametrize("back", ["no_milters", "milters"])
def test_what_was_found_out_survives_a_content_filter_and_is_found_out_once(
    filtered: Filtered, back: str, job_id: bool
) -> None:
    assert CASE.config is not None
    filtered.lab.run(CASE.config, {"verify": {"job_id": job_id}})
    first, last = filtered.through(f"{back}-{job_id}".encode(), back)
    ours, others = results(first)
    assert ours.startswith(b' "mx.example.org/' if job_id else b" mx.example.org;")
    assert b"spf=pass" in ours
    assert b"dkim=pass" in ours
    assert b"mx.other.example" in others
    assert [ours, others] == results(last)
    assert b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org" not in last
