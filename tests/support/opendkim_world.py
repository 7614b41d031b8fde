# SPDX-License-Identifier: GPL-3.0-or-later
"""opendkim and `gatekeeper opendkim` side by side, from the same opendkim.conf, asked about the same messages.

gatekeeper is started from a process that has everything imported already: a second for each configuration would be too
long. Both are the real milters on unix sockets.
"""

import os
import re
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gatekeeper.core import message
from tests.support.milter_client import (
    BODY,
    CONNECT,
    CONTINUE,
    END_OF_HEADER,
    NO_REPLY,
    REPLY,
    MilterClient,
    Outcome,
)
from tests.support.needs import OURSELVES, ROOT, needs, require_program
from tests.support.service import until

ACCEPT, DISCARD, REJECT, TEMPFAIL, SKIP = b"a", b"d", b"r", b"t", b"s"

_NURSERY = """
import gc, os, sys
import gatekeeper.app.app, gatekeeper.milter.server, gatekeeper.opendkim.mapping, gatekeeper.daemon.supervisor
from gatekeeper.cli import main
gc.freeze()
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os._exit(main(["opendkim", "-f", "-x", line.strip()]))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Nursery:
    """Starts gatekeeper for one configuration after the other."""

    def __init__(self) -> None:
        needs(OURSELVES)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    @contextmanager
    def gatekeeper(self, conf: Path, socket: Path) -> Iterator[str]:
        """gatekeeper, serving."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{conf}\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        try:
            until(lambda: serves(socket) or not Path(f"/proc/{pid}").exists(), "gatekeeper serves")
            assert socket.exists(), "gatekeeper does not start"
            yield str(socket)
        finally:
            os.kill(pid, signal.SIGKILL)  # its workers see that and end by themselves
            assert "ended\n" == self._process.stdout.readline()


@contextmanager
def opendkim(conf: Path, socket: Path) -> Iterator[str]:
    """opendkim, serving."""
    daemon = subprocess.Popen([require_program("opendkim", "opendkim"), "-f", "-x", str(conf)], start_new_session=True)
    try:
        until(lambda: serves(socket) or daemon.poll() is not None, "opendkim serves")
        assert socket.exists(), "opendkim does not start"
        yield str(socket)
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)  # with AutoRestart it has a child
        daemon.wait()


def serves(socket: Path) -> bool:
    """Whether somebody answers at `socket`."""
    if not socket.exists():
        return False
    try:
        MilterClient(str(socket)).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Mail:
    """A message with its envelope, its client and the macros that come with it."""

    raw: bytes
    client: str = "127.0.0.1"
    name: str = "localhost"
    sender: bytes = b"joe@example.com"
    recipient: bytes = b"ann@example.net"
    connect: dict[str, str] = field(default_factory=dict)
    macros: dict[str, str] = field(default_factory=dict)


class _Ended(Exception):
    """The milter has decided before the end."""


class Client(MilterClient):
    """An MTA for a milter that may answer early, as opendkim does."""

    def say(self, command: bytes, data: bytes = b"") -> None:
        """One command; raises _Ended if that was all that the milter wants."""
        self._send(command, data)
        if self.steps & NO_REPLY[command]:
            return
        answer, text = self._receive()
        if answer not in (CONTINUE, SKIP):
            raise _Ended(Outcome(answer, text.rstrip(b"\0").decode()))

    def connect(self, client: str = "192.0.2.1", name: str = "client.example", **macros: str) -> str:
        """A client connects; raises _Ended if its mail is of no interest."""
        self._macros(CONNECT, {"daemon_name": "smtpd", **macros})
        self.say(CONNECT, name.encode() + b"\0" + b"4" + struct.pack("!H", 2525) + client.encode() + b"\0")
        return ""

    def deliver(self, mail: Mail) -> Outcome:
        """What comes of one message on a connection of its own."""
        macros: dict[str, Any] = {"j": "mx.example.net", **mail.connect}
        try:
            self.open(client=mail.client, name=mail.name, helo=b"client.example", **macros)
            self.envelope(mail.sender, mail.recipient, **mail.macros)
            headers, body = message.parse(mail.raw)
            for header in headers:
                self.header(header.name, header.value)
            self._macros(END_OF_HEADER, {"i": "4AbCdE"})
            self.say(END_OF_HEADER)
            for start in range(0, len(body), 65535):
                self.say(BODY, body[start : start + 65535])
            return self.end()
        except _Ended as ended:
            (outcome,) = ended.args
            assert isinstance(outcome, Outcome)
            return outcome


