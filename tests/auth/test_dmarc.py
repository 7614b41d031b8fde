# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC as RFC 9989 has it."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.auth.author import Named
from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc import DmarcFinding, DmarcResult, check_dmarc, discover, so_far
from gatekeeper.auth.dmarc_record import DmarcPolicy, DmarcRecord, find_record
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import Answer, TableResolver
from gatekeeper.dnsclient.zone import Zone
from tests.support.zones import Asked

NO_SPF = SpfFinding(SpfResult.NONE)
REJECT = '_dmarc.example.com TXT "v=DMARC1; p=reject"'


def spf_pass(domain: str) -> SpfFinding:
    return SpfFinding(SpfResult.PASS, "mailfrom", domain, authenticates=True)


def dkim_pass(*domains: str) -> list[DkimFinding]:
    return [DkimFinding(DkimResult.PASS, domain) for domain in domains]


async def dmarc(
    zone: str | TableResolver, author: str = "example.com", spf: SpfFinding = NO_SPF, dkim: Sequence[DkimFinding] = ()
) -> DmarcFinding:
    resolver = TableResolver(Zone.parse(zone)) if isinstance(zone, str) else zone
    return await check_dmarc(resolver, [Header(b"From", f" Joe <joe@{author}>".encode())], spf, dkim)


# --- alignment and policy


async def test_an_aligned_signature_passes() -> None:
    found = await dmarc(REJECT, dkim=dkim_pass("example.net", "example.com"))
    assert (
        DmarcFinding(
            DmarcResult.PASS,
            domain="example.com",
            record_domain="example.com",
            published=DmarcPolicy.REJECT,
            record_policy=DmarcPolicy.REJECT,
            reason="DKIM passed for example.com",
            dkim_aligned=True,
            authenticates=True,
        )
        == found
    )


@pytest.mark.parametrize("domain", ["example.com", "mail.example.com"])  # without and with a walk
@pytest.mark.parametrize(
    ("authenticates", "testing", "expected"), [(True, True, True), (False, False, True), (False, True, False)]
)
async def test_a_pass_by_what_anybody_may_do_is_a_pass_but_no_proof(
    domain: str, authenticates: bool, testing: bool, expected: bool
) -> None:
    spf = SpfFinding(SpfResult.PASS, "mailfrom", domain, authenticates=authenticates)
    found = await dmarc(REJECT, spf=spf, dkim=[DkimFinding(DkimResult.PASS, domain, testing=testing)])
    assert (DmarcResult.PASS, True, True, expected) == (
        found.result,
        found.spf_aligned,
        found.dkim_aligned,
        found.authenticates,
    )


async def test_a_message_that_nobody_vouches_for_fails_with_the_policy_of_its_domain() -> None:
    found = await dmarc(REJECT, spf=spf_pass("example.net"), dkim=dkim_pass("evil-example.com"))
    assert (DmarcResult.FAIL, DmarcPolicy.REJECT, DmarcPolicy.REJECT) == (found.result, found.policy, found.published)
    assert "neither SPF nor DKIM passed for example.com" == found.reason


@pytest.mark.parametrize(
    ("author", "other", "tags", "result"),
    [
        ("example.com", "example.com", "", "pass"),
        ("example.com", "mail.example.com", "", "pass"),
        ("mail.example.com", "example.com", "", "pass"),
        ("a.example.com", "b.example.com", "", "pass"),
        ("example.com", "mail.example.com", "; aspf=s; adkim=s", "fail"),
        ("example.com", "example.com", "; aspf=s; adkim=s", "pass"),
        ("example.com", "notexample.com", "", "fail"),
        ("example.com", "com", "", "fail"),
        ("EXAMPLE.com", "example.com", "", "pass"),
    ],
)
async def test_alignment_is_equality_or_a_common_organizational_domain(
    author: str, other: str, tags: str, result: str
) -> None:
    zone = f'_dmarc.example.com TXT "v=DMARC1; p=reject{tags}"'
    assert result == (await dmarc(zone, author, spf=spf_pass(other))).result
    assert result == (await dmarc(zone, author, dkim=dkim_pass(other))).result


