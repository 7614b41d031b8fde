# SPDX-License-Identifier: GPL-3.0-or-later
"""A byte-exact SMTP client, and a player of recorded sessions through a real Postfix.

Bytes are sent as they are written in the case, replies are returned as text. The client's address, name and login are
simulated with XCLIENT (XCLIENT_README), which Postfix must allow us (`smtpd_authorized_xclient_hosts`).
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
"""Seconds to wait for one reply: longer than any answer of gatekeeper may take."""


_QUEUED = re.compile(r"queued as (\w+)")


class SmtpError(Exception):
    """The server went away or did not speak SMTP."""


class SmtpClient:
    """One connection, from the address `source` if it is given.

    Each command returns the reply: its code, a space, and the text of all its lines.
    """

    def __init__(self, host: str, port: int, source: str = "") -> None:
        self._socket = socket.create_connection((host, port), TIMEOUT, (source, 0) if source else None)
        self._lines = self._socket.makefile("rb")
        self.greeting = self._reply()

    @property
    def port(self) -> int:
        """The local port."""
        port: int = self._socket.getsockname()[1]
        return port

    def command(self, line: str) -> str:
        """Send one line and return the reply. Raises SmtpError."""
        return self._send(line.encode("utf-8", "surrogateescape") + b"\r\n")

    def xclient(self, attributes: Mapping[str, str]) -> str:
        """Pose as another client. Postfix greets again, so the reply is the greeting that this client gets."""
        self.command("EHLO lab.invalid")
        return self.command("XCLIENT " + " ".join(f"{name}={_xtext(value)}" for name, value in attributes.items()))

    def content(self, message: bytes) -> str:
        """Send a message, whose lines end in CRLF, after 354 was the reply to DATA."""
        if message and not message.endswith(b"\r\n"):
            message += b"\r\n"
        return self._send(re.sub(rb"(?m)^\.", b"..", message) + b".\r\n")

    def close(self) -> None:
        """Send QUIT if the server still listens, and close the connection."""
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
            raise SmtpError(f"the server has gone away: {error}") from error
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
    """Encode as xtext (RFC 3461 section 4), which XCLIENT requires for its values."""
    return re.sub(rb"[^!-~]|[+=]", lambda match: b"+%02X" % match[0][0], value.encode()).decode()


@dataclass(frozen=True, slots=True)
class Servers:
    """The ports on which Postfix listens: `smtp` (25) for strangers, `submission` for authenticated clients."""

    host: str
    smtp: int
    submission: int


@dataclass(frozen=True, slots=True)
class MessageReplies:
    """The server's replies to one message: one to each recipient, then, if any was accepted, one to the data."""

    replies: tuple[str, ...]
    queue_id: str = ""


@dataclass(slots=True)
class ConnectionReplies:
    """The server's replies in one connection. `reply` is its greeting, or its refusal of the HELO."""

    client: Client
    reply: str
    messages: list[MessageReplies] = field(default_factory=list)


def play(case: Case, servers: Servers, resolver: Resolver) -> list[ConnectionReplies]:
    """Play a case in real time. `resolver` is asked for the names of clients that the case does not name.

    Must not be called in an event loop. Raises SmtpError, and OSError if nobody listens.
    """
    return [_connect(case, connection, servers, resolver) for connection in case.connections]


def _connect(case: Case, connection: RecordedConnection, servers: Servers, resolver: Resolver) -> ConnectionReplies:
    time.sleep(connection.wait)
    names = client_names(connection) or asyncio.run(look_up_names(resolver, connection.client))
    port = servers.submission if connection.sasl_user else servers.smtp
    with SmtpClient(servers.host, port) as smtp:
        client = Client(address=parse_address(connection.client), name=names[0], reverse_name=names[1], port=smtp.port)
        replies = ConnectionReplies(client, smtp.xclient(_attributes(client, connection.sasl_user)))
        if replies.reply.startswith("220") and connection.helo is not None:
            reply = smtp.command(f"EHLO {connection.helo}")
            if not reply.startswith("250"):
                replies.reply = reply
        if replies.reply.startswith("220"):
            replies.messages = [_transaction(smtp, message, case.content(message)) for message in connection.messages]
    return replies


async def look_up_names(resolver: Resolver, address: str) -> tuple[str, str]:
    """Look up the confirmed and the unconfirmed name of a client as Postfix does; `unknown` if there is none."""
    iprev = await check_iprev(resolver, parse_address(address))
    return iprev.name or UNKNOWN, iprev.reverse or UNKNOWN


def _attributes(client: Client, sasl_user: str) -> dict[str, str]:
    """Return XCLIENT's attributes. They include our port: Postfix forgets it, and trace ids are derived from it."""
    address = str(client.address)
    attributes = {
        "NAME": "[UNAVAILABLE]" if client.name == UNKNOWN else client.name,
        "REVERSE_NAME": "[UNAVAILABLE]" if client.reverse_name == UNKNOWN else client.reverse_name,
        "ADDR": f"IPV6:{address}" if ":" in address else address,
        "PORT": str(client.port),
    }
    return {**attributes, "LOGIN": sasl_user} if sasl_user else attributes


def _transaction(smtp: SmtpClient, message: RecordedMessage, content: bytes | None) -> MessageReplies:
    """Play one transaction, with RSET at the end if no mail was queued, so that the next one starts afresh."""
    utf8 = "" if (message.sender + "".join(message.recipients)).isascii() else " SMTPUTF8"
    mail_reply = smtp.command(f"MAIL FROM:<{message.sender}>{utf8}")
    if not mail_reply.startswith("250"):
        return MessageReplies(tuple(mail_reply for _ in message.recipients))
    replies = [smtp.command(f"RCPT TO:<{recipient}>") for recipient in message.recipients]
    if content is not None and any(reply.startswith("250") for reply in replies):
        data_reply = smtp.command("DATA")
        replies.append(smtp.content(crlf(content)) if data_reply.startswith("354") else data_reply)
        if replies[-1].startswith("250"):
            queued = _QUEUED.search(replies[-1])
            return MessageReplies(tuple(replies), queued[1] if queued else "")
    smtp.command("RSET")
    return MessageReplies(tuple(replies))
