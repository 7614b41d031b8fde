# SPDX-License-Identifier: GPL-3.0-or-later
"""What was verified, counted for reports: a row for what is alike, nothing about people, nothing nobody wants."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.checks.authentication.dmarc import DmarcCheck
from gatekeeper.checks.authentication.report_counter import ReportCounter
from gatekeeper.core.message import parse
from gatekeeper.core.request import Stage
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import END_OF_DATA, Pipeline
from gatekeeper.reports.counters import (
    BUCKETS,
    MAX_BUCKET_ROWS,
    RETENTION,
    CountedRow,
    bucket_key,
    build_reports,
    read_rows,
)
from gatekeeper.reports.report import AuthResult, Report
from gatekeeper.reports.summary import summarise
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import Keys, Store, StoreError
from tests.support.checking import SITE, rcpt
from tests.support.dkim_messages import NAME, NOW, RECORD, signed
from tests.support.milter_client import MilterClient
from tests.support.milter_service import INBOUND, serving
from tests.support.service import until
from tests.support.zones import txt

DAY = datetime(2026, 11, 22, tzinfo=UTC)
RUA = "rua=mailto:d@example.com"
ZONE = f"""
_dmarc.reject.example TXT "v=DMARC1; p=reject; sp=none; adkim=s; {RUA}"
_dmarc.testing.example TXT "v=DMARC1; p=reject; t=y; {RUA}"
_dmarc.none.example TXT "v=DMARC1; p=none; {RUA}"
_dmarc.silent.example TXT "v=DMARC1; p=reject"
_dmarc.web.example TXT "v=DMARC1; p=reject; rua=https://example.com/"
_dmarc.example.com TXT "v=DMARC1; p=reject; {RUA}"
example.com TXT "v=spf1 ip4:192.0.2.1 -all"
{NAME} TXT {txt(RECORD)}
"""


class World:
    def __init__(self, store: Store | None = None, **options: Any) -> None:
        self.store = store or MemoryStore(DAY.timestamp)
        self.resolver = TableResolver(Zone.parse(ZONE))
        self.pipeline = Pipeline(
            {END_OF_DATA: (ReportCounter(), DmarcCheck.model_validate({"obey": "reject", **options}))}
        )

    async def mail(self, domain: str, raw: bytes = b"", sender: str = "") -> None:
        """A message from `domain`, sent by 192.0.2.1, unsigned, or `raw`."""
        request = rcpt(sender=sender or f"someone@{domain}", stage=Stage.END_OF_MESSAGE)
        headers, body = parse(raw or f"From: <u@{domain}>\r\n\r\n".encode())
        verifier = DkimVerifier(headers, now=NOW)
        verifier.update(body)
        facts = Facts(
            self.resolver,
            client=request.client,
            helo="h.example",
            sender=request.sender,
            receiver=SITE.hostname,
            headers=headers,
            dkim=verifier,
        )
        context = Context.of(
            site=SITE,
            resolver=self.resolver,
            store=self.store,
            clock=DAY.timestamp,
            keys=Keys(b"secret"),
            facts=facts,
        )
        decision = await self.pipeline.decide(request, context)
        await context.settle(decision)

    async def reports(self) -> list[Report]:
        return build_reports(await read_rows(self.store, Keys(b"secret"), DAY), DAY, "mx.example.net")


async def test_messages_that_are_alike_are_one_row() -> None:
    world = World()
    for _ in range(3):
        await world.mail("example.com", signed())
    [report] = await world.reports()
    assert ("mx.example.net", "example.com", "reject", DAY) == (
        report.reporter,
        report.domain,
        report.policy,
        report.begin,
    )
    [row] = report.rows
    assert ("192.0.2.1", 3, "pass", True, True, ()) == (
        row.source, row.count, row.disposition, row.spf, row.dkim, row.reasons
    )  # fmt: skip
    assert ("example.com", "example.com") == (row.header_from, row.envelope_from)
    assert (
        AuthResult("spf", "example.com", "pass"),
        AuthResult("dkim", "example.com", "pass", "sel"),
    ) == row.auth_results


@pytest.mark.parametrize(
    ("domain", "options", "disposition", "reasons"),
    [
        ("reject.example", {}, "reject", ()),
        ("reject.example", {"obey": "quarantine"}, "quarantine", ("local_policy",)),
        ("reject.example", {"obey": "observe"}, "none", ("local_policy",)),
        ("reject.example", {"overrides": {"reject.example": "none"}}, "none", ("local_policy",)),
        ("testing.example", {}, "quarantine", ("policy_test_mode",)),
        ("none.example", {}, "none", ()),
        ("none.example", {"overrides": {"none.example": "reject"}}, "reject", ("local_policy",)),
    ],
)
async def test_what_became_of_a_message_and_why_stands_in_its_row(
    domain: str, options: dict[str, Any], disposition: str, reasons: tuple[str, ...]
) -> None:
    world = World(**options)
    await world.mail(domain)
    [[row]] = [report.rows for report in await world.reports()]
    assert (disposition, reasons, False, False) == (row.disposition, row.reasons, row.spf, row.dkim)


@pytest.mark.parametrize("domain", ["silent.example", "web.example", "nothing.example"])
async def test_nothing_is_counted_for_a_domain_that_wants_no_reports(domain: str) -> None:
    world = World()
    await world.mail(domain)
    assert [] == await world.reports()


async def test_the_store_learns_of_no_person() -> None:
    class Seen(MemoryStore):
        rows: ClassVar[list[bytes]] = []

        async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
            self.rows.append(bucket.encode() + row)
            assert (RETENTION, MAX_BUCKET_ROWS) == (ttl, most)
            return await super().tally(bucket, row, ttl, most)

    await World(Seen()).mail("reject.example", sender="very.private@reject.example")
    assert 1 == len(Seen.rows)
    assert not [row for row in Seen.rows if b"private" in row or b"@" in row]


async def test_a_store_that_fails_costs_nothing() -> None:
    class Down(MemoryStore):
        async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
            raise StoreError("down")

    await World(Down()).mail("reject.example")


async def test_what_is_counted_is_summed_up_as_a_report_that_was_read() -> None:
    world = World()
    await world.mail("example.com", signed())
    await world.mail("example.com", b"From: <u@example.com>\r\n\r\n", sender="x@other.example")
    [summary] = summarise(await world.reports())
    assert ("example.com", 2, 1, 1, 1) == (summary.domain, summary.total, summary.passed, summary.spf, summary.dkim)
    assert {"pass": 1, "reject": 1} == summary.dispositions


async def test_each_record_that_was_published_in_a_day_has_its_own_report() -> None:
    world = World()
    await world.mail("none.example")
    world.resolver = TableResolver(Zone.parse(f'_dmarc.none.example TXT "v=DMARC1; p=reject; {RUA}"'))
    await world.mail("none.example")
    assert ["none", "reject"] == [report.policy for report in await world.reports()]
    assert 2 == len({report.report_id for report in await world.reports()})


async def test_each_day_and_each_store_has_keys_of_its_own() -> None:
    world = World()
    await world.mail("reject.example")
    assert 1 == len(await read_rows(world.store, Keys(b"secret"), DAY.replace(hour=23)))
    assert {} == await read_rows(world.store, Keys(b"other"), DAY)
    assert {} == await read_rows(world.store, Keys(b"secret"), DAY.replace(day=23))


async def test_domains_share_buckets_evenly() -> None:
    used = {bucket_key(Keys(b"secret"), 0, f"d{number}.example") for number in range(1000)}
    assert BUCKETS == len(used)


@given(st.builds(
    CountedRow,
    domain=st.text(),
    policy_published=st.lists(st.tuples(st.text(), st.text())).map(tuple),
    source=st.text(),
    disposition=st.text(),
    spf=st.booleans(),
    dkim=st.booleans(),
    reasons=st.lists(st.text()).map(tuple),
    header_from=st.text(),
    envelope_from=st.text(),
    auth_results=st.lists(st.builds(AuthResult, st.text(), st.text(), st.text(), st.text())).map(tuple),
))  # fmt: skip
def test_a_row_comes_back_as_it_was_counted(row: CountedRow) -> None:
    assert row == CountedRow.from_bytes(row.to_bytes())


@given(st.binary() | st.text('[]"{},:0123truefalsn\\').map(str.encode))
def test_no_damaged_row_raises(row: bytes) -> None:
    assert [] == build_reports({row: 1}, DAY, "x") or CountedRow.from_bytes(row)


async def counts(state: Path) -> list[int]:
    """How often each row of today was counted, in the store at `state`."""
    store = SqliteStore(state, read_only=True)
    try:
        return [*(await read_rows(store, Keys(await store.secret()), datetime.now(UTC))).values()]
    finally:
        await store.close()


@pytest.mark.integration("gatekeeper")
def test_the_milter_counts_each_message_once_whether_its_dns_is_warm_or_not() -> None:
    zone = f'client.example TXT "v=spf1 ip4:192.0.2.1 -all"\n_dmarc.client.example TXT "v=DMARC1; p=reject; {RUA}"'
    with TemporaryDirectory(prefix="gatekeeper-test-") as folder:
        Path(folder).chmod(0o777)  # for the workers, who are nobody
        state = Path(folder, "state.db")
        with serving("verify.count = true\n", zone=zone, store=f"sqlite:{state}") as path, MilterClient(path) as client:
            client.open()
            for _ in range(3):
                client.envelope()
                client.content(INBOUND)
            until(lambda: [3] == asyncio.run(counts(state)), "three messages in one row")