@pytest.mark.parametrize("result", [result for result in SpfResult if result is not SpfResult.PASS])
async def test_of_spf_only_pass_counts(result: SpfResult) -> None:
    found = await dmarc(REJECT, spf=SpfFinding(result, "mailfrom", "example.com"))
    assert found.result in (DmarcResult.FAIL, DmarcResult.TEMPERROR)


@pytest.mark.parametrize("result", [result for result in DkimResult if result is not DkimResult.PASS])
async def test_of_dkim_only_pass_counts(result: DkimResult) -> None:
    found = await dmarc(REJECT, dkim=[DkimFinding(result, "example.com")])
    assert found.result in (DmarcResult.FAIL, DmarcResult.TEMPERROR)


@pytest.mark.parametrize(
    ("record", "author", "policy"),
    [
        ("p=quarantine", "example.com", "quarantine"),
        ("p=reject; sp=none", "example.com", "reject"),
        ("p=none; sp=reject", "sub.example.com", "reject"),
        ("p=quarantine", "sub.example.com", "quarantine"),
        ("p=none; sp=quarantine; np=reject", "sub.example.com", "quarantine"),
        ("p=none; sp=quarantine; np=reject", "no.example.com", "reject"),
        ("p=none; np=reject", "example.com", "none"),
        ("p=none; sp=quarantine", "no.example.com", "quarantine"),
        ("p=reject; t=y", "example.com", "quarantine"),
        ("p=quarantine; t=y", "example.com", "none"),
        ("p=none; sp=reject; t=y", "sub.example.com", "quarantine"),
        ("p=none; t=y", "example.com", "none"),
        ("p=reject; pct=0; rf=afrf; ri=5", "example.com", "reject"),
    ],
)
async def test_the_policy_is_that_for_the_domain_in_from(record: str, author: str, policy: str) -> None:
    zone = f'_dmarc.example.com TXT "v=DMARC1; {record}"\nsub.example.com A 192.0.2.1'
    found = await dmarc(zone, author)
    assert (DmarcResult.FAIL, policy) == (found.result, found.policy)


async def test_the_domain_s_own_record_comes_before_that_of_its_organization() -> None:
    found = await dmarc(f'{REJECT}\n_dmarc.sub.example.com TXT "v=DMARC1; p=none"', "sub.example.com")
    assert (DmarcPolicy.NONE, "sub.example.com", "example.com") == (
        found.policy,
        found.record_domain,
        found.organizational,
    )


# --- the tree walk


async def test_without_a_record_there_is_no_policy_and_the_domain_is_its_own_organization() -> None:
    found = await dmarc("", "a.b.example.com")
    assert (DmarcResult.NONE, "a.b.example.com") == (found.result, found.organizational)


@pytest.mark.parametrize(
    ("author", "names"),
    [
        ("a.mail.example.com", "a.mail.example.com mail.example.com example.com com"),
        (
            "a.b.c.d.e.f.g.com",
            "a.b.c.d.e.f.g.com b.c.d.e.f.g.com c.d.e.f.g.com d.e.f.g.com e.f.g.com f.g.com g.com com",
        ),
        (
            "1.2.3.4.a.b.c.d.e.f.g.com",
            "1.2.3.4.a.b.c.d.e.f.g.com b.c.d.e.f.g.com c.d.e.f.g.com d.e.f.g.com e.f.g.com f.g.com g.com com",
        ),
        ("localhost", "localhost"),
    ],
)
async def test_the_walk_goes_up_with_at_most_eight_questions(author: str, names: str) -> None:
    asked = Asked("")
    await dmarc(asked, author)
    assert [(f"_dmarc.{name}", "TXT") for name in names.split()] == asked.questions


