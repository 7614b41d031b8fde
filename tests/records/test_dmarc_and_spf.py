# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own DMARC and SPF records, with the mistakes that people make."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.auth.dmarc_record import DmarcPolicy, find_record
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.records import dmarc, spf
from tests.support.zones import txt

DNS = """
example.com. MX 10 mail.example.com.
mail.example.com. A 192.0.2.1
reports.example. MX 10 mail.example.com.
agreed.example. MX 10 mail.example.com.
example.com._report._dmarc.agreed.example. TXT "v=DMARC1"
slow.example. MX !TIMEOUT
silent.example. MX 0 .
"""


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        ("v=DMARC1; p=reject; rua=mailto:d@example.com", False, ""),
        ("v=DMARC1; p=reject; pct=50; rua=mailto:d@example.com", False, "pct was removed"),
        ("v=DMARC1; p=reject; rua=d@example.com", True, "lacks mailto:"),
        ("v=DMARC1; p=reject; rua=mailto:d@example.com!10m", False, "size limit"),
        ("v=DMARC1; p=reject; rua=mailto:d@example.com,", True, "comma too many"),
        ("v=DMARC1; p=reject; rua=mailto:d@nowhere.example", True, "does not accept mail"),
        ("v=DMARC1; p=reject; rua=mailto:d@reports.example", True, "example.com._report._dmarc.reports.example"),
        ("v=DMARC1; p=reject; rua=mailto:d@agreed.example", False, ""),
        ("v=DMARC1; p=reject; rua=mailto:d@slow.example", False, "does not answer"),
        ("v=DMARC1; p=reject; rua=mailto:d@silent.example", True, "does not accept mail"),
        ("v=DMARC1; p=reject; rua=mailto:d@b\u00fccher.example", True, "other characters than ASCII"),
        ("v=DMARC1; p=monitor; rua=mailto:d@example.com", True, "p=monitor is not valid"),
        ("v=DMARC1; p=none", False, "without rua"),
        ("v=DMARC1; rua=mailto:d@example.com", True, "p is missing"),
        ("v=DMARC1; p=reject; sp=none; rua=mailto:d@example.com", False, "milder than p=reject"),
        ("v=DMARC1; p=reject; p=none; rua=mailto:d@example.com", True, "appears twice"),
        ("v=DMARC1; p=reject; ruaa=mailto:d@example.com", True, "did you mean rua?"),
        ("v=DMARC1; p=reject, rua=mailto:d@example.com", True, "is not valid"),
        ("v=DMARC1 p=reject", True, "must begin with exactly"),
        ("v=dmarc1; p=reject", True, "must begin with exactly"),
        ("p=reject; v=DMARC1", True, "there is no DMARC record"),
        ("v=DMARC1; p=reject; t=y; rua=mailto:d@example.com", False, "one step less"),
        ("v=DMARC1; p=reject; fo=2; rua=mailto:d@example.com", True, "fo=2"),
        ("v=DMARC1; p=\u201creject\u201d", True, "typographic quotes"),
    ],
)
async def test_a_dmarc_record_is_judged_as_receivers_will(record: str, error: bool, words: str) -> None:
    remarks = await dmarc.examine(TableResolver(Zone.parse(DNS)), "example.com", [record])
    assert error == any(remark.error for remark in remarks)
    assert words in " | ".join(remark.what for remark in remarks)
    assert words or not remarks


ABOVE = """
_dmarc.example.com TXT "v=DMARC1; p=reject; sp=quarantine"
_dmarc.np.example TXT "v=DMARC1; p=none; np=reject"
here.np.example A 192.0.2.1
_dmarc.broken.example TXT "v=DMARC1; p=nonsense"
_dmarc.late.example TXT !TIMEOUT
_dmarc.own.example TXT "v=DMARC1; p=reject"
_dmarc.two.own.example TXT "v=DMARC1; p=none"
_dmarc.two.own.example TXT "v=DMARC1; p=reject"
_dmarc.bank TXT "v=DMARC1; p=quarantine; np=reject; psd=y"
_dmarc.other.example.com TXT "something else"
"""


