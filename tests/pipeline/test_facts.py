# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fact is found out once, however many ask, and trouble is a finding."""

import asyncio
import re
from ipaddress import ip_address

import pytest

from gatekeeper.auth.dkim import DkimResult, DkimVerifier
from gatekeeper.auth.dmarc import DmarcResult
from gatekeeper.auth.iprev import IprevResult
from gatekeeper.auth.results import Method, authentication_results
from gatekeeper.auth.spf import SpfResult
from gatekeeper.core.message import parse
from gatekeeper.core.request import Client
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.resolver import Answer, Resolver, WouldWait, run_without_waiting
from gatekeeper.milter.message import BUDGET
from gatekeeper.pipeline.facts import GRACE, Facts
from tests.support.dkim_messages import MESSAGE, NAME, NOW, RECORD, signed
from tests.support.needs import ROOT
from tests.support.service import need_milter
from tests.support.zones import Asked, txt

ZONE = f"""
example.com TXT "v=spf1 ip4:192.0.2.1 -all"
mail.example.com TXT "v=spf1 a -all"
mail.example.com A 192.0.2.1
1.2.0.192.in-addr.arpa PTR mail.example.com
_dmarc.example.com TXT "v=DMARC1; p=reject"
{NAME} TXT {txt(RECORD)}
"""


def facts(resolver: Resolver, message: bytes | None = None, sender: str | None = "joe@example.com") -> Facts:
    known = Facts(
        resolver,
        client=Client(address=ip_address("192.0.2.1")),
        helo="mail.example.com",
        sender=sender,
        receiver="mx.example.org",
    )
    if message is not None:
        headers, body = parse(message)
        verifier = DkimVerifier(headers, now=NOW)
        verifier.update(body)
        known.add_message(headers, verifier)
    return known


async def test_everything_about_a_good_message_passes() -> None:
    known = facts(Asked(ZONE), signed())
    assert IprevResult.PASS == (await known.iprev()).result
    assert SpfResult.PASS == (await known.spf()).result
    assert SpfResult.PASS == (await known.helo_spf()).result
    assert [DkimResult.PASS] == [found.result for found in await known.dkim()]
    assert DmarcResult.PASS == (await known.dmarc()).result


async def test_the_field_is_written_from_the_facts() -> None:
    field = await authentication_results("mx.example.org", facts(Asked(ZONE), signed()))
    text = field.value.decode()
    assert all(f"{method}=pass" in text for method in ("iprev", "spf", "dkim", "dmarc"))
    assert "smtp.mailfrom=example.com" in text
    assert "smtp.helo=mail.example.com" in text


async def test_a_message_without_a_chain_is_told_with_its_client() -> None:
    field = await authentication_results("mx.example.org", facts(Asked(ZONE), signed()), [Method.ARC])
    assert b" mx.example.org;\r\n\tarc=none (the message has no ARC sets) smtp.remote-ip=192.0.2.1" == field.value
    field = await authentication_results("mx.example.org", facts(Asked(ZONE), signed()), [Method.DKIM])
    assert b"arc=" not in field.value


async def test_many_askers_at_once_cause_each_question_once() -> None:
    asked = Asked(ZONE)
    known = facts(asked, signed())
    known.start_envelope()
    await asyncio.gather(known.dmarc(), known.spf(), known.dkim(), known.spf(), known.dmarc(), known.iprev())
    assert 5 == len(asked.questions) == len(set(asked.questions)), asked.questions


async def test_what_is_remembered_is_found_out_in_any_thread_without_an_event_loop() -> None:
    asked = Asked(ZONE)
    remembering = CachingResolver(asked)

    def field_of(known: Facts) -> bytes:
        assert known.recall_envelope()
        assert known.recall_message()
        return run_without_waiting(authentication_results("mx.example.org", known)).value

    cold = facts(remembering, signed())
    with pytest.raises(WouldWait):
        await asyncio.to_thread(run_without_waiting, authentication_results("mx.example.org", cold))
    slowly = (await authentication_results("mx.example.org", facts(remembering, signed()))).value
    before = len(asked.questions)
    assert slowly == await asyncio.to_thread(field_of, facts(remembering, signed()))
    assert before == len(asked.questions)


async def test_trouble_that_is_remembered_is_a_finding_in_any_thread() -> None:
    remembering = CachingResolver(Asked("example.com ANY !SERVFAIL"))
    await facts(remembering).spf()
    known = facts(remembering)
    assert SpfResult.TEMPERROR == (await asyncio.to_thread(run_without_waiting, known.spf())).result


async def test_what_was_fetched_ahead_is_not_fetched_again() -> None:
    asked = Asked(ZONE)
    known = facts(asked, signed())
    await known.prefetch()
    before = len(asked.questions)
    await known.dkim()
    assert before == len(asked.questions)