@pytest.mark.parametrize(
    ("zone", "author", "organizational"),
    [
        ({"example.com": "p=none", "mail.example.com": "p=none"}, "a.mail.example.com", "example.com"),
        ({"mail.example.com": "p=none; psd=n", "com": "p=none"}, "a.mail.example.com", "mail.example.com"),
        ({"com": "p=none; psd=y"}, "a.mail.example.com", "example.com"),
        ({"com": "p=none; psd=y", "a.mail.example.com": "p=none"}, "a.mail.example.com", "example.com"),
        ({"co.uk": "p=none; psd=y", "uk": "p=none"}, "a.example.co.uk", "example.co.uk"),
        ({"co.uk": "p=none; psd=y"}, "co.uk", "co.uk"),
        ({"co.uk": "p=none; psd=y", "uk": "p=none; psd=u"}, "co.uk", "uk"),
        ({"com": "p=none"}, "a.example.com", "com"),
        ({"com": "p=none; psd=maybe"}, "a.example.com", "com"),
        ({"example.com": "psd=n"}, "a.example.com", "example.com"),
    ],
)
async def test_the_organizational_domain_is_found_by_the_walk(
    zone: dict[str, str], author: str, organizational: str
) -> None:
    text = "\n".join(f'_dmarc.{name} TXT "v=DMARC1; {record}"' for name, record in zone.items())
    assert organizational == (await dmarc(text, author)).organizational


async def test_the_policy_of_a_public_suffix_holds_for_organizations_without_their_own() -> None:
    zone = '_dmarc.bank TXT "v=DMARC1; p=reject; sp=quarantine; np=reject; psd=y"\nacme.bank A 192.0.2.1'
    assert (DmarcPolicy.QUARANTINE, "bank") == ((found := await dmarc(zone, "acme.bank")).policy, found.record_domain)
    assert DmarcPolicy.REJECT == (await dmarc(zone, "no.bank")).policy


async def test_two_organizations_under_one_public_suffix_are_not_aligned() -> None:
    zone = '_dmarc.bank TXT "v=DMARC1; p=reject; psd=y"'
    assert DmarcResult.FAIL == (await dmarc(zone, "acme.bank", dkim=dkim_pass("evil.bank"))).result
    assert DmarcResult.PASS == (await dmarc(zone, "acme.bank", dkim=dkim_pass("mail.acme.bank"))).result


async def test_a_subdomain_with_an_organization_of_its_own_is_not_aligned_with_its_parent() -> None:
    zone = f'{REJECT}\n_dmarc.tenant.example.com TXT "v=DMARC1; p=none; psd=n"'
    assert DmarcResult.FAIL == (await dmarc(zone, "example.com", dkim=dkim_pass("x.tenant.example.com"))).result


async def test_several_records_at_a_name_count_as_none_and_the_walk_goes_on() -> None:
    zone = f'{REJECT}\n_dmarc.a.example.com TXT "v=DMARC1; p=none"\n_dmarc.a.example.com TXT "v=DMARC1; p=none; t=y"'
    assert "example.com" == (await dmarc(zone, "a.example.com")).record_domain


@pytest.mark.parametrize(
    ("author", "above", "expected"),
    [
        ("a.example.com", '_dmarc.example.com TXT "v=DMARC1; p=reject"', (DmarcResult.FAIL, "reject", "example.com")),
        (
            "a.example.com",
            '_dmarc.example.com TXT "v=DMARC1; p=reject; sp=quarantine"',
            (DmarcResult.FAIL, "quarantine", "example.com"),
        ),
        ("a.example.com", "", (DmarcResult.NONE, "none", "")),
        ("example.com", "", (DmarcResult.NONE, "none", "")),
        ("example.com", '_dmarc.com TXT "v=DMARC1; p=reject; psd=y"', (DmarcResult.FAIL, "reject", "com")),
    ],
)
async def test_two_records_at_the_authors_own_name_leave_it_to_the_name_above(
    author: str, above: str, expected: tuple[DmarcResult, str, str]
) -> None:
    # RFC 9989 section 4.10, steps 2 and 6: "If multiple DMARC Policy Records are returned for a single target, they
    # are all discarded."
    two = f'_dmarc.{author} TXT "v=DMARC1; p=none"\n_dmarc.{author} TXT "v=DMARC1; p=reject; psd=n"\n'
    found = await dmarc(two + above, author)
    assert expected == (found.result, found.policy, found.record_domain)


