# SPDX-License-Identifier: GPL-3.0-or-later
"""What fails for hours, a name server or the store, leaves nothing of its failures behind but their words."""

import asyncio
import sqlite3
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from gatekeeper.app.app import open_app
from gatekeeper.app.plan import prepare
from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.config import config_file
from gatekeeper.core.message import Header
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.live import LiveResolver
from gatekeeper.dnsclient.resolver import Resolver, TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.facts import Facts
from gatekeeper.stores.circuit_breaker import CircuitBreaker
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import StoreError
from tests.support.postconf import no_postfix
from tests.support.raised_errors import left_behind

CONFIG = """
[policy]
restrictions = [
  "ratelimit", "warn_if_reject reject_unknown_client_hostname", "warn_if_reject reject_unknown_helo_hostname",
  "warn_if_reject reject_unknown_sender_domain", "reject_rbl_client zen.example", "reject_rhsbl_sender dbl.example",
  "greylist",
]
[checks.greylist]
learning = "0s"
"""
TROUBLE = Zone.parse(
    """
example.com       TXT "v=spf1 mx a:ptr.example.com ptr -all"
example.com       MX  10 mx.example.com
mx.example.com    A   !SERVFAIL
ptr.example.com   A   !TIMEOUT
1.2.0.192.in-addr.arpa PTR ptr.example.com
_dmarc.example.com TXT !SERVFAIL
s._domainkey.example.com TXT !TIMEOUT
1.2.0.192.zen.example A !SERVFAIL
mail.example.com  A   !SERVFAIL
mail.example.com  TXT "v=spf1 a:a.example.com include:b.example.com -all"
a.example.com     A   192.0.2.7
b.example.com     TXT "v=spf1 a:c.example.com -all"
"""
)


def down() -> Resolver:
    return LiveResolver(["127.0.0.1:1"], timeout=0.5)


def in_trouble() -> Resolver:
    return TableResolver(TROUBLE)


@pytest.mark.parametrize("dns", [down, in_trouble])
async def test_nothing_that_was_raised_is_kept(dns: type[Resolver], tmp_path: Path) -> None:
    (tmp_path / "gatekeeper.toml").write_text(CONFIG)
    (tmp_path / "state.db").write_bytes(b"not a database, but somebody may want it " * 100)
    plan = prepare(config_file.load(tmp_path / "gatekeeper.toml", no_postfix))
    resolver = CachingResolver(dns())
    store = CircuitBreaker(SqliteStore(tmp_path / "state.db"))
    app = await open_app(plan, resolver=resolver, store=store)
    checks: set[str] = set()
    with left_behind() as left:
        for _ in range(3):
            decision, context = await app.decide(REQUEST)
            await context.settle(decision)
            await find_out_all(resolver)
            checks |= {step.check for step in decision.steps}
    await store.close()
    assert 7 == len(checks)
    assert store.gone
    assert [] == left


async def test_a_store_that_others_keep_locked_leaves_nothing_behind(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db", timeout=0.02)
    await store.set("k", b"", 60.0)
    other = sqlite3.connect(tmp_path / "state.db")
    other.execute("BEGIN IMMEDIATE")
    with left_behind() as left:
        for _ in range(3):
            with suppress(StoreError):
                await store.set("k", b"", 60.0)
                raise AssertionError("it was not locked")
        await asyncio.sleep(0)  # the event loop itself holds the future that woke us up
    other.close()
    await store.close()
    assert [] == left


CLIENT = Client(address=ip_address("192.0.2.1"), name="unknown", reverse_name="unknown")
REQUEST = Request(
    stage=Stage.RCPT,
    client=CLIENT,
    helo="mail.example.com",
    sender="a@example.com",
    recipient="b@example.org",
    instance="1",
)
HEADERS = [
    Header(b"DKIM-Signature", b" v=1; a=rsa-sha256; d=example.com; s=s; h=from; bh=YQ==; b=YQ=="),
    Header(b"From", b" a@example.com"),
]


async def find_out_all(resolver: Resolver) -> None:
    known = Facts(
        resolver,
        client=CLIENT,
        helo="mail.example.com",
        sender="a@example.com",
        receiver="mx.example.org",
        headers=HEADERS,
        dkim=DkimVerifier(HEADERS, now=1e9),
    )
    known.start_envelope()
    known.start_prefetch()
    known.start_all()
    await known.iprev()
    await known.helo_spf()
    await known.dmarc()
    await known.arc()
    known.close()