def deliver(socket: str, mail: Mail) -> Outcome:
    with Client(socket) as client:
        return client.deliver(mail)


def with_fields(mail: Mail, fields: list[tuple[str, str]]) -> Mail:
    """The message as it leaves, on its way to somebody else."""
    top = "".join(f"{name}:{value}\r\n" for name, value in fields).replace("\r\n", "\n").replace("\n", "\r\n")
    return Mail(top.encode() + mail.raw, client="192.0.2.99", name="elsewhere.example")


@dataclass(frozen=True)
class Signature:
    """What one DKIM-Signature says, but for the time and the bytes; `fields` are the names in h= with their counts."""

    tags: tuple[str, ...]
    fields: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Decided:
    """What matters of an outcome."""

    answer: str
    signatures: tuple[Signature, ...] = ()
    results: tuple[str, ...] | None = None
    removed: tuple[tuple[str, int], ...] = ()
    others: tuple[str, ...] = ()


def decided(outcome: Outcome) -> Decided:
    """The outcome in a form that can be compared."""
    fields = outcome.fields
    answer = {CONTINUE: "accept", ACCEPT: "accept", DISCARD: "discard", REJECT: "5xx", TEMPFAIL: "4xx"}.get(
        outcome.answer, outcome.text[:1] + "xx" if outcome.answer == REPLY else repr(outcome.answer)
    )
    results = [value for name, value in fields if name == "Authentication-Results"]
    if answer != "accept":
        return Decided(answer)  # what is said besides is not used
    return Decided(
        answer=f"quarantine {answer}" if outcome.held else answer,
        signatures=tuple(
            sorted((_signature(value) for name, value in fields if name == "DKIM-Signature"), key=lambda s: s.tags)
        ),
        results=_results(results[0]) if results else None,
        removed=tuple(sorted((name, max(1, index)) for name, index in outcome.removed)),  # opendkim says 0 for 1
        others=tuple(name for name, _ in fields if name not in ("DKIM-Signature", "Authentication-Results")),
    )


def _signature(value: str) -> Signature:
    tags = dict(tag.split("=", 1) for tag in re.sub(r"\s", "", value).split(";") if tag)
    lifetime = int(tags["x"]) - int(tags["t"]) if "x" in tags else None
    shown = [f"{name}={tags[name]}" for name in ("a", "c", "d", "s", "i", "l", "r") if name in tags]
    names = Counter(name.lower() for name in tags["h"].split(":"))
    return Signature((*shown, f"bh={tags['bh']}", f"x-t={lifetime}"), tuple(sorted(names.items())))


def _results(value: str) -> tuple[str, ...]:
    """authserv-id, and for each DKIM result its outcome, d= and the beginning of b=."""
    flat = " ".join(value.replace("\t", " ").split())
    authserv_id, _, rest = flat.partition(";")
    found = [authserv_id.strip().strip('"')]
    for result in re.split(r";\s*", rest):
        match = re.match(r"\s*dkim=(\w+)", result)
        if match:
            told = [re.search(rf'header\.{name}="?(\S+)', result) for name in ("d", "b")]
            found.append(" ".join([match[1], told[0][1] if told[0] else "", told[1][1][:6] if told[1] else ""]).strip())
    return tuple(found)
