# SPDX-License-Identifier: GPL-3.0-or-later
"""What reports advise, and that nobody else can turn it: neither who forges our mail, nor who forges a report."""

import gzip
import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.reports import summary as summary_module
from gatekeeper.reports.advice import Advice, advise, as_json, sentences
from gatekeeper.reports.report import Report
from gatekeeper.reports.sender import proven_sender
from gatekeeper.reports.summary import OTHERS, SourceKind, Summaries, Summary, summarise
from tests.reports.test_reports import BEGIN, DAY, PASSED, SERVICE, mailed, reports_in, row, xml
from tests.support.needs import require_case

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def report(*rows: str, who: str = "receiver.example", day: int = 0, days: float = 1, **about: str) -> Report:
    """One report for `days` days, `day` days after BEGIN."""
    document = xml(*rows, days=days, **about).decode().replace("receiver.example</org", f"{who}</org")
    (found,) = reports_in(dated(document.encode(), BEGIN + day * DAY, BEGIN + int((day + days) * DAY)))
    return found


def dated(document: bytes, begin: int, end: int) -> bytes:
    dates = f"<begin>{begin}</begin><end>{end}</end>"
    return re.sub(rb"<begin>.*</end>", dates.encode(), document)


def daily(*rows: str, number: int = 20, who: str = "receiver.example") -> list[Report]:
    return [report(*rows, day=day, number=str(day), who=who) for day in range(number)]


def summed(*reports: Report) -> Summary:
    (found,) = summarise(reports, NOW)
    return found


def advice(*reports: Report) -> Advice:
    return advise(summed(*reports))


# ---- whose mail counts

FAILING = row("198.51.100.7", 60, auth="<spf><domain>mailer.example</domain><result>pass</result></spf>")
FORGED = row("203.0.113.1", 10_000_000)


def test_a_share_is_of_our_mail_however_much_is_forged() -> None:
    forged = advice(*daily(PASSED, FAILING, FORGED))
    assert advice(*daily(PASSED, FAILING)) == forged
    assert "5.7% of your mail fails" in forged.reasons[0]


def test_forgeries_do_not_make_our_mail_unsigned() -> None:
    assert advice(*daily(PASSED, FORGED)).safe


@pytest.mark.parametrize("result", ["none", "temperror", "permerror", "", "what?", "NONE", "PermError"])
def test_without_a_signature_of_ours_none_is_broken(result: str) -> None:
    auth = f"<dkim><domain>example.com</domain><result>{result}</result></dkim>"
    found = summed(*daily(PASSED, row("203.0.113.9", 200, auth=auth)))
    assert (0, 4000, True) == (found.count(SourceKind.BROKEN), found.count(SourceKind.STRANGER), advise(found).safe)


@pytest.mark.parametrize("result", ["fail", "neutral", "policy", "FAIL"])
def test_a_signature_of_ours_that_does_not_verify_is_broken(result: str) -> None:
    auth = f"<dkim><domain>example.com</domain><result>{result}</result></dkim>"
    assert 200 == summed(report(PASSED, row("203.0.113.9", 200, auth=auth))).count(SourceKind.BROKEN)


@pytest.mark.parametrize(
    ("header_from", "signer", "kind"),
    [
        ("example.com", "example.com", SourceKind.BROKEN),
        ("example.com", "mail.example.com", SourceKind.BROKEN),
        ("mail.example.com", "example.com", SourceKind.BROKEN),
        ("a.example.com", "b.example.com", SourceKind.BROKEN),
        ("example.com", "com", SourceKind.STRANGER),
        ("example.com", "badexample.com", SourceKind.STRANGER),
        ("example.com", "other.example", SourceKind.STRANGER),
        ("example.com", "", SourceKind.STRANGER),
    ],
)
def test_relaxed_alignment_goes_both_ways(header_from: str, signer: str, kind: SourceKind) -> None:
    auth = f"<dkim><domain>{signer}</domain><result>fail</result></dkim>"
    found = summed(report(row("203.0.113.9", auth=auth).replace("from>example.com", f"from>{header_from}")))
    assert [kind] == list(found.failed)


def test_a_name_above_the_domain_with_the_policy_is_aligned_too_but_no_top_level_domain() -> None:
    for signer, kind in (("example.com", SourceKind.BROKEN), ("com", SourceKind.STRANGER)):
        auth = f"<dkim><domain>{signer}</domain><result>fail</result></dkim>"
        document = xml(row("203.0.113.9", auth=auth).replace("from>example", "from>sub.example"))
        (found,) = reports_in(document.replace(b"Example.COM", b"sub.example.com"))
        assert [kind] == list(summed(found).failed)


