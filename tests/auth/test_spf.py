# SPDX-License-Identifier: GPL-3.0-or-later
"""SPF: the whole public suite of RFC 7208, and what it leaves open."""

import asyncio
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.auth import spf
from gatekeeper.auth.spf import SpfFinding, SpfResult, check_helo, check_mail_from
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.resolver import Resolver, TableResolver
from gatekeeper.dnsclient.zone import Zone
from tests.support.needs import require_corpus
from tests.support.zones import Asked, suite_zone, txt


async def mail_from(zone: str | Resolver, sender: str = "user@example.com", client: str = "192.0.2.1") -> SpfFinding:
    resolver = TableResolver(Zone.parse(zone)) if isinstance(zone, str) else zone
    return await check_mail_from(
        resolver, address=ip_address(client), helo="mail.example.net", sender=sender, receiver="mx.example.org"
    )


async def test_every_case_of_the_public_suite_comes_out_as_it_should() -> None:
    corpus = require_corpus("spf-rfc7208.yml")
    wrong, count = [], 0
    for scenario in filter(None, yaml.safe_load_all(corpus.read_text("utf-8"))):
        resolver = CachingResolver(TableResolver(suite_zone(scenario["zonedata"])))
        for name, test in scenario["tests"].items():
            count += 1
            found, again = [
                await check_mail_from(
                    resolver,
                    address=ip_address(test["host"]),
                    helo=test["helo"],
                    sender=test["mailfrom"],
                    receiver="mx.example.org",
                )
                for _ in range(2)
            ]
            assert found == again, name
            allowed = test["result"] if isinstance(test["result"], list) else [test["result"]]
            words = test.get("explanation", found.explanation).removesuffix("DEFAULT")
            if found.result not in allowed or found.explanation != words:
                wrong.append((name, allowed, words, found))
    assert [] == wrong
    assert 203 == count


async def test_an_outcome_holds_until_one_of_its_answers_changes() -> None:
    now = 0.0
    asked = Asked('example.com TXT "v=spf1 include:a.example -all"\na.example TXT "v=spf1 ip4:192.0.2.1 -all"')
    resolver = CachingResolver(asked, lambda: now)
    found = [await mail_from(resolver), await mail_from(resolver)]
    asked.zone('example.com TXT "v=spf1 include:a.example -all"\na.example TXT "v=spf1 ip4:192.0.2.2 -all"')
    now = 4000.0
    found.append(await mail_from(resolver))
    assert [SpfResult.PASS, SpfResult.PASS, SpfResult.FAIL] == [one.result for one in found]
    assert 4 == len(asked.questions)


async def test_an_outcome_that_took_a_dns_error_is_not_kept() -> None:
    zone = 'errors.example TXT "v=spf1 ptr ip4:192.0.2.1 -all"\n1.2.0.192.in-addr.arpa PTR !SERVFAIL'
    assert SpfResult.PASS == (await mail_from(CachingResolver(Asked(zone)), "a@errors.example")).result
    assert "errors.example" not in {name for _, name in spf._outcomes}


async def test_a_record_with_macros_is_evaluated_for_each_sender() -> None:
    resolver = CachingResolver(
        Asked('example.com TXT "v=spf1 exists:%{l}.example.net -all"\na.example.net A 127.0.0.2')
    )
    found = [await mail_from(resolver, f"{user}@example.com") for user in ("b", "a", "b", "a")]
    assert [SpfResult.FAIL, SpfResult.PASS] * 2 == [one.result for one in found]


async def test_a_listed_client_passes_and_the_reason_names_the_mechanism() -> None:
    found = await mail_from('example.com TXT "v=spf1 ip4:192.0.2.0/24 -all"')
    reason, mechanism = "example.com lets 192.0.2.1 send: ip4:192.0.2.0/24", "ip4:192.0.2.0/24"
    assert SpfFinding(SpfResult.PASS, "mailfrom", "example.com", "", reason, mechanism, True) == found