async def test_an_asker_that_gives_up_does_not_take_the_answer_from_the_others() -> None:
    gate = asyncio.Event()

    class Slow(Asked):
        async def query(self, name: str, type: str) -> Answer:
            await gate.wait()
            return await super().query(name, type)

    known = facts(Slow(ZONE))
    impatient, patient = asyncio.create_task(known.spf()), asyncio.create_task(known.spf())
    await asyncio.sleep(0)
    impatient.cancel()
    gate.set()
    assert SpfResult.PASS == (await patient).result
    assert impatient.cancelled()


async def test_closing_cancels_what_nobody_waits_for() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    class Hanging(Asked):
        async def query(self, name: str, type: str) -> Answer:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            raise AssertionError

    known = facts(Hanging(""))
    known.start_spf()
    async with asyncio.timeout(5):
        await started.wait()
        known.close()
        await stopped.wait()


async def test_dns_trouble_is_a_finding_and_no_exception() -> None:
    zone = f"""
        example.com ANY !SERVFAIL
        mail.example.com ANY !TIMEOUT
        1.2.0.192.in-addr.arpa PTR !SERVFAIL
        _dmarc.example.com TXT !TIMEOUT
        {NAME} TXT !SERVFAIL
    """.replace("\n        ", "\n")
    known = facts(Asked(zone), signed())
    assert IprevResult.TEMPERROR == (await known.iprev()).result
    assert SpfResult.TEMPERROR == (await known.spf()).result
    assert SpfResult.TEMPERROR == (await known.helo_spf()).result
    assert [DkimResult.TEMPERROR] == [found.result for found in await known.dkim()]
    assert DmarcResult.TEMPERROR == (await known.dmarc()).result


async def test_the_null_sender_counts_for_dmarc_by_its_helo_name() -> None:
    known = facts(Asked(ZONE), MESSAGE, sender="")
    assert "helo" == (await known.spf()).identity
    assert (await known.dmarc()).spf_aligned
    field = await authentication_results("mx.example.org", known)
    assert 1 == field.value.count(b"spf=")


async def test_before_there_is_a_sender_or_a_message_nothing_is_found() -> None:
    known = facts(Asked(""), sender=None)
    assert SpfResult.NONE == (await known.spf()).result
    assert [DkimResult.NONE] == [found.result for found in await known.dkim()]
    assert DmarcResult.NONE == (await known.dmarc()).result


class Silent(Asked):
    """Never answers about names that end in one of `silent`."""

    def __init__(self, zone: str, *silent: str) -> None:
        super().__init__(zone)
        self._names = silent

    async def query(self, name: str, type: str) -> Answer:
        if name.endswith(self._names):
            await asyncio.Event().wait()
        return await super().query(name, type)


async def test_when_the_time_is_up_what_is_known_is_told_and_the_rest_is_temperror() -> None:
    other = signed(signed(), d="slow.example")
    known = facts(Silent(ZONE, "slow.example", "arpa"), other, sender="joe@slow.example")
    known.patience(0)
    text = (await authentication_results("mx.example.org", known)).value.decode()
    assert ["temperror", "temperror", "pass"] == re.findall(r"\b(?:iprev|spf)=(\w+)", text)
    assert ["temperror", "pass"] == re.findall(r"\bdkim=(\w+)", text)
    assert ["pass"] == re.findall(r"\bdmarc=(\w+)", text)
    assert "smtp.mailfrom=slow.example" in text
    known.close()


async def test_dmarc_is_undecided_when_the_time_is_up_before_its_record_is_there() -> None:
    known = facts(Silent(ZONE, "_dmarc.example.com"), signed())
    known.patience(0)
    found = await known.dmarc()
    assert (DmarcResult.TEMPERROR, "example.com") == (found.result, found.domain)
    assert [DkimResult.PASS] == [one.result for one in await known.dkim()]
    known.close()


async def test_what_was_told_once_the_time_was_up_is_told_for_good() -> None:
    """The checks, the header and the log are about the same finding; and DMARC has its grace once."""
    silent = Silent(ZONE, "example.com")
    known = facts(silent, sender="joe@example.com")
    known.patience(0)
    first = await known.spf()
    silent._names = ("nothing.example",)
    known._tasks["spf"].cancel()
    assert SpfResult.TEMPERROR == first.result
    assert first is await known.spf()
    known.close()


def test_the_milter_answers_before_postfix_gives_up() -> None:
    need_milter()
    from gatekeeper.milter import callbacks

    timeouts = [
        int(text) for text in re.findall(r"content_timeout=(\d+)s", (ROOT / "postfix-snippets/main.cf").read_text())
    ]
    assert BUDGET + GRACE < callbacks.END_OF_MESSAGE_TIMEOUT < min(timeouts)
