# SPDX-License-Identifier: GPL-3.0-or-later
"""What the milter asks the DNS about one message: what its methods take, each question once, and nothing else."""

from collections.abc import Iterable
from itertools import chain, combinations
from pathlib import Path

import pytest

from gatekeeper.app.app import open_app
from gatekeeper.app.plan import prepare
from gatekeeper.auth.results import Method
from gatekeeper.config import config_file
from gatekeeper.config.config_file import Config
from gatekeeper.core.message import parse
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.milter.session import MilterSession
from gatekeeper.opendkim.mapping import load
from gatekeeper.stores.memory import MemoryStore
from tests.support import arc_messages
from tests.support.dkim_messages import NAME, NOW, RECORD, signed
from tests.support.postconf import no_postfix
from tests.support.zones import Asked, txt

ZONE = f"""
example.com TXT "v=spf1 ip4:192.0.2.1 -all"
mail.example.com TXT "v=spf1 a -all"
mail.example.com A 192.0.2.1
1.2.0.192.in-addr.arpa PTR mail.example.com
_dmarc.example.com TXT "v=DMARC1; p=reject"
{NAME} TXT {txt(RECORD)}
s._domainkey.list.example TXT {txt(arc_messages.RECORD)}
"""
SPF = ("example.com", "TXT")
HELO = [("mail.example.com", "TXT"), ("mail.example.com", "A")]
KEY = (NAME, "TXT")
QUESTIONS: dict[Method, list[tuple[str, str]]] = {
    Method.SPF: [SPF, *HELO],
    Method.IPREV: [("1.2.0.192.in-addr.arpa", "PTR"), ("mail.example.com", "A")],
    Method.DKIM: [KEY],
    Method.DMARC: [SPF, KEY, ("_dmarc.example.com", "TXT")],
    Method.ARC: [("s._domainkey.list.example", "TXT")],
}
COMBINATIONS = [*chain.from_iterable(combinations(Method, size) for size in range(1, len(Method) + 1))]


def configured(folder: Path, verify: str) -> Config:
    path = folder / "gatekeeper.toml"
    path.write_text(f'mynetworks = []\n[milter]\nmode = "v"\n[verify]\n{verify}')
    return config_file.load(path, no_postfix)


async def questions(config: Config, zone: str = ZONE) -> list[tuple[str, str]]:
    """What is asked about one signed message with an ARC set, heard as libmilter brings it."""

    def clock() -> float:
        return NOW

    asked = Asked(zone)
    app = await open_app(prepare(config), resolver=CachingResolver(asked), store=MemoryStore(clock), clock=clock)
    headers, body = parse(arc_messages.sealed(signed()))
    session = MilterSession(app)
    session.connect("mail.example.com", "192.0.2.1", 25)
    session.helo("mail.example.com")
    starts = [session.mail("<joe@example.com>")]
    session.rcpt("<ann@ours.example>")
    for field in headers:
        session.header(field.name, field.value)
    starts.append(session.end_of_header())
    for start in starts:
        if callable(start):
            start()
    session.body(body)
    edits = await session.end_of_message()
    assert edits.insertions
    return asked.questions


@pytest.mark.parametrize("methods", COMBINATIONS, ids="-".join)
async def test_what_is_off_asks_nothing(tmp_path: Path, methods: Iterable[Method]) -> None:
    asked = await questions(configured(tmp_path, f"methods = {[str(method) for method in methods]}"))
    assert sorted({question for method in methods for question in QUESTIONS[method]}) == sorted(asked)


async def test_an_opendkim_conf_asks_for_the_key_alone(tmp_path: Path) -> None:
    (tmp_path / "opendkim.conf").write_text("Mode v\nSocket inet:8891@localhost\nInternalHosts 203.0.113.1\n")
    config = load(tmp_path / "opendkim.conf", ask=no_postfix).config
    assert [KEY] == await questions(config)


async def test_the_keys_of_a_trusted_sealer_are_asked_for_where_dmarc_fails(tmp_path: Path) -> None:
    config = configured(tmp_path, 'methods = ["dmarc"]\ndmarc = "reject"\ntrusted_sealers = ["list.example"]')
    forged = ZONE.replace(txt(RECORD), '"v=DKIM1; p="').replace("192.0.2.1 -all", "192.0.2.9 -all")
    sealers = QUESTIONS[Method.ARC][0]
    assert [False, True] == [sealers in await questions(config, zone) for zone in (ZONE, forged)]