def test_mail_that_passes_for_another_name_of_ours_is_ours() -> None:
    """As with strict alignment: SPF passed for bounce.example.com, and From has example.com."""
    strict = row("192.0.2.77", 5, auth="<spf><domain>bounce.example.com</domain><result>pass</result></spf>")
    assert [("192.0.2.77", 5)] == [(one.name, one.count) for one in summed(report(strict)).sources(SourceKind.OURS)]


def test_a_passing_row_may_come_after_the_failing_one_of_the_same_address() -> None:
    failing, passing = row("192.0.2.50", 3), row("192.0.2.50", 100, spf="pass")
    for reports in ([report(failing), report(passing)], [report(passing), report(failing)], [report(failing, passing)]):
        assert 3 == summed(*reports).count(SourceKind.OURS)
    mapped = row("::ffff:192.0.2.50", 3)
    assert 3 == summed(report(passing), report(mapped)).count(SourceKind.OURS)


def test_who_sends_as_us_without_leave_can_be_named() -> None:
    for name in ("mailer.example", "198.51.100.7"):
        summaries = Summaries(NOW, not_ours=[name])
        for one in daily(PASSED, FAILING):
            summaries.add(one)
        (found,) = summaries.all()
        assert (True, 1200) == (advise(found).safe, found.count(SourceKind.STRANGER))


def test_a_domain_without_mail_of_its_own_is_told_so() -> None:
    (first, *_) = advice(*daily(FORGED)).reasons
    assert "none of the mail in them is yours" in first


# ---- days and dates


def test_days_are_counted_one_by_one() -> None:
    apart = [report(PASSED, day=0), report(PASSED, day=30)]
    assert (2, ("they show mail of yours on 2 days; wait for 14",)) == (
        len(summed(*apart).days),
        advice(*apart).reasons,
    )
    assert 1 == len(summed(*[report(PASSED, who=f"r{n}.example") for n in range(20)]).days)
    assert 20 == len(summed(report(PASSED, days=20)).days)
    assert (13, 14) == (len(summed(*daily(PASSED, number=13)).days), len(summed(*daily(PASSED, number=14)).days))