SIDE_BY_SIDE = " ".join(f"ip4:{first}.0.0.0/8" for first in range(256))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("ip4:192.0.0.0/8 -all", True),
        ("ip4:17.0.0.0/8 ip4:192.0.2.0/24 -all", True),
        ("ip4:192.0.0.0/7 -all", False),
        ("ip4:0.0.0.0/0", False),
        ("ip4:1.0.0.0/2 ip4:64.0.0.0/2 ip4:128.0.0.0/2 ip4:192.0.0.0/2", False),
        (SIDE_BY_SIDE, False),
        (f"ip4:192.0.0.0/8 {SIDE_BY_SIDE}", False),
        ("include:half.example include:quarter.example ip4:192.0.2.1", False),
        ("a:host.example/0//64 -all", False),
        ("a:host.example/1", False),
        ("a:host.example/24//0 -all", True),
        ("a:many.example/8 -all", False),
        ("mx:host.example/0", False),
        ("mx:host.example/24 -all", True),
        ("exists:yes.s.example -all", False),
        ("exists:%{i}.s.example -all", False),
        ("exists:%{ir}.%{v}.s.example -all", False),
        ("a:%{i}.addresses.example -all", False),
        ("a:%{d}.here.example -all", True),
        ("include:%{i}.records.example -all", False),
        ("include:%{L}.records.example -all", False),
        ("redirect=%{i}.records.example", False),
        ("include:%{d}.here.example -all", True),
        ("include:open.example -all", False),
        ("include:turn.example -all", False),
        ("redirect=turn.example", False),
        ("include:nested.example -all", True),
        ("redirect=nested.example", True),
        ("include:exists.example -all", False),
        ("?include:nested.example +all", False),
        ("include:no.example all", False),
        ("ptr:example.com -all", False),
        ("+IP4:192.0.2.1/32 -ALL", True),
        ("+ALL", False),
        ("ip4:192.0.2.0/24 -all", True),
        ("include:other.example -all", True),
        ("+all", False),
        ("all", False),
        ("ip4:0.0.0.0/1 ip4:128.0.0.0/1", False),
        ("redirect=open.example", False),
        ("ip4:198.51.100.1 ?all", False),
    ],
)
async def test_a_pass_that_anybody_gets_authenticates_nobody(record: str, expected: bool) -> None:
    zone = f"""
example.com TXT {txt(f"v=spf1 {record}")}
other.example TXT "v=spf1 ip4:192.0.2.1 -all"
open.example TXT "v=spf1 +all"
turn.example TXT "v=spf1 redirect=open.example"
nested.example TXT "v=spf1 redirect=other.example"
no.example TXT "v=spf1 -ip4:192.0.2.1 +all"
half.example TXT "v=spf1 ip4:0.0.0.0/1"
quarter.example TXT "v=spf1 ip4:128.0.0.0/2"
exists.example TXT "v=spf1 exists:%{{i}}.s.example -all"
host.example A 192.0.2.1
host.example MX 10 host.example
many.example A 192.0.2.1
many.example A 193.0.2.1
*.s.example A 127.0.0.2
*.addresses.example A 192.0.2.1
*.records.example TXT "v=spf1 ip4:192.0.2.1 -all"
example.com.here.example A 192.0.2.1
example.com.here.example TXT "v=spf1 ip4:192.0.2.1 -all"
1.2.0.192.in-addr.arpa PTR example.com
example.com A 192.0.2.1
"""
    found = await mail_from(zone)
    assert (SpfResult.PASS if "?" not in record else SpfResult.NEUTRAL, expected) == (
        found.result,
        found.authenticates,
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("ip6:2001:db8::/32 -all", True),
        ("ip6:2000::/19 -all", True),
        ("ip6:2000::/18 -all", False),
        ("ip6:::/0", False),
        ("ip6:2001:db8::/19 ip6:2001:2000::/19 -all", False),
        ("ip4:0.0.0.0/0 ip6:2001:db8::1 -all", True),
        ("a:host.example/0//64 -all", True),
        ("a:host.example/24//3 -all", False),
        ("a:host.example//0 -all", False),
    ],
)
async def test_an_ipv6_network_authenticates_if_one_provider_could_have_it(record: str, expected: bool) -> None:
    zone = f'example.com TXT "v=spf1 {record}"\nhost.example AAAA 2001:db8::1'
    found = await mail_from(zone, client="2000::1" if record.startswith("ip6:2000") else "2001:db8::1")
    assert (SpfResult.PASS, expected) == (found.result, found.authenticates)


async def test_whether_a_pass_authenticates_is_cached_with_it() -> None:
    for record, expected in (("ip4:192.0.2.1", True), ("ip4:0.0.0.0/0", False)):
        resolver = CachingResolver(Asked(f'example.com TXT "v=spf1 {record}"'))
        assert [expected] * 2 == [(await mail_from(resolver)).authenticates for _ in range(2)]


