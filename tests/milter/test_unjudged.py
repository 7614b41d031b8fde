# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever goes wrong in the milter, a message does not go on with results in our name that are not ours.

The milter is the real one, in a process of its own; tests/support/milter_faults.py makes it fail at a chosen line, or a
prelude gives it a world (resolver, clock, store) that fails. What comes out is seen by a milter client, and by Postfix.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.replay.smtp import SmtpClient
from tests.support.lab import new_lab
from tests.support.milter_client import CONTINUE, REPLY, MilterClient, Outcome
from tests.support.milter_service import INBOUND, OUTBOUND, serving
from tests.support.service import Service

pytestmark = pytest.mark.integration("gatekeeper")

FORGED = (
    b"Authentication-Results: mx.ours.example; dmarc=pass\r\n"
    b"Authentication-Results: other.example; spf=pass\r\n"
    b"authentication-results: mx.ours.example 1; spf=pass\r\n"
)
REMOVED = [("Authentication-Results", 3), ("Authentication-Results", 1)]
TEMPFAIL, HUNG_UP = b"t", b""
FAULTS = "import tests.support.milter_faults"


@dataclass(frozen=True)
class Milter:
    """A milter that fails where it is told to."""

    path: str
    where: Path

    def fail(self, part: str, at: int) -> None:
        self.where.write_text(f"{part} {at}")

    def lines(self) -> int:
        return int(self.where.with_suffix(".lines").read_text())


@pytest.fixture(scope="module", params=["accept", "tempfail"])
def wanted(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def failing(wanted: str) -> Iterator[Milter]:
    with TemporaryDirectory(prefix="gatekeeper-test-") as name, pytest.MonkeyPatch.context() as patch:
        where = Path(name) / "fault"
        where.parent.chmod(0o777)  # workers are somebody else
        patch.setenv("MILTER_FAULT", str(where))
        with serving(milter=f'on_error = "{wanted}"', prelude=FAULTS, faulty=True) as path:
            yield Milter(path, where)


def inbound(path: str) -> Outcome:
    """What becomes of a stranger's mail with forged results."""
    with MilterClient(path, timeout=30) as client:
        client.open()
        client.envelope()
        return client.content(FORGED + INBOUND)


def outbound(path: str) -> Outcome:
    """And of a user's."""
    with MilterClient(path, timeout=30) as client:
        client.open()
        client.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
        return client.content(FORGED + OUTBOUND)


def is_sound(outcome: Outcome, wanted: str) -> bool:
    """Whether no forged field goes on, and a message that was neither signed nor judged goes on only if it may."""
    if outcome.answer == CONTINUE:
        return outcome.removed == REMOVED and bool(outcome.fields or wanted == "accept")
    return outcome.answer == TEMPFAIL or (outcome.answer == REPLY and outcome.text.startswith("451 4.3.0 "))


@pytest.mark.parametrize("deliver", [inbound, outbound])
@pytest.mark.parametrize(("part", "step"), [("gatekeeper/milter/", 1), ("gatekeeper/", 19)])
def test_at_whichever_line_the_milter_fails_no_forged_result_goes_on(
    failing: Milter, wanted: str, part: str, step: int, deliver: object
) -> None:
    assert callable(deliver)
    failing.fail(part, 0)
    for _ in range(2):  # so that all is remembered
        assert is_sound(deliver(failing.path), wanted)
    seen = []
    for at in range(1, failing.lines() + 1, step):
        failing.fail(part, at)
        try:
            outcome = deliver(failing.path)
        except (ConnectionError, struct.error):
            outcome = Outcome(HUNG_UP)  # before anything was agreed on: main.cf says what Postfix does without a milter
        assert outcome.answer == HUNG_UP or is_sound(outcome, wanted), f"line {at}: {outcome}"
        seen.append((outcome.answer, bool(outcome.fields)))
    assert len(seen) > 50
    unjudged = (CONTINUE, False) if wanted == "accept" else (REPLY, False)
    assert seen.count(unjudged) > len(seen) / 3
    assert seen.count((HUNG_UP, False)) < len(seen) / 5


WORLD = """\
import asyncio, time
import gatekeeper.daemon.worker as worker
from gatekeeper.milter import message
real = worker.open_app
async def open_app(plan):
    app = await real(plan)
    {change}
    return app
worker.open_app = open_app
def broken(*_, **__):
    raise RuntimeError("broken")
async def hanging(*_, **__):
    await asyncio.sleep(60)
async def blocking(*_, **__):
    time.sleep(4)
def shorten():
    import gatekeeper.milter.callbacks as callbacks
    callbacks.END_OF_MESSAGE_TIMEOUT = 1.0
"""
CHANGES = {
    "the resolver fails": "app.resolver.query = app.resolver.known = broken",
    "the clock fails": "app.clock = broken",
    "the store fails": "app.store.secret = broken",
    "the resolver never answers": "shorten(); app.resolver.query = hanging; message.BUDGET = 60",
    "the event loop hangs": "shorten(); app.resolver.query = blocking",
    "the event loop is closed": "app.facts = lambda *_, real=app.facts: (setattr(asyncio, 'run_coroutine_threadsafe', "
    "broken), real(*_))[1]",
}


def prelude(change: str) -> str:
    return f"exec({WORLD.replace('{change}', change)!r})"


@pytest.mark.parametrize("change", CHANGES)
def test_a_world_that_fails_lets_mail_through_without_forged_results_and_says_so(change: str) -> None:
    with serving("verify.count = true\n", prelude=prelude(CHANGES[change]), faulty=True) as path:
        for _ in range(2):
            outcome = inbound(path)
            assert (CONTINUE, REMOVED, []) == (outcome.answer, outcome.removed, outcome.fields)


@pytest.mark.parametrize("change", CHANGES)
def test_a_world_that_fails_lets_mail_wait_where_that_is_wanted(change: str) -> None:
    on_error = 'on_error = "tempfail"'
    with serving("verify.count = true\n", milter=on_error, prelude=prelude(CHANGES[change]), faulty=True) as path:
        outcome = inbound(path)
        assert (REPLY, "451 4.3.0", []) == (outcome.answer, outcome.text[:9], outcome.removed)


@pytest.fixture(scope="module")
def sound() -> Iterator[str]:
    with serving(faulty=True) as path:
        yield path


def test_a_message_without_a_session_waits(sound: str) -> None:
    with MilterClient(sound) as client:
        client.open()
        client.envelope()
        assert CONTINUE == client.content(INBOUND).answer
        client._send(b"K")  # the next client of the same connection: libmilter closes the session for it
        client.open()
        client.envelope()
        assert "451 4.3.0" == client.content(FORGED + INBOUND).text[:9]


def test_a_message_whose_header_was_not_heard_goes_on_unjudged(sound: str) -> None:
    with MilterClient(sound) as client:
        client.open()
        client.envelope()
        assert (CONTINUE, [], []) == ((outcome := client.end()).answer, outcome.removed, outcome.fields)


def test_a_message_whose_forged_results_may_not_be_removed_waits(sound: str) -> None:
    with MilterClient(sound, actions=0x01) as client:
        client.open()
        client.envelope()
        assert "451 4.3.0" == client.content(FORGED + INBOUND).text[:9]
        client.envelope()
        assert CONTINUE == client.content(INBOUND).answer


def test_in_observe_mode_an_unjudged_message_is_left_as_it_is_too() -> None:
    with serving("mode = 'observe'\n", prelude=prelude(CHANGES["the resolver fails"]), faulty=True) as path:
        outcome = inbound(path)
        assert (CONTINUE, [], []) == (outcome.answer, outcome.removed, outcome.fields)


@pytest.mark.integration("gatekeeper", "postfix")
@pytest.mark.parametrize("on_error", ["accept", "tempfail"])
def test_what_postfix_delivers_is_without_forged_results_or_waits(on_error: str) -> None:
    with new_lab() as lab:
        config = lab.root / "gatekeeper.toml"
        config.write_text(
            'hostname = "mx.ours.example"\nmynetworks = []\nuser = "nobody"\n[store]\nurl = "memory:"\n[dns]\n'
            f'nameservers = ["{lab.dns.address}"]\n[milter]\nlisten = "unix:{lab.postfix.sockets}/milter.sock"\n'
            f'socket_group = "{lab.postfix.group}"\non_error = "{on_error}"\n'
        )
        service = Service(config, "milter", prelude=prelude(CHANGES["the resolver fails"]))
        service.wait_for("^listening milter")
        with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
            for command in ("EHLO pc", "MAIL FROM:<a@client.example>", "RCPT TO:<b@example.org>", "DATA"):
                smtp.command(command)
            reply = smtp.content(FORGED + INBOUND)
        service.wait_for(r"milter\.unjudged: a message (goes on|waits) \(queue id [0-9A-F]+\): its callback ")
        assert 0 == service.end()
        if on_error == "tempfail":
            assert reply.startswith("451 4.3.0 This message could not be checked here")
            return
        delivery = lab.sink.find(b"two  spaces")
        assert delivery is not None
        found = re.findall(rb"(?i)^authentication-results:.*\r\n", delivery.content, re.MULTILINE)
        assert [b"Authentication-Results: other.example; spf=pass\r\n"] == found
