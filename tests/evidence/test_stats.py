# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of all mail in a log, counted, and shown to people, programs and browsers."""

import json
import re
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.cli.common import OK, USAGE
from gatekeeper.evidence import tops
from gatekeeper.evidence.page import as_page
from gatekeeper.evidence.refusals import reason_of
from gatekeeper.evidence.statistics import Statistics, network_of
from gatekeeper.evidence.tables import as_json, as_text
from gatekeeper.evidence.tops import Tops
from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.programs import read_events
from gatekeeper.maillog.reader import Tally
from gatekeeper.maillog.stories import join
from tests.support.mail_logs import START, Log
from tests.support.needs import require_corpus, require_program

MINUTE = 60.0


def counted(log: Log) -> Statistics:
    found = Statistics()
    for story in join(read_events(log.lines, Counter())):
        found.add(story)
    return found


def test_mails_and_refusals_are_counted_by_what_became_of_them() -> None:
    log = Log()
    log.mail(0)
    log.mail(1, sender="", recipient="c@z.example")
    log.refusal(2, "554 5.7.1 <b@y.example>: Relay access denied")
    found = counted(log)
    assert {"delivered": 2, "refused": 1} == {str(name): count for name, count in found.fates.items()}
    assert [(("postfix", "relay access denied", False), 1)] == found.refused.most_common()
    assert {("x.example", "accepted"): 1, ("<>", "accepted"): 1, ("x.example", "refused"): 1} == found.senders.counts
    assert {
        ("y.example", "accepted"): 1,
        ("z.example", "accepted"): 1,
        ("y.example", "refused"): 1,
    } == found.recipients.counts
    assert {("192.0.2.0/24", "accepted"): 2, ("192.0.2.0/24", "refused"): 1} == found.networks.counts
    assert (
        3
        == sum(sum(counts.values()) for counts in found.hours)
        == sum(sum(day.values()) for day in found.days.values())
    )


@pytest.mark.parametrize(
    ("said", "by", "why"),
    [
        ("554 5.7.1 Client host [192.0.2.1] blocked using zen.example", "postfix", "listed by zen.example"),
        ("550 5.1.1 <b@y.example>: Recipient address rejected: User unknown in table", "postfix", "no such recipient"),
        ("504 5.5.2 <h>: Helo command rejected: Host not found", "postfix", "HELO: host not found"),
        ("450 4.1.8 <a@x.example>: Sender address rejected: Domain not found", "postfix", "sender: domain not found"),
        ("450 4.7.25 Client host rejected: cannot find your name", "postfix", "client: cannot find your name"),
        ("450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted, see http://p/", "postgrey", "greylisted"),
        ("550 5.7.23 <b@y.example>: Message rejected due to: SPF fail - not authorized", "policyd-spf", "SPF fail"),
        ("451 4.3.5 Server configuration problem", "postfix", "server configuration problem"),
        ("421 4.7.0 h.example Error: too many connections from 192.0.2.1", "postfix", "too many connections or errors"),
        ("550 5.0.0 <b@y.example> 12 things [here] went wrong at 3am", "postfix", "things went wrong at"),
    ],
)  # fmt: skip
def test_a_refusal_of_others_is_known_by_their_words(said: str, by: str, why: str) -> None:
    log = Log()
    log.refusal(0, said)
    ((told, _count),) = counted(log).refused.most_common()
    assert (by, why) == told[:2]


def test_a_refusal_of_ours_is_known_by_its_reason_code() -> None:
    log = Log()
    log.refusal(
        0,
        "550 5.7.1 x",
        ours='stage=RCPT action="550 5.7.1 x" reasons=spf.fail,dnsbl.listed,helo.ours observed=helo.ours',
    )
    log.refusal(9, "550 5.7.1 relay access denied", ours="stage=RCPT action=DUNNO reasons=spf.pass")
    assert {
        ("gatekeeper", "dnsbl.listed", False): 1,
        ("postfix", "relay access denied", False): 1,
    } == counted(log).refused.counts


def test_a_milter_that_does_not_answer_is_told_from_one_that_refuses() -> None:
    fields = {
        "client": "192.0.2.1",
        "stage": "MAIL",
        "reply": "451 4.7.1",
        "milter": "yes",
        "text": "Service unavailable - try again later",
    }
    assert ("a milter that fails", "it did not answer") == reason_of(
        Event(1.0, "mx", "postfix/smtpd", "7", "", Kind.REFUSED, fields), ()
    )


def test_what_was_asked_to_come_back_and_did_is_told_with_how_long_it_took() -> None:
    log = Log()
    log.refusal(0, "450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted")
    log.refusal(MINUTE, "450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted")
    log.mail(10 * MINUTE, client="192.0.2.77")
    log.refusal(20 * MINUTE, "450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted", client="198.51.100.1")
    found = counted(log)
    assert (2, [10 * MINUTE], 1) == (found.waited.asked, found.waited.waits, found.waiting)


def test_what_observe_mode_would_have_refused_is_counted_apart() -> None:
    log = Log()
    said = 'judged="550 5.7.1 x" reasons=dnsbl.listed observed=dnsbl.listed'
    ours = f"side=policy stage=RCPT action=DUNNO {said} client=192.0.2.1"
    log.mail(0, also=[("gatekeeper[1]", ours)])
    found = counted(log)
    assert ({"dnsbl.listed": 1}, 0) == (dict(found.observed.counts), found.refused.total)