async def test_another_client_fails_with_the_domains_own_words() -> None:
    found = await mail_from('example.com TXT "v=spf1 -all exp=why.example.com"\nwhy.example.com TXT "%{i} is not ours"')
    assert (SpfResult.FAIL, "192.0.2.1 is not ours") == (found.result, found.explanation)
    assert "example.com does not let 192.0.2.1 send: -all" == found.reason


async def test_an_explanation_cannot_end_a_reply_line() -> None:
    evil = txt("no\r\n250 OK\r\nSubject: %{s} \x1b[31m")
    found = await mail_from(f'example.com TXT "v=spf1 -all exp=why.example.com"\nwhy.example.com TXT {evil}')
    assert "no??250 OK??Subject: user@example.com ?[31m" == found.explanation


async def test_an_explanation_is_not_fetched_for_a_client_that_passes() -> None:
    asked = Asked('example.com TXT "v=spf1 exp=why.example.com +all"')
    assert SpfResult.PASS == (await mail_from(asked)).result
    assert [("example.com", "TXT")] == asked.questions


async def test_each_question_is_asked_once_and_the_hosts_of_an_mx_together() -> None:
    asked = Asked(
        'example.com TXT "v=spf1 mx -all"\nexample.com MX 10 a.example.com\nexample.com MX 20 b.example.com\n'
        "a.example.com A 198.51.100.1\nb.example.com A 192.0.2.1"
    )
    assert SpfResult.PASS == (await mail_from(asked)).result
    assert 4 == len(asked.questions) == len(set(asked.questions))


FOUR_ONLY = """
example.com MX 10 a.example.com
example.com MX 20 b.example.com
example.com MX 30 c.example.com
a.example.com A 192.0.2.11
b.example.com A 192.0.2.12
c.example.com A 192.0.2.13
1.2.0.192.in-addr.arpa PTR gone1.example
1.2.0.192.in-addr.arpa PTR gone2.example
1.2.0.192.in-addr.arpa PTR gone3.example
*.listed.example A 127.0.0.2
"""


@pytest.mark.parametrize(
    ("record", "client", "expected"),
    [
        ("mx -all", "2001:db8::1", SpfResult.FAIL),
        ("mx mx:a.example.com mx:b.example.com -all", "2001:db8::1", SpfResult.FAIL),
        ("mx:a.example.com mx:b.example.com mx:c.example.com -all", "2001:db8::1", SpfResult.PERMERROR),
        ("a:a.example.com a:b.example.com -all", "2001:db8::1", SpfResult.FAIL),
        ("a:a.example.com a:b.example.com a:c.example.com -all", "2001:db8::1", SpfResult.PERMERROR),
        ("a:x.example a:y.example a:z.example -all", "192.0.2.1", SpfResult.PERMERROR),
        ("a:x.example exists:y.example mx:z.example -all", "192.0.2.1", SpfResult.PERMERROR),
        ("a:x.example a:x.example a:x.example -all", "192.0.2.1", SpfResult.PERMERROR),
        ("a:x.example a:y.example mx -all", "192.0.2.1", SpfResult.FAIL),
        ("ptr -all", "192.0.2.1", SpfResult.FAIL),
        ("ptr ptr:a.example ptr:b.example ptr:c.example -all", "192.0.2.1", SpfResult.FAIL),
        ("ptr ptr:a.example ptr:b.example ptr:c.example -all", "192.0.2.2", SpfResult.FAIL),
        ("ptr a:x.example a:y.example -all", "192.0.2.1", SpfResult.FAIL),
        ("-exists:%{p}.listed.example -all", "192.0.2.1", SpfResult.FAIL),
        ("a:%{p}.x.example a:y.example -all", "192.0.2.1", SpfResult.FAIL),
        ("exists:%{p}.w.example exists:%{p}.x.example exists:%{p}.y.example -all", "192.0.2.1", SpfResult.PERMERROR),
    ],
)
async def test_a_term_is_void_if_what_it_asks_for_does_not_exist_and_counts_once(
    record: str, client: str, expected: SpfResult
) -> None:
    zone = f"example.com TXT {txt(f'v=spf1 {record}')}" + FOUR_ONLY
    assert expected == (await mail_from(zone, client=client)).result


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("Redirect=fails.example", SpfResult.FAIL),
        ("REDIRECT=fails.example", SpfResult.FAIL),
        ("redirect=fails.example Redirect=fails.example", SpfResult.PERMERROR),
        ("-all exp=why.example EXP=why.example", SpfResult.PERMERROR),
        ("-all eXp=", SpfResult.PERMERROR),
        ("x-note=1 X-Note=2 x-note=3 -all", SpfResult.FAIL),
        ("redirect=%{x} -all", SpfResult.PERMERROR),
        ("redirect=nothing.example ?all", SpfResult.NEUTRAL),
        (f"{'a:here.example ' * 10}redirect=fails.example ?all", SpfResult.NEUTRAL),
        (f"{'a:here.example ' * 10}ip4:192.0.2.1 redirect=fails.example", SpfResult.PASS),
        (f"{'a:here.example ' * 9}redirect=fails.example", SpfResult.FAIL),
        (f"{'a:here.example ' * 10}redirect=fails.example", SpfResult.PERMERROR),
        (f"{'a:here.example ' * 10}?all a:here.example", SpfResult.NEUTRAL),
    ],
)
async def test_a_modifier_has_its_name_in_any_case_and_counts_where_it_is_reached(
    record: str, expected: SpfResult
) -> None:
    zone = f"""
example.com TXT {txt(f"v=spf1 {record}")}
fails.example TXT "v=spf1 -all"
here.example A 192.0.2.99
"""
    assert expected == (await mail_from(zone)).result