async def test_each_record_is_asked_for_once() -> None:
    asked = Asked(REJECT)
    await dmarc(asked, "a.example.com", spf_pass("b.example.com"), dkim_pass("c.example.com", "b.example.com"))
    assert len(asked.questions) == len(set(asked.questions))


async def test_what_is_discovered_early_is_what_is_asked_later() -> None:
    early, late = Asked(REJECT), Asked(REJECT)
    await discover(early, [Header(b"From", b"a@a.example.com")])
    await dmarc(late, "a.example.com")
    assert early.questions == late.questions[:1]


async def test_a_mail_that_passed_for_the_very_name_in_its_from_asks_no_name_above() -> None:
    asked = Asked(REJECT + "\n_dmarc.com TXT !TIMEOUT")
    found = await dmarc(
        asked, "example.com", spf=spf_pass("example.com"), dkim=dkim_pass("other.example", "example.com")
    )
    assert DmarcResult.PASS == found.result
    assert [("_dmarc.example.com", "TXT")] == asked.questions


# --- DNS trouble


@pytest.mark.parametrize("fault", ["SERVFAIL", "TIMEOUT"])
@pytest.mark.parametrize("name", ["a.example.com", "example.com", "com"])
async def test_trouble_in_the_walk_is_a_temporary_error(fault: str, name: str) -> None:
    zone = f"_dmarc.{name} TXT !{fault}"
    assert DmarcResult.TEMPERROR == (await dmarc(zone, "a.example.com", dkim=dkim_pass("a.example.com"))).result


async def test_trouble_above_does_not_matter_if_the_domain_itself_decides() -> None:
    zone = f"{REJECT}\n_dmarc.com TXT !SERVFAIL"
    assert DmarcResult.PASS == (await dmarc(zone, dkim=dkim_pass("example.com"))).result
    assert DmarcResult.FAIL == (await dmarc(zone)).result
    assert DmarcResult.TEMPERROR == (await dmarc(zone, dkim=dkim_pass("mail.example.com"))).result


async def test_trouble_with_one_identifier_does_not_matter_if_another_passes() -> None:
    zone = f"{REJECT}\n_dmarc.bad.example.com TXT !SERVFAIL"
    bad = spf_pass("bad.example.com")
    assert DmarcResult.PASS == (await dmarc(zone, spf=bad, dkim=dkim_pass("example.com"))).result
    assert DmarcResult.PASS == (await dmarc(zone, spf=bad, dkim=dkim_pass("mail.example.com"))).result
    assert DmarcResult.TEMPERROR == (await dmarc(zone, spf=bad)).result


async def test_a_signature_that_could_not_be_checked_leaves_it_open_only_if_it_might_be_aligned() -> None:
    unknown = [DkimFinding(DkimResult.TEMPERROR, "mail.example.com")]
    assert DmarcResult.TEMPERROR == (await dmarc(REJECT, dkim=unknown)).result
    assert DmarcResult.FAIL == (await dmarc(REJECT, dkim=[DkimFinding(DkimResult.TEMPERROR, "example.net")])).result
    assert (
        DmarcResult.TEMPERROR == (await dmarc(REJECT, spf=SpfFinding(SpfResult.TEMPERROR, domain="example.com"))).result
    )


async def test_trouble_in_finding_out_whether_the_domain_exists_is_a_temporary_error() -> None:
    zone = '_dmarc.example.com TXT "v=DMARC1; p=none; np=reject"\na.example.com A !TIMEOUT'
    assert DmarcResult.TEMPERROR == (await dmarc(zone, "a.example.com")).result


