# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a message has one name: the milter's log, `explain`, `sign` and `opendkim -t` agree about it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gatekeeper import cli
from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import prepare
from gatekeeper.config.config_file import load
from gatekeeper.core.log import read_decision
from gatekeeper.core.message import parse
from gatekeeper.core.request import Client, Request, Stage, parse_address
from gatekeeper.diagnose.message_report import Mail, not_judged, report_as_json, report_sentences, sign, sign_or_verify
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.milter.session import MilterSession
from tests.support.signing_world import rsa, write_key
from tests.support.zones import txt

ZONE = f"""
_dmarc.bank.example TXT "v=DMARC1; p=reject"
mail._domainkey.example.com TXT {txt(rsa().record())}
"""
REJECT = "[verify]\ndmarc = 'reject'\n"
BOUND = "[signing]\nbind = 'login'\n"
PLAIN = b"From: joe@example.com\r\nTo: ann@example.net\r\nSubject: x\r\n\r\nHello\r\n"
INSIDE, OUTSIDE, PEER = "127.0.0.1", "192.0.2.9", "192.0.2.77"


def by(author: str) -> bytes:
    return PLAIN.replace(b"joe@example.com", author.encode())


def signed_before(app: App) -> bytes:
    request = Request(stage=Stage.END_OF_MESSAGE, client=Client(address=parse_address(INSIDE), name="localhost"))
    sent, _ = asyncio.run(sign(app, request, Mail(*parse(PLAIN)), submitted=False))
    assert sent.startswith(b"DKIM-Signature")
    return sent


@dataclass(frozen=True)
class Case:
    """A message from `client`, and what the milter calls what comes of it; in `extra` configuration."""

    reasons: tuple[str, ...]
    raw: bytes | Callable[[App], bytes] = PLAIN
    client: str = INSIDE
    extra: str = ""
    signing: str | None = None  # of the report, where the log does not tell it
    user: str = ""
    judged: bool = False  # though no check had an opinion


CASES = {
    "ours": Case(("sign.ok",)),
    "signed already": Case(("sign.already",), signed_before),
    "signed already, then changed": Case(("sign.ok",), lambda app: signed_before(app) + b"more\r\n"),
    "of nobody": Case(("sign.no_match",), by("joe@nobody.example")),
    "no From": Case(("sign.no_from",), PLAIN.replace(b"From", b"X-From")),
    "two From": Case(("sign.ambiguous_from",), b"From: ann@example.com\r\n" + PLAIN),
    "several domains": Case(("sign.ambiguous_from",), by("joe@example.com, ann@example.net")),
    "a key that is no key": Case(("sign.bad_key",), by("joe@bad.example")),
    "to somebody who gets nothing signed": Case(
        ("sign.recipient",), extra="[signing]\ndont_sign_to = ['ann@example.net']\n"
    ),
    "a user who may not": Case(("sign.unbound",), client=OUTSIDE, user="eve@other.example", extra=BOUND),
    "a user who is refused": Case(
        ("sign.unbound",), client=OUTSIDE, user="eve@other.example", extra=BOUND + "mismatch = 'reject'\n"
    ),
    "a stranger": Case(("dmarc.none",), by("x@other.example"), OUTSIDE, signing="sign.not_origin"),
    "a stranger as one of ours": Case(("dmarc.none", "sign.external"), client=OUTSIDE),
    "a forger": Case(("dmarc.reject",), by("Bank, Service <x@bank.example>"), OUTSIDE, REJECT, "sign.not_origin"),
    "without a domain": Case(("dmarc.permerror",), by("Bank"), OUTSIDE, REJECT, "sign.not_origin"),
    "a peer": Case((), client=PEER, extra="[signing]\npeers = ['192.0.2.77']\n", signing="sign.peer"),
    "exempt": Case((), extra="[signing]\nexempt_domains = ['example.com']\n", signing="sign.exempt"),
    "no header": Case(("dkim.long_header",), extra="[checks.dkim]\nmode = 'enforce'\nmax_header = 20\n", signing=""),
    "only verifying, ours": Case((), extra="[milter]\nmode = 'v'\n", signing=""),
    "only verifying, a stranger's": Case(("dmarc.none",), client=OUTSIDE, extra="[milter]\nmode = 'v'\n", signing=""),
    "only signing, a stranger's": Case(("sign.external",), client=OUTSIDE, extra="[milter]\nmode = 's'\n"),
    "judged though ours": Case(
        ("sign.no_match",),
        by("x@nobody.example"),
        extra="[verify]\nmethods = ['dkim']\nunsigned_ours = true\n",
        judged=True,
    ),
    "a file from a mailbox": Case(("sign.ok",), b"From joe@example.com Sun Nov 29 14:17:37 2026\n" + PLAIN),
}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], App]:
    write_key(tmp_path / "key.pem")
    signing = (
        f"key_table = ['k example.com:mail:{tmp_path}/key.pem', 'bad bad.example:mail:AAAA']\n"
        "signing_table = ['example.com k', 'bad.example bad']\n"
    )

    def make(extra: str) -> App:
        section = "" if "[signing]" in extra else "[signing]\n"
        text = f'hostname = "mx.example.org"\nmynetworks = "127.0.0.0/8"\n{extra}{section}'
        head, _, tail = text.partition("[signing]\n")
        (tmp_path / "g.toml").write_text(f'{head}[signing]\n{signing}{tail}[store]\nurl = "memory:"\n')
        return asyncio.run(open_app(prepare(load(tmp_path / "g.toml")), resolver=TableResolver(Zone.parse(ZONE))))

    return make


