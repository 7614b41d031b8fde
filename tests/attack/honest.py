# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that behave, in processes of their own: they ask what they know the answer to, as long as they are let.

What they count is the measure of every attack: how often they were answered, how often wrongly, how long they waited.
"""

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.milter_service import INBOUND, OUTBOUND, verifies

_SPAWN = multiprocessing.get_context("spawn")
_GIVE_UP = 30.0
"""Seconds after which an answer that has not come counts as none."""


class Question(NamedTuple):
    """A policy request, how its right answer begins, and what is right too while store or DNS are broken."""

    name: str
    attributes: str
    right: str
    also: tuple[str, ...] = ()


_NEW = "client_name=unknown\nreverse_client_name=unknown\n"
QUESTIONS = (
    Question("bad HELO", f"helo_name=-\nclient_address=192.0.2.1\n{_NEW}sender=\n", "501 5.5.2 "),
    Question("short HELO", f"helo_name=localhost\nclient_address=192.0.2.1\n{_NEW}sender=\n", "504 5.5.2 "),
    Question(
        "our network", f"helo_name=printer\nclient_address=198.51.100.7\n{_NEW}sender=x@nowhere.example\n", "DUNNO"
    ),
    Question(
        "banned sender",
        f"helo_name=client.example\nclient_address=192.0.2.1\n{_NEW}sender=banned@client.example\n",
        "554 5.7.1 ",
    ),
    Question(
        "unknown sender domain",
        f"helo_name=client.example\nclient_address=192.0.2.1\n{_NEW}sender=x@nowhere.example\n",
        "450 4.1.8 ",
    ),
    Question(
        "listed client",
        f"helo_name=client.example\nclient_address=192.0.2.66\n{_NEW}sender=x@client.example\n",
        "554 5.7.1 ",
        ("450 ", "DEFER_IF_PERMIT 4", "DUNNO"),
    ),
    Question(
        "first mail",
        f"helo_name=client.example\nclient_address=192.0.2.1\n{_NEW}sender=%x@client.example\n",
        "DEFER_IF_PERMIT 4.7.1 ",
        ("450 ", "DEFER_IF_PERMIT 4", "DUNNO"),
    ),
)
SILENT = Question(
    "sender domain whose servers are silent",
    f"helo_name=client.example\nclient_address=192.0.2.1\n{_NEW}sender=%x@silent.example\n",
    "DEFER_IF_PERMIT 4",
)


@dataclass
class Tally:
    """What honest clients have seen."""

    asked: int = 0
    answered: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    wrong_count: int = 0
    longest: float = 0.0
    away: float = 0.0
    """Seconds for which no connection could be had, at most."""

    def add(self, other: "Tally") -> None:
        """Count what another has seen, too."""
        self.asked += other.asked
        self.answered += other.answered
        self.lost += other.lost
        self.wrong = (self.wrong + other.wrong)[:8]
        self.wrong_count += other.wrong_count
        self.longest = max(self.longest, other.longest)
        self.away = max(self.away, other.away)

    def mistake(self, what: str) -> None:
        """Note a wrong answer."""
        self.wrong_count += 1
        if len(self.wrong) < 8:
            self.wrong.append(what)

    def __str__(self) -> str:
        return (
            f"{self.answered} of {self.asked} answered, {self.wrong_count} wrongly, {self.lost} connections lost; "
            f"longest wait {self.longest:.2f} s, longest without a connection {self.away:.2f} s"
        )


class Load:
    """Honest clients at work. `broken()` while store or DNS are, `mended()` afterwards; `end()` gives the tallies."""

    def __init__(self, policy: tuple[str, int], milter: str | tuple[str, int], clients: int) -> None:
        self._stop = _SPAWN.Event()
        self._weak = _SPAWN.Event()
        self._results: Queue[tuple[str, Tally]] = _SPAWN.Queue()
        self._running = [
            _SPAWN.Process(target=ask_policy, args=(policy, self._stop, self._weak, self._results), daemon=True)
            for _ in range(clients)
        ]
        self._running += [
            _SPAWN.Process(target=send_mail, args=(milter, self._stop, self._weak, self._results), daemon=True)
            for _ in range(clients)
        ]
        for process in self._running:
            process.start()
        self.policy, self.milter = Tally(), Tally()

    def broken(self) -> None:
        """From now on, answers are right too that do without store or DNS."""
        self._weak.set()

    def mended(self) -> None:
        """From now on, only the full answer is right. What was asked before has been answered by then."""
        time.sleep(0.5)
        self._weak.clear()

    def end(self) -> None:
        """Let the clients end, and add up what they have seen."""
        if self._stop.is_set():
            return
        self._stop.set()
        for _ in self._running:
            kind, tally = self._results.get(timeout=2 * _GIVE_UP)
            (self.policy if kind == "policy" else self.milter).add(tally)
        for process in self._running:
            process.join(5)


@contextmanager
def load(policy: tuple[str, int], milter: str | tuple[str, int], clients: int = 1) -> Iterator[Load]:
    """`clients` for each of the two protocols, that work while the block runs."""
    running = Load(policy, milter, clients)
    try:
        yield running
    finally:
        running.end()


def ask_policy(address: tuple[str, int], stop: Event, weak: Event, results: "Queue[tuple[str, Tally]]") -> None:
    """Ask the policy daemon until `stop`."""
    tally = Tally()
    connection: socket.socket | None = None
    count = 0
    while not stop.is_set():
        if connection is None and (connection := _connect(address, tally, stop)) is None:
            break
        question = QUESTIONS[count % len(QUESTIONS)]
        count += 1
        fresh = f"{os.getpid()}-{count}"
        may_be_weak = weak.is_set()
        tally.asked += 1
        begun = time.monotonic()
        try:
            answer = ask(connection, question, fresh)
        except OSError:
            tally.lost += 1
            connection.close()
            connection = None
            continue
        tally.answered += 1
        tally.longest = max(tally.longest, time.monotonic() - begun)
        right: Sequence[str] = (question.right, *question.also) if may_be_weak or weak.is_set() else (question.right,)
        if not answer.startswith(tuple(f"action={words}" for words in right)):
            tally.mistake(f"{question.name}: {answer!r}")
    if connection is not None:
        connection.close()
    results.put(("policy", tally))


def ask(connection: socket.socket, question: Question, fresh: str) -> str:
    """The answer to one question; `fresh` makes it one that nobody has asked. Raises OSError if there is none."""
    request = (
        "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n"
        f"recipient=b@ours.example\ninstance={fresh}\n{question.attributes.replace('%x', fresh)}\n"
    )
    connection.sendall(request.encode())
    answer = b""
    while not answer.endswith(b"\n\n"):
        data = connection.recv(4096)
        if not data:
            raise ConnectionError("closed without an answer")
        answer += data
    return answer.decode("ascii", "backslashreplace")


def _connect(address: tuple[str, int], tally: Tally, stop: Event) -> socket.socket | None:
    begun = time.monotonic()
    while not stop.is_set():
        with contextlib.suppress(OSError):
            connection = socket.create_connection(address, timeout=_GIVE_UP)
            tally.away = max(tally.away, time.monotonic() - begun)
            return connection
        time.sleep(0.01)
    return None


def send_mail(address: str | tuple[str, int], stop: Event, weak: Event, results: "Queue[tuple[str, Tally]]") -> None:
    """Give messages to the milter until `stop`: ours to be signed, strangers' to be verified, in turn."""
    tally = Tally()
    client: MilterClient | None = None
    count = 0
    gone_since = time.monotonic()
    while not stop.is_set():
        outbound = count % 2 == 0
        count += 1
        try:
            if client is None:
                client = MilterClient(address, timeout=_GIVE_UP)
                tally.away = max(tally.away, time.monotonic() - gone_since)
            tally.asked += 1
            begun = time.monotonic()
            may_be_weak = weak.is_set()
            wrong = _sign(client, verify=count % 50 == 0) if outbound else _verify(client, weakly=may_be_weak)
            client.close()
            client = None
        except OSError:
            if client is not None:
                tally.lost += 1
                client.close()
                client = None
                gone_since = time.monotonic()
            time.sleep(0.01)
            continue
        gone_since = time.monotonic()
        tally.answered += 1
        tally.longest = max(tally.longest, gone_since - begun)
        if wrong and not (wrong.startswith("results") and weak.is_set()):
            tally.mistake(wrong)
    results.put(("milter", tally))


def _sign(client: MilterClient, *, verify: bool) -> str:
    client.open(client="198.51.100.7", name="printer.ours.example")
    client.envelope(b"ann@ours.example", b"b@client.example")
    outcome = client.content(OUTBOUND)
    if outcome.answer != CONTINUE or [name for name, _ in outcome.fields] != ["DKIM-Signature"]:
        return f"not signed: {outcome}"
    return "" if not verify or verifies(OUTBOUND, outcome.fields) else "a signature that does not verify"


def _verify(client: MilterClient, *, weakly: bool) -> str:
    client.open(client="192.0.2.1", name="mail.client.example")
    client.envelope()
    outcome = client.content(b"Authentication-Results: mx.ours.example; dkim=pass header.d=bank.example\r\n" + INBOUND)
    if outcome.removed != [("Authentication-Results", 1)]:
        return f"a forged field stays: {outcome}"
    told: Any = dict(outcome.fields).get("Authentication-Results", "")
    if outcome.answer != CONTINUE or not told:
        return f"results are missing: {outcome}"
    return "" if weakly or ("spf=pass" in told and "dmarc=pass" in told) else f"results: {told}"
