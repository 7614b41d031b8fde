# SPDX-License-Identifier: GPL-3.0-or-later
"""A configuration tried on the mail of a log: in the log's own time, as a difference, and without guessing."""

import asyncio
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.app.app import open_app
from gatekeeper.app.plan import prepare
from gatekeeper.cli.common import FINDING, OK, USAGE
from gatekeeper.config import config_file
from gatekeeper.core.request import Client, Request, Stage, parse_address
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.evidence.backtest import Asked, Was, in_order, recipients_of
from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.stories import Story
from gatekeeper.stores.store_url import open_store
from tests.support.mail_logs import START, Log
from tests.support.needs import require_corpus

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
GREYLISTED = "450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted"
LISTED = "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.example"


GREYLIST = '[checks.greylist]\nlearning = "0s"\nclients = "all"\ndelay = "5m"\n'


class World:
    """A folder with a log, a zone and configurations; `test` plays the log through one of these."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.log = Log()
        self.zone = "x.example. MX 10 mail.x.example.\ny.example. MX 10 mail.y.example.\n"

    def test(self, restrictions: str, *more: str, sections: str = "", status: int | None = None) -> str:
        (self.folder / "mail.log").write_text(self.log.text())
        (self.folder / "dns.zone").write_text(self.zone)
        (self.folder / "g.toml").write_text(
            'hostname = "mx.y.example"\nmynetworks = "127.0.0.0/8"\nstore.url = "memory:"\n'
            f'[policy]\nrestrictions = "{restrictions}"\n{sections}'
        )
        dns = [] if "--no-dns" in more else ["--dns", str(self.folder / "dns.zone")]
        said = ["backtest", str(self.folder / "mail.log"), "--config", str(self.folder / "g.toml"), *dns, *more]
        found = cli.main(said)
        assert status in (None, found)
        return self._capsys.readouterr().out

    def json(self, restrictions: str, *more: str, sections: str = "") -> dict[str, object]:
        found: dict[str, object] = json.loads(self.test(restrictions, "--json", *more, sections=sections))
        return found

    def changes(self, restrictions: str, *more: str, sections: str = "") -> list[tuple[str, str, str, int]]:
        found = self.json(restrictions, *more, sections=sections)["changes"]
        assert isinstance(found, list)
        return sorted((one["was"], one["would"], one["rule"], one["count"]) for one in found)


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return World(tmp_path, capsys)


def test_a_configuration_that_answers_as_the_relay_did_makes_no_difference(world: World) -> None:
    world.log.mail(0)
    out = world.test("reject_unknown_sender_domain", status=OK)
    assert "1 recipients were asked about again" in out
    assert "1 would have been answered as they were" in out


def test_accepted_mail_that_would_be_refused_is_told_by_rule_sender_and_client_with_a_command(world: World) -> None:
    for minute in range(5):
        world.log.mail(minute * MINUTE, sender="a@nowhere.example")
    out = world.test("reject_unknown_sender_domain", status=FINDING)
    assert "Accepted mail that would have to come back: 5 recipients\n  sender.unknown_domain: 5\n" in out
    assert "      from nowhere.example (5)\n      by 192.0.2.1 (5)\n" in out
    commands = [line.partition(": ")[2] for line in out.splitlines() if "gatekeeper --config" in line]
    assert 3 == len(commands)
    arguments = shlex.split(commands[0])
    assert ["gatekeeper", "--config", str(world.folder / "g.toml"), "explain"] == arguments[:4]
    assert OK == cli.main([*arguments[1:], "--dns", str(world.folder / "dns.zone")])


def test_refused_mail_that_would_pass_is_told_unless_it_was_refused_by_what_stays(world: World) -> None:
    world.log.refusal(0, LISTED)
    world.log.refusal(1, "554 5.7.1 <b@y.example>: Relay access denied")
    world.log.refusal(2, "550 5.1.1 <b@y.example>: Recipient address rejected: User unknown in table")
    found = world.json("reject_unknown_sender_domain")
    assert (3, 0, 2) == (found["asked"], found["same"], found["kept"])
    assert [("refused for good", "accepted", "postfix: listed by zen.example", 1)] == world.changes(
        "reject_unknown_sender_domain"
    )


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_observe_mode_for_everything_is_passed_over(
    world: World, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    world.log.mail(0, sender="a@nowhere.example")
    world.test("reject_unknown_sender_domain")
    config = world.folder / "g.toml"
    config.write_text(f'mode = "{mode}"\n{config.read_text()}')
    words = ["backtest", str(world.folder / "mail.log"), "--config", str(config)]
    assert FINDING == cli.main([*words, "--dns", str(world.folder / "dns.zone")])
    assert "  sender.unknown_domain: 1\n" in capsys.readouterr().out


def test_a_check_that_only_observes_refuses_nothing(world: World) -> None:
    world.log.mail(0)
    assert [] == world.changes("greylist", sections=f'{GREYLIST}mode = "observe"\n')


def test_greylisting_runs_through_the_log_in_its_own_time(world: World) -> None:
    world.log.refusal(0, GREYLISTED)
    world.log.refusal(MINUTE, GREYLISTED)
    world.log.mail(10 * MINUTE)
    world.log.mail(3 * DAY)
    assert [] == world.changes("greylist", sections=GREYLIST)


def test_greylisting_of_a_stranger_who_was_not_asked_to_wait_is_a_difference(world: World) -> None:
    world.log.mail(0)
    assert [("accepted", "refused for now", "greylist.early", 1)] == world.changes("greylist", sections=GREYLIST)


def test_an_empty_store_learns_first_as_it_would(world: World) -> None:
    world.log.mail(0)
    world.log.mail(2 * DAY, client="198.51.100.1", sender="z@x.example")
    learning = GREYLIST.replace('"0s"', '"1d"')
    assert [("accepted", "refused for now", "greylist.early", 1)] == world.changes("greylist", sections=learning)


def test_the_log_can_meet_the_state_that_a_store_has(world: World) -> None:
    world.log.mail(0)
    world.log.mail(HOUR, recipient="other@y.example")
    state = f"sqlite:{world.folder / 'state.db'}"
    (world.folder / "policy").mkdir()
    assert 2 == sum(change[3] for change in world.changes("greylist", sections=GREYLIST))
    # A store in which greylisting has met the sender: it is copied, and what the log does to the copy is not kept.

    async def met_before() -> None:
        now = [START - DAY]
        store = await open_store(state, lambda: now[0])
        app = await open_app(
            prepare(config_file.load(world.folder / "g.toml")),
            resolver=TableResolver(Zone.parse(world.zone)), store=store, clock=lambda: now[0],
        )  # fmt: skip
        for _ in range(2):
            client = Client(address=parse_address("192.0.2.1"), name="h.example", reverse_name="h.example")
            request = Request(stage=Stage.RCPT, client=client, sender="a@x.example", recipient="b@y.example")
            decision, context = await app.decide(request)
            await context.settle(decision)
            now[0] += HOUR
        await app.close()

    asyncio.run(met_before())
    for _ in range(2):
        found = world.changes("greylist", "--state", state, sections=GREYLIST)
        assert [("accepted", "refused for now", "greylist.early", 1)] == found


def test_limits_count_in_the_logs_own_time(world: World) -> None:
    for minute in (0, 1, 2, 90):
        world.log.mail(minute * MINUTE)
    limits = '[checks.ratelimit]\nclient_messages = ["2/1h"]\n'
    assert [("accepted", "refused for now", "ratelimit.messages", 1)] == world.changes("ratelimit", sections=limits)


def test_what_only_a_dns_answer_could_tell_is_not_known_without_dns(world: World) -> None:
    world.log.mail(0)
    out = world.test("reject_unknown_sender_domain", "--no-dns", status=OK)
    assert "1 recipients: sender.unknown_domain_temporary wanted a DNS answer that did not come" in out


def test_a_helo_that_the_log_does_not_tell_is_not_judged_and_said(world: World) -> None:
    world.log.mail(0)
    world.log.mail(1, also=[("policyd-spf[5]", "{queue_id}: prepend Received-SPF: None (x) helo=localhost;")])
    out = world.test("reject_non_fqdn_helo_hostname")
    assert "1 recipients: the log does not tell the client's HELO" in out
    assert "  helo.non_fqdn: 1\n" in out


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (f"{LISTED}; Error: open resolver; 127.255.255.254", "zen.example refuses this relay's resolver"),
        ("450 4.3.0 <b@y.example>: Temporary lookup failure", "a name server did not answer"),
        ("450 4.7.25 Client host rejected: name service error for name=x", "a name server did not answer"),
    ],
)  # fmt: skip
def test_what_the_log_shows_to_be_wrong_already_is_named(world: World, said: str, wrong: str) -> None:
    world.log.refusal(0, said)
    assert wrong in world.test("reject_unknown_sender_domain", status=FINDING)


def test_a_milter_that_postfix_cannot_reach_is_named(world: World) -> None:
    world.log.mail(
        0, also=[("postfix/smtpd[7]", "warning: connect to Milter service inet:127.0.0.1:8891: Connection refused")]
    )
    assert "Postfix could not reach a policy daemon or milter" in world.test(
        "reject_unknown_sender_domain", status=FINDING
    )


def test_own_users_that_were_refused_are_named(world: World) -> None:
    envelope = "from=<a@x.example> to=<b@y.example> proto=ESMTP helo=<h> sasl_username=<me>"
    world.log.say(0, "postfix/smtpd[7]", f"NOQUEUE: reject: RCPT from h[192.0.2.1]: {LISTED}; {envelope}")
    assert "own users were refused by postfix: listed by zen.example" in world.test("reject_unknown_sender_domain")


def test_a_wrong_state_is_told(world: World) -> None:
    world.log.mail(0)
    world.test("greylist", "--state", "nonsense:", status=USAGE)


def test_a_mail_that_waits_long_in_the_queue_is_asked_about_when_it_came(world: World) -> None:
    world.log.mail(0)
    late = [line for line in world.log.lines if "removed" in line.text or "status=sent" in line.text]
    for line in late:
        world.log.lines.remove(line)
        world.log.say(5 * DAY, f"{line.program}[{line.pid}]", line.text)
    world.log.say(0, "postfix/smtp[6]", "4B1F0001: to=<b@y.example>, relay=none, delay=1, status=deferred (x)")
    world.log.mail(HOUR)
    world.log.lines.sort(key=lambda line: line.at)
    assert (2, 2) == tuple(world.json("reject_unknown_sender_domain")[name] for name in ("asked", "same"))


@given(st.lists(st.integers(0, 600), max_size=40))
def test_recipients_come_in_the_order_in_which_they_were_asked_about(times: list[int]) -> None:
    def story(at: int) -> Story:
        fields = {
            "client": "192.0.2.1",
            "name": "h",
            "stage": "RCPT",
            "reply": "450",
            "sender": "a@x",
            "recipient": f"{at}@y",
        }
        return Story("mx", [], [Event(float(at), "mx", "postfix/smtpd", "7", "", Kind.REFUSED, fields)])

    asked = list(in_order(map(story, times)))
    assert sorted(times) == [int(one.at) for one in asked]


def test_a_session_in_which_only_a_policy_daemon_spoke_asks_nothing() -> None:
    decided = Event(1.0, "mx", "gatekeeper", "7", "", Kind.DECIDED, {"client": "192.0.2.1", "recipient": "b@y"})
    assert [] == list(recipients_of(Story("mx", [], [decided])))


def test_a_relays_two_days_are_played_without_the_dns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    logs = [str(require_corpus(f"maillog/{name}")) for name in ("mail.log.1", "mail.log")]
    (tmp_path / "g.toml").write_text('hostname = "mx.y.example"\nmynetworks = "127.0.0.0/8"\nstore.url = "memory:"\n')
    cli.main(["backtest", *logs, "--no-dns", "--json", "--config", str(tmp_path / "g.toml")])
    found = json.loads(capsys.readouterr().out)
    assert (194, 8) == (found["asked"], found["kept"])
    # The publishers' pseudonyms for hosts have no dot: what HELO is known, from policyd-spf, is none of a host.
    assert {"helo.non_fqdn"} == {change["rule"] for change in found["changes"]}


def test_what_was_is_one_of_the_words_that_are_told() -> None:
    assert {"accepted", "refused for now", "refused for good", "refused by something else", "not known"} == set(Was)
    assert "at" in Asked._fields