@pytest.mark.parametrize(("begin", "end"), [(0, DAY - 1), (0, DAY), (0, DAY + 1), (0, 0), (DAY // 2, 3 * DAY // 2)])
def test_a_report_for_a_day_is_one_day(begin: int, end: int) -> None:
    midnight = BEGIN - BEGIN % DAY
    (found,) = reports_in(dated(xml(PASSED), midnight + begin, midnight + end))
    assert {date(2025, 10, 9)} == summed(found).days


FAR = {
    "1970": (0, DAY),
    "before DMARC": (1_300_000_000, 1_300_000_000 + 20 * DAY),
    "tomorrow": (1_796_000_000, 1_796_000_000 + 20 * DAY),
    "the year 2999": (32_472_144_000, 32_472_144_000 + DAY),
    "all time": (0, 32_472_144_000),
    "since DMARC": (1_330_000_000, 1_790_000_000),
    "32 days": (BEGIN, BEGIN + 32 * DAY),
    "backwards": (BEGIN + 20 * DAY, BEGIN),
}


@pytest.mark.parametrize("dates", FAR)
def test_days_that_cannot_be_do_not_count_and_the_mail_does(dates: str) -> None:
    begin, end = FAR[dates]
    (found,) = reports_in(dated(xml(PASSED), begin, end))
    summaries = Summaries(NOW)
    assert "date_range" in summaries.add(found)
    (summary,) = summaries.all()
    assert (1000, set(), None, None) == (summary.total, summary.days, summary.begin, summary.end)


def test_of_a_report_that_reaches_beyond_today_the_days_until_today_count() -> None:
    found = report(PASSED, days=20)
    (summary,) = summarise([found], datetime.fromtimestamp(BEGIN, UTC) + timedelta(days=4))
    assert 5 == len(summary.days)


def test_days_without_mail_of_ours_do_not_count() -> None:
    nothing = [report(who="empty.example", day=day, number=str(day)) for day in range(20)]
    assert 1 == len(summed(report(PASSED), *nothing, *daily(FORGED)).days)


# ---- the policy


def test_the_published_policy_is_what_most_reports_say() -> None:
    late = report(PASSED, who="evil.example", day=25, policy="reject")
    assert ("none", "quarantine") == (summed(*daily(PASSED), late).policy, advice(*daily(PASSED), late).policy)
    assert "published policy none (in 20 of 21 reports)" in next(sentences(summed(*daily(PASSED), late)))


def test_of_two_policies_with_as_many_reports_the_milder_counts_and_unknown_words_do_not() -> None:
    three = [report(PASSED, policy=policy, number=policy) for policy in ("reject", "quarantine", "nonsense")]
    assert "quarantine" == summed(*three).policy
    assert "" == summed(report(PASSED, policy="nonsense")).policy


# ---- forged reports

EVIL = row("192.0.2.1", 1_000_000_000, spf="pass", dkim="pass")


def test_a_reporter_who_saw_all_pass_does_not_outvote_one_who_saw_our_mail_fail() -> None:
    honest = daily(PASSED, FAILING)
    for names in (["evil.example"], [f"evil{n}.example" for n in range(50)]):
        forged = [one for name in names for one in daily(EVIL, who=name)]
        found = advice(*forged, *honest, *forged)
        assert not found.safe
        assert "5.7% of your mail fails as receiver.example reports, whatever others do" in found.reasons


def test_who_reports_most_failures_is_named_because_it_may_be_a_forger() -> None:
    (reason,) = advice(*daily(PASSED), *daily(FAILING, who="evil.example")).reasons
    assert "5.7% of your mail fails (most of that is reported by evil.example)" in reason


def test_a_reporter_does_not_sign_our_mail_for_others() -> None:
    unsigned = daily(row("192.0.2.1", 1000, spf="pass"))
    assert not advice(*unsigned, *daily(EVIL, who="evil.example")).safe


def test_a_forged_report_does_not_displace_the_right_one_with_its_number() -> None:
    honest = report(PASSED, FAILING)
    for batch in ([report(EVIL), honest], [honest, report(EVIL)]):
        assert 60 == summed(*batch).wanted


def test_the_same_report_counts_once_in_whatever_it_comes() -> None:
    document = xml(PASSED, SERVICE)
    again = [document.decode().encode("utf-16"), mailed(gzip.compress(document), "gzip"), xml(SERVICE, PASSED)]
    found = summed(*reports_in(document), *[one for data in again for one in reports_in(data)])
    assert (1, 1020) == (found.reports, found.total)


@settings(max_examples=50, deadline=None)
@given(
    forged=st.lists(
        st.builds(
            report,
            st.sampled_from([EVIL, FORGED, PASSED, "", row("192.0.2.1", 10**9, spf="pass")]),
            who=st.sampled_from(["evil.example", "worse.example", "a"]),
            day=st.integers(0, 40),
            days=st.sampled_from([0, 1, 20, 31, 400]),
            policy=st.sampled_from(["none", "quarantine", "reject", "x"]),
        ),
        max_size=5,
    )
)
def test_no_report_by_others_makes_safe_what_one_reporter_shows_to_harm(forged: list[Report]) -> None:
    assert not advice(*forged, *daily(PASSED, FAILING)).safe


def test_reports_on_other_domains_stay_apart_and_cannot_crowd_ours_out() -> None:
    (other,) = reports_in(xml(EVIL, days=1).replace(b"Example.COM", b"evil.example"))
    assert ["example.com", "evil.example"] == [one.domain for one in summarise([other, *daily(PASSED)], NOW)]


def test_names_and_domains_are_limited_and_what_is_beyond_is_never_called_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "MAX_NAMES", 50)
    flood = report(*[row(f"203.0.113.{n}") for n in range(100)], who="evil.example")
    found = summed(*daily(PASSED), flood)
    assert (20_100, 100, False) == (found.total, found.count(SourceKind.STRANGER), found.complete)
    names = found.failed[SourceKind.STRANGER]
    assert (True, True, False) == (len(names) < 50, names[OTHERS] > 50, advise(found).safe)
    monkeypatch.setattr(summary_module, "MAX_DOMAINS", 1)
    summaries = Summaries(NOW)
    assert "" == summaries.add(report(PASSED))
    (other,) = reports_in(xml(EVIL, days=1).replace(b"Example.COM", b"evil.example"))
    assert "--domain" in summaries.add(other)


def test_advice_says_of_what_for_how_long_and_who_says_so() -> None:
    *_, last = sentences(
        summed(*daily(PASSED), *daily(row("192.0.2.1", 3000, spf="pass", dkim="pass"), who="b.example"))
    )
    assert (
        "  p=quarantine is safe to publish next: of 80000 messages of yours on 20 days 0.0% failed"
        " (seen by b.example 75%, receiver.example 25%)"
    ) == last


def test_json_has_the_keys_that_programs_know() -> None:
    known = "domain policy begin end reports reporters messages passed spf dkim dispositions failed"
    assert {*known.split(), "next_policy", "safe", "reasons"} <= set(as_json(summed(report(PASSED))))
    assert json.dumps(as_json(summed(report(PASSED))), default=str)


# ---- who sent a report

OURS = "mx.example.com"


@pytest.mark.parametrize(
    ("fields", "sender"),
    [
        ("Authentication-Results: mx.example.com; dmarc=pass header.from=google.com\n", "google.com"),
        (
            'authentication-results : "MX.example.com/4dQ";\n\tdmarc=pass\n header.from=Google.COM;\n',
            "google.com",
        ),
        ("Authentication-Results: mx.example.com; dmarc=fail header.from=google.com\n", ""),
        ("Authentication-Results: mx.example.com; dmarc=none header.from=google.com\n", ""),
        ("Authentication-Results: mx.example.com; dmarc=temperror header.from=google.com\n", ""),
        ("Authentication-Results: mx.example.com; dmarc=pass\n", ""),
        ("Authentication-Results: mx.example.com; dmarc=pass header.from=a.com; dmarc=pass header.from=b.com\n", ""),
        ("Authentication-Results: mx.example.com; dmarc=pass header.from=a.com; dmarc=fail header.from=a.com\n", ""),
        ("Authentication-Results: mx.example.com; spf=pass\n", None),
        ("Authentication-Results: mx.evil.example; dmarc=pass header.from=google.com\n", None),
        ("X: y\n Authentication-Results: mx.example.com; dmarc=pass header.from=google.com\n", None),
        ("Subject: nothing\n", None),
        ("Authentication-Results: (\n", None),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_sender_is_whom_our_own_results_name(fields: str, sender: str | None, end: str) -> None:
    header = f"Received: x\n{fields}From: a@google.com\n".replace("\n", end).encode()
    assert sender == proven_sender(header, OURS)


def test_a_report_in_mail_that_failed_dmarc_is_not_read_and_one_that_passed_is_by_its_sender(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gatekeeper.toml"
    config.write_text(f'hostname = "relay.example.com"\nauthserv_id = "{OURS}"\n')
    results = {
        "forged": "fail header.from=google.com",
        "right": "pass header.from=google.com",
        "evil": "pass header.from=e.example",
    }
    for name, result in results.items():
        document = xml(PASSED, number=name).replace(b"receiver.example</org", b"google.com</org")
        field = f"Authentication-Results: {OURS}; dmarc={result}\n".encode()
        (tmp_path / name).write_bytes(field + mailed(gzip.compress(document), "gzip"))
    files = [str(tmp_path / name) for name in results]
    assert 1 == cli.main(["--config", str(config), "dmarc", "read", "--json", *files])
    out, err = capsys.readouterr()
    assert ["e.example", "google.com"] == json.loads(out)[0]["reporters"]
    assert f"{tmp_path}/forged: part 2: the mail did not pass DMARC when it came, so anybody can have written it" in err


def test_a_mail_within_a_mail_does_not_say_who_sent_the_one_around_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gatekeeper.toml"
    config.write_text(f'hostname = "{OURS}"\n')
    inner = f"Authentication-Results: {OURS}; dmarc=pass header.from=google.com\n".encode()
    inner += mailed(gzip.compress(xml(PASSED)), "gzip")
    outer = f"Authentication-Results: {OURS}; dmarc=fail\nContent-Type: message/rfc822\n\n".encode() + inner
    (tmp_path / "mail").write_bytes(outer)
    assert 1 == cli.main(["--config", str(config), "dmarc", "read", "--json", str(tmp_path / "mail")])
    assert [] == json.loads(capsys.readouterr().out)


def test_the_command_counts_only_the_domain_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours").write_bytes(xml(PASSED, FAILING))
    (tmp_path / "other").write_bytes(xml(EVIL).replace(b"Example.COM", b"evil.example"))
    options = ["--domain", "EXAMPLE.com.", "--not-ours", "Mailer.Example."]
    assert 0 == cli.main(["dmarc", "read", "--json", *options, str(tmp_path / "ours"), str(tmp_path / "other")])
    (found,) = json.loads(capsys.readouterr().out)
    assert ("example.com", True) == (found["domain"], found["safe"])


@pytest.mark.parametrize("option", ["--domain", "--not-ours"])
def test_a_name_that_can_be_none_is_a_mistake(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["dmarc", "read", option, "not a name", "/dev/null"])
    assert 2 == done.value.code
    assert "'not a name' is not a valid domain" in capsys.readouterr().err


# ---- cases that went wrong once


@pytest.mark.parametrize(
    ("name", "messages", "days", "strangers", "safe"),
    [
        ("row-count0-no-address.xml", 1000, 1, 0, False),
        ("gzip-crlf-behind.xml.gz", 1000, 20, 0, True),
        ("zip-member-without-name.zip", 1000, 20, 0, True),
        ("dkim-none-is-not-broken.xml", 1200, 20, 200, True),
        ("a5a.xml a5b.xml", 2000, 2, 0, False),
    ],
)
def test_a_case_is_read_rightly(name: str, messages: int, days: int, strangers: int, safe: bool) -> None:
    data = [require_case(f"dmarc/{one}").read_bytes() for one in name.split()]
    found = summed(*[one for content in data for one in reports_in(content)])
    kinds = found.count(SourceKind.STRANGER), found.count(SourceKind.BROKEN)
    assert (messages, days, (strangers, 0), safe) == (found.total, len(found.days), kinds, advise(found).safe)