async def logged(app: App, case: Case, raw: bytes, caplog: pytest.LogCaptureFixture) -> tuple[str, ...]:
    """The reasons that the milter logs for the message as it comes by SMTP."""
    caplog.clear()
    session = MilterSession(app)
    session.connect(case.client, case.client, 25)
    session.helo("x.example")
    session.mail("<joe@sender.example>", sasl_user=case.user, sasl_method="PLAIN" if case.user else "")
    session.rcpt("<ann@example.net>")
    headers, body = Mail.read(raw).headers, Mail.read(raw).body
    for field in headers:
        session.header(field.name, field.value)
    session.end_of_header()
    session.body(body)
    await session.end_of_message()
    lines = [pairs for record in caplog.records if (pairs := read_decision(" " + record.getMessage()))]
    assert len(lines) <= 1
    return tuple(filter(None, lines[0].get("reasons", "").split(","))) if lines else ()


@pytest.mark.parametrize("name", CASES)
def test_the_milter_and_the_reports_name_an_outcome_alike(
    name: str, opened: Callable[[str], App], caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    app = opened(case.extra)
    raw = case.raw if isinstance(case.raw, bytes) else case.raw(app)
    caplog.set_level(logging.INFO)
    assert case.reasons == asyncio.run(logged(app, case, raw, caplog))

    request = Request(
        stage=Stage.RCPT,
        client=Client(address=parse_address(case.client), name="unknown"),
        helo="x.example",
        sender="joe@sender.example",
        recipient="ann@example.net",
        sasl_user=case.user,
        sasl_method="PLAIN" if case.user else "",
    )
    report = asyncio.run(sign_or_verify(app, request, Mail.read(raw)))
    told = report_as_json(report)
    by_sign = next((reason for reason in case.reasons if reason.startswith("sign.")), case.signing)
    assert (list(case.reasons), by_sign) == (told["reasons"], told["signing"])
    for_people = "\n".join(report_sentences(report))
    assert all(reason in for_people for reason in case.reasons)
    judged = case.judged or any(reason.startswith("dmarc.") for reason in case.reasons)
    assert judged == (told["findings"] is not None) == (not not_judged(app, request, Mail.read(raw)))

    _, why = asyncio.run(sign(app, request, Mail.read(raw), submitted=False))
    expected = by_sign or ",".join(case.reasons if case.client == INSIDE and not judged else ())
    assert why.startswith(expected)
    assert expected or "sign." not in why


def test_opendkim_in_its_test_mode_names_an_outcome_as_the_milter_does(
    tmp_path: Path, opened: Callable[[str], App], capsys: pytest.CaptureFixture[str]
) -> None:
    app = opened("")
    (tmp_path / "conf").write_text(f"Domain example.com\nSelector mail\nKeyFile {tmp_path}/key.pem\nMode s\n")
    for name, raw in (("new", PLAIN), ("again", signed_before(app))):
        (tmp_path / name).write_bytes(b"From joe@example.com Sun Nov 29 14:17:37 2026\n" + raw)
        assert 0 == cli.main(["opendkim", "-x", str(tmp_path / "conf"), "-t", str(tmp_path / name), "-v"])
    out = capsys.readouterr().out
    assert (1, 1) == (out.count("reasons=sign.ok"), out.count("reasons=sign.already"))
    assert (1, 1) == (out.count("(sign.ok)"), out.count("(sign.already)"))