async def test_an_explanation_is_found_by_its_name_in_any_case() -> None:
    found = await mail_from('example.com TXT "v=spf1 -all eXP=why.example.com"\nwhy.example.com TXT "no"')
    assert "no" == found.explanation


async def test_an_exchanger_that_cannot_be_looked_up_matters_only_if_no_earlier_one_matches() -> None:
    hosts = "example.com MX 10 a.example.com\nexample.com MX 20 b.example.com\nb.example.com A !SERVFAIL\n"
    zone = f'example.com TXT "v=spf1 mx -all"\na.example.com A 192.0.2.1\n{hosts}'
    found = [await mail_from(zone), await mail_from(zone, client="192.0.2.2")]
    assert [SpfResult.PASS, SpfResult.TEMPERROR] == [one.result for one in found]


@pytest.mark.parametrize("client", ["::ffff:192.0.2.1", "192.0.2.1"])
async def test_an_ipv4_mapped_client_is_the_ipv4_client(client: str) -> None:
    assert SpfResult.PASS == (await mail_from('example.com TXT "v=spf1 ip4:192.0.2.1 -all"', client=client)).result


async def test_a_zone_index_of_the_client_does_not_matter() -> None:
    resolver = TableResolver(Zone.parse('example.com TXT "v=spf1 ip6:fe80::1 -all"'))
    found = await check_mail_from(
        resolver, address=IPv6Address("fe80::1%eth0"), helo="h", sender="a@example.com", receiver=""
    )
    assert SpfResult.PASS == found.result


async def test_an_unknown_client_address_gives_none() -> None:
    found = await check_mail_from(Asked(""), address=None, helo="a.example", sender="a@b.example", receiver="")
    assert (SpfResult.NONE, "the client's address is not known") == (found.result, found.reason)


async def test_the_null_sender_is_judged_by_its_helo_name() -> None:
    found = await mail_from('mail.example.net TXT "v=spf1 -all"', sender="")
    assert (SpfResult.FAIL, "helo", "mail.example.net") == (found.result, found.identity, found.domain)


async def test_the_helo_name_can_be_judged_by_itself() -> None:
    found = await check_helo(
        Asked('h.example TXT "v=spf1 a -all"\nh.example A 192.0.2.1'),
        address=ip_address("192.0.2.1"),
        helo="H.example.",
        receiver="",
    )
    assert (SpfResult.PASS, "helo", "h.example") == (found.result, found.identity, found.domain)


async def test_a_u_label_is_looked_up_as_its_a_label() -> None:
    found = await mail_from('xn--bcher-kva.example TXT "v=spf1 +all"', sender="user@bücher.example")
    assert (SpfResult.PASS, "xn--bcher-kva.example") == (found.result, found.domain)


async def test_a_local_part_beyond_ascii_matches_nothing() -> None:
    asked = Asked('example.com TXT "v=spf1 exists:%{l}.example.com ?all"')
    assert SpfResult.NEUTRAL == (await mail_from(asked, sender="jürgen@example.com")).result
    assert [("example.com", "TXT")] == asked.questions


async def test_an_at_sign_in_a_quoted_local_part_does_not_choose_the_domain() -> None:
    found = await mail_from(
        'good.example TXT "v=spf1 +all"\nexample.com TXT "v=spf1 -all"', sender='"a@good.example"@example.com'
    )
    assert (SpfResult.FAIL, "example.com") == (found.result, found.domain)


