# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Postfix has a restriction, gatekeeper answers as Postfix does: hundreds of sessions, played three times.

Postfix judges each session by restriction lists of its own (postfix_sessions.py, postfix_dns.py), on the same DNS;
gatekeeper judges what Postfix would have asked about it; and a Postfix that asks gatekeeper passes its answer on. The
table of sessions holds the answers, so that the second comparison needs no Postfix.
"""

import asyncio
import json
import re
import smtplib
import socket
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import Plan, prepare
from gatekeeper.config import config_file
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Decision, Outcome
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.live import LiveResolver
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.context import Context
from gatekeeper.policy.protocol import to_request
from gatekeeper.policy.server import PolicyServer
from gatekeeper.replay.postfix_model import Restrictions, refusal
from gatekeeper.replay.smtp import SmtpClient
from gatekeeper.stores.memory import MemoryStore
from tests.lab.dns import DnsServer
from tests.lab.guard import Guard
from tests.lab.sasl import SaslServer
from tests.support.certificates import Certificate, make
from tests.support.lab import need_postfix
from tests.support.needs import missing
from tests.support.postfix_dns import Chooser, Judge, free_loopback, has_ipv6
from tests.support.postfix_sessions import (
    CLASSES,
    FOLDER,
    LISTS,
    LOGINS,
    SESSIONS,
    ZONE,
    Session,
    gatekeeper_config,
    list_names,
    with_folder,
)

pytestmark = pytest.mark.integration("postfix")


def no_postfix(names: object) -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("same_as_postfix")
    for table in FOLDER.iterdir():
        (folder / table.name).symlink_to(table)
    (folder / "gatekeeper.toml").write_text(gatekeeper_config())
    return prepare(config_file.load(folder / "gatekeeper.toml", no_postfix))


def test_there_are_enough_sessions() -> None:
    assert 150 <= len({str(session) for session in SESSIONS})


def said(reply: str) -> str:
    """Code and enhanced code of a reply that refuses."""
    match = re.match(r"[45]\d\d \d\.\d+\.\d+", reply)
    return match[0] if match else "" if reply[0] in "23" else reply


async def judged(app: App, attributes: dict[str, str], session: Session) -> str:
    request = to_request({**attributes, "policy_context": f"c{session.judged_by}"})
    verdict = (await app.decide(request))[0].verdict
    if verdict.outcome is Outcome.DEFER_IF_REJECT:
        return ""  # for what Postfix may ask further down its list
    return said(verdict.reply or "250 fine")


@pytest.fixture
async def app(plan: Plan) -> AsyncIterator[App]:
    resolver = TableResolver(Zone.read(ZONE))
    app = await open_app(plan, resolver=resolver, store=MemoryStore(lambda: 1e9), clock=lambda: 1e9)
    yield app
    await app.close()


@pytest.mark.parametrize("judged_by", range(len(LISTS)))
async def test_gatekeeper_answers_as_postfix_does(app: App, judged_by: int) -> None:
    mine = [session for session in SESSIONS if session.judged_by == judged_by]
    answers = {str(session): await judged(app, await session.attributes(), session) for session in mine}
    assert {str(session): session.gatekeeper for session in mine} == answers


class Served:
    """gatekeeper's policy server in a thread, on the DNS server; it knows a session by the client's port."""

    def __init__(self, plan: Plan, dns: str, path: Path) -> None:
        self._plan, self._dns, self._path = plan, dns, path
        self.judged_by: dict[int, int] = {}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    async def _serve(self) -> None:
        resolver = CachingResolver(LiveResolver([self._dns], 1.0))
        self._app = await open_app(self._plan, resolver=resolver, store=MemoryStore(lambda: 1e9))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            self._path.chmod(0o777)
            listener.listen()
            listener.setblocking(False)
            server = PolicyServer(self)
            await server.serve([listener])
            self._ended = asyncio.Event()
            self._ready.set()
            await self._ended.wait()
            await server.drain(1)
        await self._app.close()

    async def decide(self, request: Request) -> tuple[Decision, Context]:
        """By the lists of the session that the client's port stands for."""
        judged_by = self.judged_by[request.client.port or 0]
        return await self._app.decide(request._replace(policy_context=f"c{judged_by}"))

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)


