# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the lab's mail ends: an SMTP server on loopback that keeps every message byte for byte.

It announces 8BITMIME and SMTPUTF8 so that Postfix passes everything on unchanged, and refuses nothing.
"""

import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_SHORT = b"250 2.0.0 ok\r\n"
_REPLIES = {
    b"EHLO": b"250-sink\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 2.0.0 bye\r\n",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivered message: the envelope as Postfix gave it, and the bytes between DATA and the final dot."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    keep: Callable[[Delivery], None]


class _Session(socketserver.StreamRequestHandler):
    server: _Server
    timeout = 30.0

    def handle(self) -> None:
        try:
            self._serve()
        except OSError:
            pass

    def _serve(self) -> None:
        sender = ""
        recipients: list[str] = []
        self.wfile.write(b"220 sink ESMTP\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"MAIL":
                sender, recipients = _path(line), []
            elif verb == b"RCPT":
                recipients.append(_path(line))
            self.wfile.write(_REPLIES.get(verb, _SHORT))
            if verb == b"DATA":
                self.server.keep(Delivery(sender, tuple(recipients), self._content()))
                self.wfile.write(_SHORT)
            elif verb == b"QUIT":
                return

    def _content(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(lines)


def _path(line: bytes) -> str:
    return line.partition(b"<")[2].partition(b">")[0].decode("utf-8", "surrogateescape")


class Sink:
    """Listens from when it is made until `close`."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Session)
        self._server.keep = self._keep
        self._deliveries: list[Delivery] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def port(self) -> int:
        """The loopback TCP port."""
        port: int = self._server.server_address[1]
        return port

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """What has come so far."""
        with self._changed:
            return tuple(self._deliveries)

    def find(self, mark: bytes, timeout: float = 10.0) -> Delivery | None:
        """The first delivery with `mark` in it, waited for at most `timeout` seconds; None if none came."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for delivery in self._deliveries:
                    if mark in delivery.content:
                        return delivery
                if not self._changed.wait(deadline - time.monotonic()):
                    return None

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _keep(self, delivery: Delivery) -> None:
        with self._changed:
            self._deliveries.append(delivery)
            self._changed.notify_all()