@pytest.mark.parametrize(
    ("domain", "error", "words"),
    [
        ("mail.example.com", False, "that of example.com applies, with the policy quarantine"),
        ("a.b.c.example.com", False, "that of example.com applies, with the policy quarantine"),
        ("other.example.com", False, "that of example.com applies, with the policy quarantine"),
        ("here.np.example", False, "that of np.example applies, with the policy none"),
        ("gone.np.example", False, "that of np.example applies, with the policy reject"),
        ("new.bank", False, "that of bank applies, with the policy reject"),
        ("a.broken.example", True, "has no valid policy"),
        ("a.late.example", True, "does not answer right now"),
        ("two.own.example", True, "there are 2 DMARC records"),
        ("nothing.example", True, "there is no DMARC record at _dmarc.nothing.example"),
    ],
)
async def test_a_domain_without_a_record_is_told_whose_applies(domain: str, error: bool, words: str) -> None:
    resolver = TableResolver(Zone.parse(ABOVE))
    texts = await dmarc.look_up(resolver, domain)
    remark, *_ = await dmarc.examine(resolver, domain, texts, are_published=True)
    assert (error, True) == (remark.error, words in remark.what)
    judged, *_ = await dmarc.examine(resolver, domain, ["p=none"])
    assert (True, False) == (judged.error, "applies" in judged.what)


HOSTS = (
    *("example.com", "reports.example.com", "deep.reports.example.com", "apart.example.com", "one.bank", "two.bank"),
    *("a.late.example", "example.org", "sub.example.org"),
)
ORGANIZATION = """
_dmarc.example.com TXT "v=DMARC1; p=none"
_dmarc.apart.example.com TXT "v=DMARC1; p=none; psd=n"
_dmarc.bank TXT "v=DMARC1; p=none; psd=y"
_dmarc.late.example TXT !TIMEOUT
""" + "\n".join(f"{host} MX 10 mail.example.net" for host in HOSTS)


@pytest.mark.parametrize(
    ("domain", "host", "words"),
    [
        ("news.example.com", "reports.example.com", ""),  # siblings
        ("news.example.com", "deep.reports.example.com", ""),
        ("news.example.com", "example.com", ""),
        ("example.com", "reports.example.com", ""),
        ("a.one.bank", "one.bank", ""),
        ("one.bank", "two.bank", "two.bank does not agree"),  # two organizations below one public suffix
        ("news.example.com", "apart.example.com", "does not agree"),
        ("apart.example.com", "example.com", "does not agree"),
        ("example.org", "sub.example.org", ""),  # by the record that is being judged
        ("sub.example.org", "example.org", "does not agree"),  # without one above, it is an organization of its own
        ("example.com", "a.late.example", "is not known"),
    ],
)
async def test_reports_within_one_organization_need_no_consent(domain: str, host: str, words: str) -> None:
    record = "v=DMARC1; p=reject; psd=n" if domain.startswith("apart") else "v=DMARC1; p=reject"
    resolver = TableResolver(Zone.parse(ORGANIZATION))
    remarks = await dmarc.examine(resolver, domain, [f"{record}; rua=mailto:d@{host}"])
    assert bool(words) == bool(remarks)
    assert words in "".join(remark.what for remark in remarks)


async def test_two_dmarc_records_are_none() -> None:
    remarks = await dmarc.examine(TableResolver(Zone.parse(DNS)), "example.com", ["v=DMARC1; p=none"] * 2)
    assert [True] == [remark.error for remark in remarks]


async def test_a_second_record_that_receivers_ignore_does_not_make_the_first_none() -> None:
    for texts in (["v=DMARC1; p=reject", "v=dmarc1; p=none"], ["v=DMARC p=none", "v=DMARC1; p=reject"]):
        remarks = await dmarc.examine(TableResolver(Zone.parse(DNS)), "example.com", texts)
        assert ["there is another record, which receivers ignore"] == [
            remark.what.partition(";")[0] for remark in remarks if remark.error
        ]