CERTIFIED = {
    # restrictions, and what those hear who show no certificate, the one that Postfix trusts, and a stranger's
    "t0": ("check_ccert_access inline:{{ {own}=REJECT, {stranger}=OK }}, defer", ("450", "554", "250")),
    "t1": ("check_ccert_access inline:{{ {own_key}=REJECT, {stranger}=DUNNO }}, defer", ("450", "554", "450")),
    "t2": ("check_ccert_access inline:{{ {own}=DUNNO, {own_key}=REJECT }}, defer", ("450", "554", "450")),
    "t3": (
        "check_ccert_access {{ inline:{{ {own}=OK, {stranger_key}=REJECT }} {{ search_order = pubkey_fingerprint }} }}",
        ("250", "250", "554"),
    ),
    "t4": ("permit_tls_clientcerts, reject", ("554", "554", "250")),
    "t5": ("permit_tls_all_clientcerts, reject", ("554", "250", "250")),
}


def certified(text: str, own: Certificate, stranger: Certificate) -> str:
    """`text` with the fingerprints in their places."""
    return text.format(
        own=own.fingerprint,
        own_key=own.key_fingerprint,
        stranger=stranger.fingerprint,
        stranger_key=stranger.key_fingerprint,
    )


@dataclass
class Court:
    """A Postfix that judges, what it asks, and gatekeeper."""

    postfix: Judge
    chooser: Chooser
    served: Served
    own: Certificate
    stranger: Certificate
    asked: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    """What Postfix asked, by its port and the session's number."""
    answers: dict[int, dict[str, str]] = field(default_factory=dict)

    def play(self, smtp: SmtpClient, session: Session) -> str:
        """What is said to the last command of a session."""
        words = session.words
        commands = [] if words["helo"] == "-" else [f"EHLO {words['helo']}"]
        match words["stage"]:
            case "ETRN":
                commands.append(f"ETRN {words['etrn']}")
            case "VRFY":
                commands.append(f"VRFY {words['to']}")
            case stage:
                commands.append(f"MAIL FROM:<{words['from']}>")
                commands += [f"RCPT TO:<{to}>" for to in (words["first"], words["to"]) if to]
                commands += ["DATA"] if stage == "DATA" else []
        reply = ""
        for command in commands:
            reply = smtp.command(command)
        if reply.startswith("354"):
            smtp.content(b"")
        return said(reply)

    def all_answers(self, port: int) -> dict[str, str]:
        """What the service at `port` says to all sessions, which are played once."""
        if port not in self.answers:
            self.answers[port] = self._play_all(port)
        return self.answers[port]

    def _play_all(self, port: int) -> dict[str, str]:
        answers = {}
        with SmtpClient("127.0.0.1", port) as smtp:
            for session in SESSIONS:
                words, number = session.words, 1000 + session.number
                self.judge(number, session)
                if words["peer"]:
                    with SmtpClient("127.0.0.1", port, words["peer"]) as own:
                        self.judge(own.port, session)
                        answers[str(session)] = self.play(own, session)
                        self.asked[port, session.number] = self.chooser.asked(own.port, words["stage"])
                    continue
                address = words["client"]
                greeting = smtp.xclient(
                    {
                        "ADDR": f"IPV6:{address}" if ":" in address else address,
                        "NAME": words["name"],
                        "REVERSE_NAME": words["reverse"],
                        "PORT": str(number),
                        "LOGIN": "[UNAVAILABLE]" if words["user"] == "-" else words["user"],
                    }
                )
                assert greeting.startswith("220"), greeting
                answers[str(session)] = self.play(smtp, session)
                self.asked[port, session.number] = self.chooser.asked(number, words["stage"])
        return answers

    def judge(self, port: int, session: Session) -> None:
        """From now on the client at `port` is judged by the lists of this session."""
        names = list_names(LISTS[session.judged_by])
        self.chooser.choose(port, {name: f"l{session.judged_by}_{name}" for name in names})
        self.served.judged_by[port] = session.judged_by


