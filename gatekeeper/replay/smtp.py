# SPDX-License-Identifier: GPL-3.0-or-later
"""An exact SMTP client, and recorded sessions played with it through a real Postfix.

Bytes go out as they are written in the case, replies come back as text. The client's address, name and login are made
up with XCLIENT (XCLIENT_README), which the Postfix must allow to us (`smtpd_authorized_xclient_hosts`).
"""

import asyncio
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gatekeeper.auth.iprev import check_iprev
from gatekeeper.core.message import crlf
from gatekeeper.core.request import UNKNOWN, Client, parse_address
from gatekeeper.dnsclient.resolver import Resolver
from gatekeeper.replay.fixture import Case, RecordedConnection, RecordedMessage, client_names

TIMEOUT = 30.0
"""Seconds to wait for one reply: longer than any answer of gatekeeper's may take."""


_QUEUED = re.compile(r"queued as (\w+)")


class SmtpError(Exception):
    """The server went away or did not speak SMTP."""


class SmtpClient:
    """One connection, from the address `source` if it is given. Each command returns the reply: its code, a space, and
    the text of all its lines.
    """

    def __init__(self, host: str, port: int, source: str = "") -> None:
        self._socket = socket.create_connection((host, port), TIMEOUT, (source, 0) if source else None)
        self._lines = self._socket.makefile("rb")
        self.greeting = self._reply()

    @property
    def port(self) -> int:
        """Our own port."""
        port: int = self._socket.getsockname()[1]
        return port

    def command(self, line: str) -> str:
        """Send one line and return the reply. Raises SmtpError."""
        return self._send(line.encode("utf-8", "surrogateescape") + b"\r\n")

    def xclient(self, attributes: Mapping[str, str]) -> str:
        """Become another client. Postfix greets anew, so the reply is the greeting that this client gets."""
        self.command("EHLO lab.invalid")
        return self.command("XCLIENT " + " ".join(f"{name}={_xtext(value)}" for name, value in attributes.items()))

    def content(self, message: bytes) -> str:
        """Send a message (lines end in CRLF) after DATA was answered with 354."""
        if message and not message.endswith(b"\r\n"):
            message += b"\r\n"
        return self._send(re.sub(rb"(?m)^\.", b"..", message) + b".\r\n")

    def close(self) -> None:
        """Leave politely if the server still listens."""
        try:
            self.command("QUIT")
        except SmtpError:
            pass
        self._lines.close()
        self._socket.close()

    def _send(self, wire: bytes) -> str:
        try:
            self._socket.sendall(wire)
        except OSError as error:
            raise SmtpError(f"the server has gone: {error}") from error
        return self._reply()

    def _reply(self) -> str:
        texts = []
        while True:
            try:
                line = self._lines.readline()
            except OSError as error:
                raise SmtpError(f"no reply: {error}") from error
            match = re.fullmatch(r"(\d{3})([ -]?)(.*)", line.decode("utf-8", "replace").rstrip("\r\n"))
            if match is None:
                raise SmtpError(f"not a reply: {line!r}" if line else "the server closed the connection")
            texts.append(match[3])
            if match[2] != "-":
                return f"{match[1]} {' '.join(texts)}".rstrip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _xtext(value: str) -> str:
    """Xtext (RFC 3461 section 4), as XCLIENT wants its values."""
    return re.sub(rb"[^!-~]|[+=]", lambda match: b"+%02X" % match[0][0], value.encode()).decode()


@dataclass(frozen=True, slots=True)
class Servers:
    """Where Postfix listens: `smtp` as port 25 for strangers, `submission` for those who have logged in."""

    host: str
    smtp: int
    submission: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What the server said to one message: a reply for each recipient, then, if it came to that, to the data."""

    replies: tuple[str, ...]
    queue_id: str = ""


@dataclass(slots=True)
class HeardConnection:
    """What the server said in one connection. `reply` is its greeting, or its refusal of the HELO."""

    client: Client
    reply: str
    messages: list[Heard] = field(default_factory=list)


def play(case: Case, servers: Servers, resolver: Resolver) -> list[HeardConnection]:
    """Play a case, really waiting where it waits. `resolver` says what a client is called that the case does not name.

    Not for the inside of an event loop. Raises SmtpError, and OSError if nobody listens.
    """
    return [_connect(case, connection, servers, resolver) for connection in case.connections]


def _connect(case: Case, connection: RecordedConnection, servers: Servers, resolver: Resolver) -> HeardConnection:
    time.sleep(connection.wait)
    names = client_names(connection) or asyncio.run(look_up(resolver, connection.client))
    port = servers.submission if connection.sasl_user else servers.smtp
    with SmtpClient(servers.host, port) as smtp:
        client = Client(address=parse_address(connection.client), name=names[0], reverse_name=names[1], port=smtp.port)
        heard = HeardConnection(client, smtp.xclient(_attributes(client, connection.sasl_user)))
        if heard.reply.startswith("220") and connection.helo is not None:
            reply = smtp.command(f"EHLO {connection.helo}")
            if not reply.startswith("250"):
                heard.reply = reply
        if heard.reply.startswith("220"):
            heard.messages = [_send(smtp, message, case.content(message)) for message in connection.messages]
    return heard


async def look_up(resolver: Resolver, address: str) -> tuple[str, str]:
    """The confirmed and the bare name of the client at `address`, as Postfix finds them; `unknown` if there is none."""
    iprev = await check_iprev(resolver, parse_address(address))
    return iprev.name or UNKNOWN, iprev.reverse or UNKNOWN


def _attributes(client: Client, sasl_user: str) -> dict[str, str]:
    """XCLIENT's attributes. Our own port goes along, because Postfix forgets it, and the trace id is made of it."""
    address = str(client.address)
    attributes = {
        "NAME": "[UNAVAILABLE]" if client.name == UNKNOWN else client.name,
        "REVERSE_NAME": "[UNAVAILABLE]" if client.reverse_name == UNKNOWN else client.reverse_name,
        "ADDR": f"IPV6:{address}" if ":" in address else address,
        "PORT": str(client.port),
    }
    return {**attributes, "LOGIN": sasl_user} if sasl_user else attributes


def _send(smtp: SmtpClient, message: RecordedMessage, content: bytes | None) -> Heard:
    """One transaction; RSET at its end if it came to nothing, so that the next one starts anew."""
    utf8 = "" if (message.sender + "".join(message.recipients)).isascii() else " SMTPUTF8"
    begun = smtp.command(f"MAIL FROM:<{message.sender}>{utf8}")
    if not begun.startswith("250"):
        return Heard(tuple(begun for _ in message.recipients))
    replies = [smtp.command(f"RCPT TO:<{recipient}>") for recipient in message.recipients]
    if content is not None and any(reply.startswith("250") for reply in replies):
        ready = smtp.command("DATA")
        replies.append(smtp.content(crlf(content)) if ready.startswith("354") else ready)
        if replies[-1].startswith("250"):
            queued = _QUEUED.search(replies[-1])
            return Heard(tuple(replies), queued[1] if queued else "")
    smtp.command("RSET")
    return Heard(tuple(replies))
