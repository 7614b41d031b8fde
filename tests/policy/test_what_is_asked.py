# SPDX-License-Identifier: GPL-3.0-or-later
"""What the policy daemon asks the DNS ahead of need: SPF where an answer is slow and a check may ask, nothing else."""

import asyncio
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from gatekeeper.app.app import open_app
from gatekeeper.app.plan import prepare
from gatekeeper.config import config_file
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.dnsclient.resolver import Answer
from gatekeeper.stores.memory import MemoryStore
from tests.support.postconf import no_postfix
from tests.support.zones import Asked

SPF, SLOW = ("example.com", "TXT"), ("example.com", "MX")
REQUEST = Request(
    stage=Stage.RCPT,
    client=Client(address=ip_address("192.0.2.1"), name="unknown"),
    helo="mail.example.com",
    sender="joe@example.com",
    recipient="ann@ours.example",
    instance="1",
)
FILES = {
    "proven": "192.0.2.0/24 OK if=spf\n",
    "plain": "192.0.2.0/24 OK\nexample.com OK if=dkim\n",
    "dmarc": "example.com OK if=dmarc\n",
    "within": "if 192.0.2.0/24\n192.0.2.1 OK if=spf\nendif\n",
    "patterns": "/example/ OK if=spf\n",
    "named": "example.com waits\n",
    "judged": "example.com spf\n",
}


class SlowMx(Asked):
    """Answers for the domain of the sender only once its SPF record has been asked for, or after some time."""

    def __init__(self) -> None:
        super().__init__('example.com MX 10 mail.example.com\nexample.com TXT "v=spf1 -all"\n')
        self._spf_asked = asyncio.Event()
        self.ahead = False
        """Whether SPF was asked for before the check that waited had its answer."""

    async def query(self, name: str, type: str) -> Answer:
        if (name, type) == SPF:
            self._spf_asked.set()
        if (name, type) == SLOW:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._spf_asked.wait(), 0.2)
            self.ahead = self._spf_asked.is_set()
        return await super().query(name, type)


async def is_begun_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch, restrictions: str, more: str = "") -> bool:
    """Whether SPF was begun while the first of these restrictions waited for a slow answer."""
    monkeypatch.setattr("gatekeeper.dnsclient.time_limit.SLOW", 0.01)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    path = folder / "gatekeeper.toml"
    path.write_text(
        f'mynetworks = []\n[policy]\nrestrictions = "reject_unknown_sender_domain, {restrictions}"\n'
        f'[policy.classes]\nwaits = "greylist"\njudges = "spf"\n{more}'
    )
    resolver = SlowMx()
    app = await open_app(
        prepare(config_file.load(path, no_postfix)),
        resolver=resolver,
        store=MemoryStore(lambda: 1e9),
        clock=lambda: 1e9,
    )
    await app.decide(REQUEST)
    assert SLOW in resolver.questions
    return resolver.ahead


@pytest.mark.parametrize(
    ("restrictions", "more"),
    [
        ("permit", ""),
        ("spf", ""),  # off, if nobody says otherwise
        ("greylist, waits", '[checks.greylist]\nmode = "off"'),
        ("judges", ""),
        ("check_sender_access hash:plain, check_client_access cidr:plain", ""),
        ("check_sender_access hash:judged", ""),
        ("access", '[checks.access]\nsender = ["hash:plain"]'),
        ("access", '[checks.access]\nmode = "off"\nsender = ["hash:dmarc"]'),
        ("permit", '[checks.spf]\nmode = "enforce"\n[policy.contexts.other]\nrestrictions = "spf, greylist"'),
        ("permit", '[policy.contexts.other]\nrestrictions = "check_sender_access hash:dmarc"'),
        ('permit"\ndata_restrictions = "check_sender_access hash:dmarc', ""),  # another stage
    ],
)
async def test_where_no_check_asks_for_spf_a_slow_answer_does_not_begin_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restrictions: str, more: str
) -> None:
    assert not await is_begun_ahead(tmp_path, monkeypatch, restrictions, more)


@pytest.mark.parametrize(
    ("restrictions", "more"),
    [
        ("greylist", ""),
        ("greylist", '[checks.greylist]\nmode = "observe"'),
        ("spf", '[checks.spf]\nmode = "enforce"'),
        ("spf", '[checks.spf]\nmode = "observe"'),
        ("warn_if_reject spf", '[checks.spf]\nmode = "enforce"'),
        ("waits", ""),
        ("warn_if_reject waits", ""),
        ("check_client_access cidr:proven", ""),
        ("check_client_access cidr:within", ""),
        ("check_client_access hash:proven", ""),
        ("check_sender_access hash:dmarc", ""),
        ("check_sender_access pcre:patterns", ""),
        ("check_sender_access regexp:patterns", ""),
        ("check_sender_access inline:{{example.com = OK if=spf}}", ""),
        ("check_sender_access static:{OK if=spf}", ""),
        ("check_sender_access hash:named", ""),
        ("check_sender_mx_access hash:named", ""),
        ("check_ccert_access hash:named", ""),
        ("access", '[checks.access]\nsender = ["hash:plain", "hash:dmarc"]'),
    ],
)
async def test_where_a_check_may_ask_for_spf_a_slow_answer_begins_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restrictions: str, more: str
) -> None:
    assert await is_begun_ahead(tmp_path, monkeypatch, restrictions, more)