@pytest.mark.parametrize(
    "options",
    [["--rua", "a@example.com"], ["--testing"], ["--subdomains", "none"], ["--record", "", "--policy", "none"]],
)
def test_options_that_would_be_ignored_are_a_mistake(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == cli.main(["dmarc", "record", "example.com", "--dns", "/dev/null", *options])
    assert "--policy" in capsys.readouterr().err


def test_an_empty_record_is_judged_and_not_the_published_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == cli.main(["dmarc", "record", "example.com", "--dns", "/dev/null", "--record", ""])
    assert "there is no DMARC record" in capsys.readouterr().out


@pytest.mark.parametrize("policy", list(DmarcPolicy))
async def test_what_is_written_is_read_as_it_was_meant(policy: DmarcPolicy) -> None:
    wanted = dmarc.WantedRecord(
        policy=policy, subdomains=DmarcPolicy.REJECT, rua=("d@example.com",), strict=True, testing=True
    )
    record = find_record([dmarc.write(wanted).encode()])
    assert record is not None
    assert (policy, DmarcPolicy.REJECT, True, True, True) == (
        record.policy,
        record.subdomains,
        record.strict_spf,
        record.strict_dkim,
        record.testing,
    )
    assert ("mailto:d@example.com",) == record.rua


@given(text=st.text(max_size=200))
def test_no_record_raises(text: str) -> None:
    walk = asyncio.run(spf.examine(TableResolver(Zone.parse("")), "example.com", "v=spf1 " + text))
    for remark in [*dmarc.lint("v=DMARC1; " + text), *walk.remarks]:
        assert remark.what.isprintable()


def world(**records: str) -> TableResolver:
    lines = "".join(f"{name.replace('_', '.')}. TXT {txt(text)}\n" for name, text in records.items())
    return TableResolver(Zone.parse(DNS + lines))


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        ("v=spf1 mx -all", False, ""),
        ("v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 a:mail.example.com ~all", False, ""),
        ("v=spf1 mx", True, "neither all nor redirect="),
        ("v=spf1 mx ?all", False, "says nothing about others"),
        ("v=spf1 mx +all", True, "lets everybody send as you"),
        ("v=spf1 -all mx", True, "never reached: mx"),
        ("v=spf1 ipv4:192.0.2.1 -all", True, "did you mean ip4?"),
        ("v=spf1 ip4:2001:db8::1 -all", True, "an address for ip6"),
        ("v=spf1 ip4:192.0.2.300 -all", True, "not an address or network"),
        ("v=spf1 include: -all", True, "the domain is missing"),
        ("v=spf1 include:nothing.example -all", True, "is included and has no SPF record"),
        ("v=spf1 include:example.com -all", True, "includes itself"),
        ("v=spf1 ptr -all", False, "ptr should not be used"),
        ("v=spf1 a:x1.example a:x2.example a:x3.example -all", True, "3 look-ups find nothing"),
        ("v=spf1 redirect=other.example -all", True, "redirect= is ignored"),
        ("v=spf1 exists:%{i}.x.example -all", False, ""),
        ("v=spf1 mx/33 -all", True, "malformed"),
        ("v=spf1 mx:slow.example -all", True, "cannot be looked up"),
        ("v=spf1 all:x", True, "all takes no argument"),
        (f"v=spf1 {'ip4:192.0.2.1 ' * 40}-all", False, "need TCP"),
    ],
)
async def test_an_spf_record_is_judged_as_receivers_will(record: str, error: bool, words: str) -> None:
    walk = await spf.examine(world(example_com=record), "example.com")
    assert error == any(remark.error for remark in walk.remarks)
    assert words in " | ".join(remark.what for remark in walk.remarks)
    assert words or not walk.remarks


async def test_look_ups_are_counted_through_every_include() -> None:
    inner = {f"s{n}_example": "v=spf1 mx:example.com a:mail.example.com ~all" for n in range(4)}
    record = "v=spf1 " + " ".join(f"include:s{n}.example" for n in range(4)) + " -all"
    walk = await spf.examine(world(example_com=record, **inner), "example.com")
    assert 12 == walk.lookups
    assert "12 look-ups of 10" in " ".join(remark.what for remark in walk.remarks if remark.error)


async def test_a_record_that_spreads_without_end_is_not_followed_without_end() -> None:
    record = "v=spf1 " + " ".join(f"include:s{n}.example" for n in range(40)) + " -all"
    walk = await spf.examine(world(example_com=record, **{f"s{n}_example": record for n in range(40)}), "example.com")
    assert walk.lookups < 5000


def test_the_commands_print_and_exit_as_promised(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    zone = f"{tmp_path}/dns.zone"
    with open(zone, "w", encoding="utf-8") as file:
        file.write(DNS + 'example.com. TXT "v=spf1 mx -all"\n')
    assert 0 == cli.main(["spf", "check", "example.com", "--dns", zone])
    assert 1 == cli.main(["spf", "check", "other.example", "--dns", zone])
    assert 1 == cli.main(["dmarc", "record", "example.com", "--dns", zone])
    arguments = ["--policy", "reject", "--rua", "d@example.com", "--dns", zone, "--json"]
    capsys.readouterr()
    assert 0 == cli.main(["dmarc", "record", "example.com", *arguments])
    assert ["v=DMARC1; p=reject; rua=mailto:d@example.com"] == json.loads(capsys.readouterr().out)["records"]