@pytest.mark.parametrize("fault", ["SERVFAIL", "TIMEOUT"])
async def test_dns_trouble_is_a_temporary_error(fault: str) -> None:
    assert SpfResult.TEMPERROR == (await mail_from(f"example.com TXT !{fault}")).result
    assert SpfResult.TEMPERROR == (await mail_from(f'example.com TXT "v=spf1 mx"\nexample.com MX !{fault}')).result


async def test_trouble_with_the_clients_name_only_means_that_ptr_does_not_match() -> None:
    found = await mail_from('example.com TXT "v=spf1 ptr ?all"\n1.2.0.192.in-addr.arpa PTR !SERVFAIL')
    assert SpfResult.NEUTRAL == found.result


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 a:" + "a" * 9000,
        "v=spf1 " + " ".join(f"m{n}=x" for n in range(1600)),
        "v=spf1 x=" + "%{" * 4000,
        "v=spf1 exists:%{d" + "9" * 400 + "}.example.com",
        "v=spf1 ip4:192.0.2.1/" + "9" * 5000,
        "v=spf1 include:example.com",
        "v=spf1 redirect=example.com",
        "v=spf1 " + "a:%{p}.example.com " * 400,
    ],
)
async def test_a_record_made_to_cost_time_gets_an_answer(record: str) -> None:
    async with asyncio.timeout(10):
        await mail_from(f"example.com TXT {txt(record)}")


async def test_a_record_of_mail_exchangers_without_end_stays_within_the_limits() -> None:
    hosts = "\n".join(f"m{n}.example.com MX {n} h{n}x{m}.example.com" for n in range(12) for m in range(10))
    zone = f"example.com TXT {txt('v=spf1 ' + ' '.join(f'mx:m{n}.example.com' for n in range(12)))}\n{hosts}"
    assert SpfResult.PERMERROR == (await mail_from(zone)).result


TERMS = st.sampled_from(
    [
        "a",
        "mx",
        "ptr",
        "include:b.example",
        "exists:%{ir}.%{v}.x",
        "redirect=b.example",
        "exp=e.example",
        "a/33",
        "ip4:192.0.2.0/24",
        "ip4:%",
        "ip6:::",
        "all",
        "-all",
        "?all",
        "%{",
        "a:",
        "a:/",
        "mx//0",
        "//128",
        "=",
        "==",
        "-",
        "x=%",
        "%%{s}",
        "%{z}",
        "%{d0}",
        "%{d99r+}",
        "include:",
        "\x01",
    ]
)


@settings(max_examples=150, deadline=None)
@given(terms=st.lists(TERMS, max_size=8), noise=st.binary(max_size=12), client=st.ip_addresses())
def test_no_record_raises_whatever_it_says(terms: list[str], noise: bytes, client: Any) -> None:
    record = txt(b"v=spf1 " + " ".join(terms).encode() + noise)
    zone = f'example.com TXT {record}\nb.example TXT {record}\ne.example TXT "%{{s}} %{{c}}"\nexample.com MX 5 .'
    found = asyncio.run(mail_from(zone, client=str(client)))
    assert isinstance(found.result, SpfResult)
    assert found.reason.isprintable()


@settings(max_examples=100, deadline=None)
@given(sender=st.text(max_size=30), helo=st.text(max_size=30))
def test_no_sender_and_no_helo_raises(sender: str, helo: str) -> None:
    found = asyncio.run(
        check_mail_from(Asked(""), address=ip_address("192.0.2.1"), helo=helo, sender=sender, receiver="")
    )
    assert SpfResult.NONE == found.result
    assert found.reason.isascii()


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(
        st.binary(max_size=6) | st.sampled_from([b"%{s}", b"%{i}", b"%{", b"%%", b"%_", b"\r\n250 OK"]), max_size=8
    )
    .map(b"".join)
    .filter(bool),
    local=st.text(max_size=10),
)
def test_no_explanation_raises_or_leaves_its_line(text: bytes, local: str) -> None:
    zone = f'example.com TXT "v=spf1 -all exp=why.example.com"\nwhy.example.com TXT {txt(text)}'
    found = asyncio.run(mail_from(zone, f"{local}@example.com"))
    assert SpfResult.FAIL == found.result
    assert found.explanation.isascii()
    assert found.explanation.isprintable()
    assert len(found.explanation) <= 400