# --- records


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (b"v=DMARC1; p=reject", "reject"),
        (b"v=DMARC1;p=reject;", "reject"),
        (b"v = DMARC1 ; rua=mailto:a@b ; p = Reject", "reject"),
        (b"v=DMARC1; foo=bar; ;=; x; p=reject; p=none", "reject"),
        (b"v=DMARC1", None),
        (b"v=DMARC1; p=rejekt", None),
        (b"v=DMARC1; p=reject; sp=maybe", None),
        (b"v=DMARC1; p=reject; np=", None),
        (b"v=DMARC1; rua=mailto:a@example.com", "none"),
        (b"v=DMARC1; p=reject; np=x; rua=https://a, mailto:a@example.com!10m", "none"),
        (b"v=DMARC1; rua=mailto:, a@b", None),
    ],
)
def test_a_record_is_read_for_its_policy(text: bytes, policy: str | None) -> None:
    record = find_record([text])
    assert record is not None
    assert policy == record.policy


@pytest.mark.parametrize(
    "text", [b"", b"v=dmarc1; p=none", b"v=DMARC2; p=none", b"p=none; v=DMARC1", b"v=DMARC11; p=none", b"v=spf1 -all"]
)
def test_what_does_not_begin_with_the_version_is_no_record(text: bytes) -> None:
    assert find_record([text]) is None


def test_a_record_beside_other_texts_counts() -> None:
    assert DmarcRecord(policy=DmarcPolicy.NONE) == find_record([b"hello", b"v=DMARC1; p=none", b"v=spf1 -all"])


async def test_a_record_without_policy_and_address_means_no_dmarc() -> None:
    found = await dmarc('_dmarc.example.com TXT "v=DMARC1; p=x"', dkim=dkim_pass("example.com"))
    assert (DmarcResult.NONE, "the DMARC record of example.com has no valid policy") == (found.result, found.reason)


PARTS = st.sampled_from(
    [b"v=DMARC1", b";", b"p", b"=", b"none", b"sp=", b"rua=mailto:", b"\xff", b" ", b"psd=y", b"t=y"]
)


@given(text=st.lists(PARTS, max_size=12).map(b"".join))
def test_no_record_raises(text: bytes) -> None:
    assert find_record([b"v=DMARC1;" + text]) is not None
    find_record([text])


# --- From: how it is read stands in test_author.py


@pytest.mark.parametrize("value", [b" Undisclosed:;", b" joe", b" joe@[192.0.2.1]"])
async def test_a_from_that_names_no_domain_is_permerror_and_never_passes(value: bytes) -> None:
    resolver = TableResolver(Zone.parse(REJECT))
    found = await check_dmarc(
        resolver, [Header(b"From", value)], spf_pass("example.com"), dkim_pass("example.com", "victim.example")
    )
    expected = DmarcFinding(DmarcResult.PERMERROR, reason="From names no domain", named=Named.NONE)
    assert expected == found


async def test_a_name_server_that_does_not_answer_keeps_no_other_domain_from_being_judged() -> None:
    class Silent(TableResolver):
        async def query(self, name: str, type: str) -> Answer:
            if "silent" in name:
                await asyncio.Event().wait()
            return await super().query(name, type)

    headers = [Header(b"From", b"a@silent.example, b@example.com")]
    judged: dict[str, DmarcFinding] = {}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await check_dmarc(Silent(Zone.parse(REJECT)), headers, spf_pass("other.example"), [], judged)
    found = so_far(headers, judged, "too late")
    assert (DmarcResult.FAIL, DmarcPolicy.REJECT, "example.com") == (found.result, found.policy, found.domain)
    assert DmarcResult.PERMERROR is so_far(headers, {}, "too late").result


# --- Everything


@settings(max_examples=100, deadline=None)
@given(domain=st.from_regex(r"[a-z]{1,3}(\.[a-z]{1,2}){0,10}", fullmatch=True), tags=st.text("psdny=;t ", max_size=20))
def test_no_walk_raises(domain: str, tags: str) -> None:
    zone = "\n".join(
        f'_dmarc.{domain[at:]} TXT "v=DMARC1; {tags}"' for at in range(len(domain)) if domain[at - 1] == "."
    )
    found = asyncio.run(dmarc(zone, domain, spf_pass("x." + domain)))
    assert domain.endswith(found.organizational)