@pytest.fixture(scope="module")
def court(plan: Plan) -> Iterator[Court]:
    need_postfix()
    if not any(Path("/usr").glob("lib*/postfix/postfix-pcre.so")):
        missing("Postfix cannot read pcre: tables: apt-get install postfix-pcre")
    if not has_ipv6():
        missing("this machine has no IPv6, without which Postfix looks no AAAA up")
    try:
        host = free_loopback()
    except OSError as error:
        missing(f"no loopback address has a free port 53: {error}")
    root = Path(tempfile.mkdtemp(prefix="gatekeeper-judge-"))  # Postfix may not enter pytest's own folders
    root.chmod(0o755)
    classes = {
        f"l{index}_{name}": with_folder(table[name]) for index, table in enumerate(LISTS) for name in list_names(table)
    } | {name: with_folder(text) for name, text in CLASSES.items()}
    with ExitStack() as stack:
        guard = stack.enter_context(Guard(root))
        dns = stack.enter_context(DnsServer(Zone.read(ZONE), host, 53))
        own, stranger = make(root / "own.pem", "mx.example.org"), make(root / "stranger.pem", "stranger.example")
        classes |= {name: certified(text, own, stranger) for name, (text, _) in CERTIFIED.items()}
        logins, relay = with_folder(LOGINS), certified("inline:{{ {stranger}=x }}", own, stranger)
        postfix = Judge(root, host, classes, logins=logins, certificate=own.path, relay_clientcerts=relay)
        postfix.prepare()
        chooser = Chooser(postfix.chooser)
        stack.callback(chooser.close)
        stack.callback(SaslServer(postfix.sasl).close)
        served = Served(plan, dns.address, postfix.gatekeeper)
        stack.callback(served.close)
        stack.callback(postfix.stop)
        postfix.start(guard.began)
        yield Court(postfix, chooser, served, own, stranger)


def through_postfix(session: Session) -> str:
    """What a client hears of gatekeeper's answer: Postfix suits an address status (x.1.y) to the list that asked."""
    if not session.gatekeeper:
        return ""
    asking = Restrictions.RECIPIENT if session.at_rcpt else Restrictions.DATA
    return said(refusal(f"{session.gatekeeper} why", asking, "who"))


def test_postfix_answers_as_the_table_says(court: Court) -> None:
    assert {str(s): s.postfix for s in SESSIONS} == court.all_answers(court.postfix.ports.smtp)


def test_a_postfix_that_asks_gatekeeper_passes_its_answer_on(court: Court) -> None:
    assert {str(s): through_postfix(s) for s in SESSIONS} == court.all_answers(court.postfix.policy_port)


async def test_postfix_asks_what_the_table_is_judged_by(court: Court) -> None:
    """The attributes that gatekeeper is given without a Postfix are those that Postfix sends."""
    service = court.postfix.ports.smtp
    court.all_answers(service)
    for session in SESSIONS:
        words = session.words
        asked = court.asked[service, session.number]
        if words["to"] == "postmaster":
            assert {} == asked, "Postfix takes postmaster unasked"
            continue
        wanted = await session.attributes()
        queued = {"queue_id": bool(wanted.pop("queue_id")) or not session.at_rcpt}
        got = {name: asked.get(name) for name in wanted} | {"queue_id": bool(asked.get("queue_id"))}
        assert (str(session), wanted | queued) == (str(session), got)


def test_certificates_are_judged_as_postfix_does(court: Court, tmp_path: Path) -> None:
    texts = {name: certified(text, court.own, court.stranger) for name, (text, _) in CERTIFIED.items()}
    relay = certified("inline:{{ {stranger}=x }}", court.own, court.stranger)
    contexts = [f"[policy.contexts.{name}]\nrestrictions = {json.dumps(text)}" for name, text in texts.items()]
    lines = ['hostname = "mx.example.org"', "[policy]", f"relay_clientcerts = {json.dumps(relay)}", *contexts]
    (tmp_path / "gatekeeper.toml").write_text("\n".join(lines))
    app = asyncio.run(
        open_app(prepare(config_file.load(tmp_path / "gatekeeper.toml", no_postfix)), store=MemoryStore())
    )
    heard: dict[str, tuple[list[str], list[str]]] = {}
    for name in CERTIFIED:
        heard[name] = ([], [])
        for shown in (None, court.own, court.stranger):
            said, asked = show(court, name, shown)
            decision, _ = asyncio.run(app.decide(to_request({**asked, "policy_context": name})))
            heard[name][0].append(said)
            heard[name][1].append(decision.verdict.code or "250")
    assert {name: (list(codes), list(codes)) for name, (_, codes) in CERTIFIED.items()} == heard


def show(court: Court, name: str, shown: Certificate | None) -> tuple[str, dict[str, str]]:
    """What Postfix says at RCPT to a client with this certificate, judged by one class; and what it asked about it."""
    context = ssl._create_unverified_context()
    if shown is not None:
        context.load_cert_chain(shown.path)
    with smtplib.SMTP("127.0.0.1", court.postfix.ports.smtp, "client.example", timeout=20) as smtp:
        assert smtp.sock is not None
        port = smtp.sock.getsockname()[1]
        court.chooser.choose(port, {"recipient": name})
        smtp.starttls(context=context)
        smtp.ehlo()
        smtp.mail("alice@good.example")
        code, _ = smtp.rcpt("bob@example.org")
        return str(code), court.chooser.asked(port, "RCPT")