def test_signed_and_unsigned_mail_of_ours_is_counted_with_the_reason() -> None:
    log = Log()
    log.mail(0, login="me", also=[("opendkim[3]", "{queue_id}: DKIM-Signature field added (s=m, d=x.example)")])
    log.mail(
        1,
        login="me",
        also=[
            (
                "gatekeeper[1]",
                "side=milter queue_id={queue_id} action=DUNNO reasons=sign.ok client=192.0.2.1 sender=<a@x.example>",
            )
        ],
    )
    log.mail(
        2,
        also=[
            (
                "gatekeeper[1]",
                'side=milter queue_id={queue_id} action=DUNNO reasons=sign.no_key why="x: y" sender=<a@x.example>',
            )
        ],
    )
    found = counted(log)
    assert ({"x.example": 2}, {("x.example", "sign.no_key: x: y"): 1}) == (found.signed.counts, found.unsigned.counts)
    assert {("me", "accepted"): 2} == found.logins.counts


@pytest.mark.parametrize(
    ("client", "network"),
    [("192.0.2.77", "192.0.2.0/24"), ("2001:db8::1", "2001:db8::/64"), ("unknown", "unknown"), ("\x1b[0m", "?[0m")],
)
def test_a_client_counts_by_its_network(client: str, network: str) -> None:
    assert network == network_of(client)


def test_counts_of_what_is_frequent_survive_any_number_of_what_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tops, "LIMIT", 100)
    counted: Tops[int] = Tops()
    for number in range(10_000):
        counted.add(-1)
        counted.add(number)
    assert ((-1, 10_000), 20_000) == (counted.most_common(1)[0], counted.total)
    assert len(counted.counts) <= 100


def test_an_empty_log_has_nothing_to_tell() -> None:
    found = Statistics()
    assert ["0 lines, and nothing about mail in them"] == list(as_text(found, Tally()))
    assert 0 == as_json(found, Tally())["stories"]
    assert "<svg" not in "".join(as_page(found, Tally()))


EVIL = "<script>alert(1)</script>\x1b[31m&\"'"


def evil() -> Statistics:
    log = Log()
    log.mail(0, sender=f"a@{EVIL}", recipient=f"b@{EVIL}", login=EVIL)
    log.refusal(1, f"550 5.7.1 {EVIL}")
    return counted(log)


class Page(HTMLParser):
    """What is in a page: its elements, and whether each is closed."""

    VOID = ("meta", "line", "rect", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in self.VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()


def test_what_strangers_wrote_is_escaped_in_the_page_and_harmless_in_a_terminal() -> None:
    page = Page("".join(as_page(evil(), Tally(lines=9, first=START, last=START))))
    assert (0, []) == (page.tags["script"], page.open)
    assert all(line.isprintable() for line in as_text(evil(), Tally()))
    json.dumps(as_json(evil(), Tally()))


@given(st.text(max_size=60))
def test_any_text_of_a_log_leaves_the_page_whole(text: str) -> None:
    log = Log()
    log.mail(0, sender=text, recipient=text, login=text.replace(",", ""))
    log.refusal(1, f"550 5.7.1 {text}")
    page = Page("".join(as_page(counted(log), Tally(lines=9))))
    assert ([], 0) == (page.open, page.tags["script"])


def relay() -> list[str]:
    return [str(require_corpus(f"maillog/{name}")) for name in ("mail.log.1", "mail.log")]


def test_two_days_of_a_real_relay_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert OK == cli.main(["stats", "--json", *relay()])
    said = json.loads(capsys.readouterr().out)
    assert (7534, 0) == (said["lines"], said["unreadable"])
    assert {"delivered": 155, "refused": 8} == {
        row["fate"]: row["mails"] for row in said["fates"] if row["fate"] in ("delivered", "refused")
    }
    assert [7, 1] == [row["recipients"] for row in said["refused"]]
    assert [49] == [row["mails"] for row in said["signed"]]
    assert OK == cli.main(["stats", "--mail", *relay()])
    head, _, body = capsys.readouterr().out.partition("\n\n")
    assert head.startswith("Subject: Mail, counted: 181 mails and sessions in 7534 lines")
    assert "What was refused, and by whom" in body


def test_a_page_is_written_where_not_everybody_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert OK == cli.main(["stats", "--html", str(tmp_path / "page.html"), *relay()])
    assert 0o640 == (tmp_path / "page.html").stat().st_mode & 0o777
    assert not re.search(r"(?:src|href)=", (tmp_path / "page.html").read_text("utf-8"))
    assert USAGE == cli.main(["stats", "--html", str(tmp_path / "none" / "page.html"), *relay()])
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.integration("chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_in_light_and_dark_without_a_complaint(scheme: str, tmp_path: Path) -> None:
    chromium = require_program("chromium", "chromium")
    cli.main(["stats", "--html", str(tmp_path / "page.html"), *relay()])
    shot = tmp_path / "page.png"
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
        *(f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--enable-logging=stderr"),
        *("--hide-scrollbars", "--window-size=300,200", f"--screenshot={shot}", f"file://{tmp_path / 'page.html'}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert b"\x89PNG" == shot.read_bytes()[:4]
