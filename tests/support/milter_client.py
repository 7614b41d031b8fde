# SPDX-License-Identifier: GPL-3.0-or-later
"""The MTA's side of a milter conversation for tests, byte for byte as Postfix speaks it (milter protocol 6).

Values are bytes, because tests need header fields and HELO names that are no text. Macros go first; no answer is
awaited where the milter has negotiated that there is none.
"""

import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gatekeeper.core import message

OPTIONS, MACRO, CONNECT, HELO, MAIL, RCPT, HEADER, END_OF_HEADER, BODY, END_OF_BODY, ABORT, QUIT = (
    b"O", b"D", b"C", b"H", b"M", b"R", b"L", b"N", b"B", b"E", b"A", b"Q",
)  # fmt: skip
CONTINUE, REPLY, INSERT, CHANGE, HOLD = b"c", b"y", b"i", b"m", b"q"

ALL_ACTIONS, ALL_STEPS = 0x1FF, 0x1FFFFF
LEADING_SPACE = 0x100000
NO_REPLY = {
    CONNECT: 0x1000,
    HELO: 0x2000,
    MAIL: 0x4000,
    RCPT: 0x8000,
    HEADER: 0x80,
    END_OF_HEADER: 0x40000,
    BODY: 0x80000,
}


@dataclass
class Outcome:
    """What the milter asked for at the end of a message: its last answer, fields it put on top, fields it removed."""

    answer: bytes = b""
    text: str = ""
    fields: list[tuple[str, str]] = field(default_factory=list)
    removed: list[tuple[str, int]] = field(default_factory=list)
    held: str = ""


class MilterClient:
    """One connection to a milter; `address` is a unix path or (host, port).

    `timeout` is in seconds. `fold` ends the lines of a folded field: LF as with Postfix, or CRLF as some MTAs have it.
    """

    def __init__(
        self,
        address: str | tuple[str, int],
        *,
        steps: int = ALL_STEPS,
        actions: int = ALL_ACTIONS,
        timeout: float = 60.0,
        fold: bytes = b"\n",
    ) -> None:
        self._fold = fold
        self.sock = socket.socket(_family(address), socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        self._stream = self.sock.makefile("rb")
        self._send(OPTIONS, struct.pack("!LLL", 6, actions, steps))
        command, data = self._receive()
        assert OPTIONS == command
        _, self.actions, self.steps = struct.unpack("!LLL", data[:12])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(
        self, *, client: str = "192.0.2.1", name: str = "client.example", helo: bytes = b"client.example", **macros: str
    ) -> None:
        """A client connects and says HELO. Macros by their name without braces."""
        refusal = self.connect(client, name, **macros)
        assert "" == refusal
        self.say(HELO, helo + b"\0")

    def connect(self, client: str = "192.0.2.1", name: str = "client.example", **macros: str) -> str:
        """A client connects; the reply that refuses it, if the milter does."""
        self._macros(CONNECT, {"daemon_name": "smtpd", **macros})
        family = b"6" if ":" in client else b"4"
        self._send(CONNECT, name.encode() + b"\0" + family + struct.pack("!H", 2525) + client.encode() + b"\0")
        if self.steps & NO_REPLY[CONNECT]:
            return ""
        answer, text = self._receive()
        assert answer in (CONTINUE, REPLY)
        return text.rstrip(b"\0").decode()

    def envelope(
        self, sender: bytes = b"a@client.example", recipient: bytes = b"b@ours.example", **macros: str
    ) -> None:
        """MAIL and RCPT."""
        # Postfix always has some at MAIL: what libmilter keeps of the message before is replaced
        self._macros(MAIL, {"mail_addr": sender.decode("latin-1"), **macros})
        self.say(MAIL, b"<" + sender + b">\0")
        self.say(RCPT, b"<" + recipient + b">\0")

    def content(self, raw: bytes, *, chunk: int = 65535) -> Outcome:
        """Header and body of a message with CRLF line ends, and what the milter makes of it."""
        headers, body = message.parse(raw)
        for header in headers:
            self.header(header.name, header.value)
        self._macros(END_OF_HEADER, {"i": "4AbCdE"})
        self.say(END_OF_HEADER)
        for start in range(0, len(body), chunk):
            self.say(BODY, body[start : start + chunk])
        return self.end()

    def header(self, name: bytes, value: bytes) -> None:
        """One header field; without SMFIP_HDR_LEADSPC the space behind the colon is not passed on."""
        if not self.steps & LEADING_SPACE:
            value = value.removeprefix(b" ")
        self.say(HEADER, name + b"\0" + value.replace(b"\r\n", self._fold) + b"\0")

    def end(self) -> Outcome:
        """The end of the message, and everything that the milter asks for."""
        self._send(END_OF_BODY)
        outcome = Outcome()
        while True:
            command, data = self._receive()
            if command == INSERT:
                name, value, _ = data[4:].split(b"\0")
                outcome.fields.insert(struct.unpack("!L", data[:4])[0], (name.decode(), value.decode()))
            elif command == CHANGE:
                name, value, _ = data[4:].split(b"\0")
                assert not value
                outcome.removed.append((name.decode(), struct.unpack("!L", data[:4])[0]))
            elif command == HOLD:
                outcome.held = data.rstrip(b"\0").decode()
            else:
                outcome.answer, outcome.text = command, data.rstrip(b"\0").decode()
                return outcome

    def abort(self) -> None:
        """RSET: the message is forgotten, the connection goes on."""
        self._send(ABORT)

    def close(self) -> None:
        """Say goodbye as an MTA does."""
        try:
            self._send(QUIT)
        except OSError:
            pass
        self._stream.close()
        self.sock.close()

    def say(self, command: bytes, data: bytes = b"") -> None:
        """One command, and its CONTINUE where the milter has not negotiated that there is none."""
        self._send(command, data)
        if not self.steps & NO_REPLY[command]:
            answer, _ = self._receive()
            assert CONTINUE == answer

    def _macros(self, command: bytes, macros: dict[str, str]) -> None:
        pairs = b"".join(
            (name if len(name) == 1 else f"{{{name}}}").encode() + b"\0" + value.encode() + b"\0"
            for name, value in macros.items()
        )
        self._send(MACRO, command + pairs)

    def _send(self, command: bytes, data: bytes = b"") -> None:
        self.sock.sendall(struct.pack("!L", len(data) + 1) + command + data)

    def _receive(self) -> tuple[bytes, bytes]:
        head = self._stream.read(4)
        if len(head) < 4:
            raise ConnectionError("the milter has closed the connection")
        data = self._stream.read(struct.unpack("!L", head)[0])
        return data[:1], data[1:]


def _family(address: str | tuple[str, int]) -> socket.AddressFamily:
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET
