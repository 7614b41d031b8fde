# SPDX-License-Identifier: GPL-3.0-or-later
"""Logging: one line for each decision, and process logs in which no outsider can forge a line.

A decision line is logfmt: `name=value` pairs with one space between. A value that is not plain is quoted, with every
character that is not printable ASCII, every quote and every backslash escaped, so a stranger's HELO can neither end the
line nor add a pair. `unescape` gives the value back.

A line claims nothing that did not happen. `action` is what was answered, in the words of the protocol that it went out
by (policy/protocol.py, milter/edits.py); `judged` is what would have been answered but for observe mode, if that is
something else; `observed` names those of the `reasons` that did not count.
"""

import base64
import hashlib
import logging
import logging.handlers
import os
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from gatekeeper.core import log_output, redaction
from gatekeeper.core.request import UNKNOWN, Address, Client, Request
from gatekeeper.core.verdict import Decision, Note, Verdict

_PLAIN = re.compile(r"[A-Za-z0-9!#$%&()*+,./:;<>?@\[\]^_`{|}~-]+", re.ASCII)
_PRINTABLE = re.compile(r"[ !#-\[\]-~]*")
_UNSAFE = re.compile(rb"[^ !#-\[\]-~]")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_PAIR = re.compile(r'(\w+)=("[^"]*"|\S*)')
WAITED = "waited"
"""Greylisting's note on how long a client has waited. It gets a pair of its own, which the report on greylisting's cost
reads (diagnose/greylisting_cost.py)."""
WHY = "why"
"""Why a message that looks like ours was not signed: a pair of its own, which diagnose/unsigned_mail.py reads."""
_REQUEST_NAMES = {"from": "sender", "to": "recipient"}
_MAX_VALUE = 320
"""Bytes of a stranger's value that are logged: enough for any valid address (RFC 5321 section 4.5.3.1)."""

Pair = tuple[str, str]
"""A name and a value of a line; one without a value is left out."""
Words = Callable[[Verdict, Request], str]
"""Says a verdict on a request in the words in which a front door answers it."""

FACILITIES = tuple(sorted(logging.handlers.SysLogHandler.facility_names))
"""The facilities of syslog(3): mail, daemon, local0, ..."""
_SYSLOG = Path("/dev/log")


def setup(level: str = "info", stream: TextIO | None = None, *, syslog: str = "", name: str = "gatekeeper") -> None:
    """Send this process's log to standard error or, if `syslog` names a facility, to syslog under `name`.

    `level` (debug, info, warning, error) is the lowest that is logged. While no syslog is running, as in a container,
    the log goes to standard error. Nothing that this process prints waits any more (core/log_output.py).
    """
    standard_error = _Stream(log_output.Given(stream) if stream else log_output.never_wait(_note))
    standard_error.setFormatter(_Formatter("%(asctime)s gatekeeper[%(process)d]: %(levelname)s %(message)s"))
    handler: _Handler = standard_error
    if syslog:
        handler = _Syslog(syslog, name, standard_error)
        handler.setFormatter(_Formatter("%(message)s"))
    # None of our formats shows these, so they are not looked up for each line (the logging HOWTO, Optimization).
    logging.logThreads = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def tell_dropped() -> None:
    """Say how many lines were dropped, if they flow again: for whoever has a moment every few seconds."""
    for handler in logging.root.handlers:
        if isinstance(handler, _Handler):
            handler.output.catch_up()


class _Handler(logging.Handler):
    """Writes lines to `output`, which waits for nobody; so the lock of logging is held by nobody who waits."""

    output: log_output.Output

    def write(self, level: int, line: str) -> None:
        """Write `line`, which is printable text, as logging would, without creating a LogRecord."""
        raise NotImplementedError

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self._write(record.levelno, self.format(record))
        except Exception:  # noqa: BLE001 (as in logging.StreamHandler.emit)
            self.handleError(record)

    def flush(self) -> None:
        """Write what is owed."""
        self.output.catch_up()

    def _write(self, level: int, text: str) -> None:
        """Write text that is formatted."""
        raise NotImplementedError


class _Stream(_Handler):
    """Standard error, or what a caller brought along."""

    def __init__(self, stream: log_output.Stream | log_output.Given) -> None:
        super().__init__()
        self.output = self._stream = stream

    def write(self, level: int, line: str) -> None:
        self._stream.write(_line(level, line).encode("utf-8", "backslashreplace"))

    def _write(self, _level: int, text: str) -> None:
        self._stream.write(f"{text}\n".encode("utf-8", "backslashreplace"))


class _Syslog(_Handler):
    """Syslog. A line that nobody is there to take goes to standard error; one that is not read is dropped."""

    def __init__(self, facility: str, name: str, otherwise: _Stream) -> None:
        super().__init__()
        self._facility = logging.handlers.SysLogHandler.facility_names[facility] << 3
        self._name = name
        self._otherwise = otherwise
        self._datagrams = log_output.Datagrams(_SYSLOG, lambda text: self._datagram(logging.WARNING, text))
        self.output = self._datagrams

    def write(self, level: int, line: str) -> None:
        self._send(level, redaction.hide_known_keys(line))

    def _write(self, level: int, text: str) -> None:
        self._send(level, f"{_WORDS[_severity(level)]}{text}")

    def _send(self, level: int, text: str) -> None:
        datagram = self._datagram(level, text).encode("utf-8", "backslashreplace")
        if not self._datagrams.send(datagram):
            self._otherwise.write(level, text)

    def close(self) -> None:
        """Close the socket."""
        super().close()
        self._datagrams.close()

    def _datagram(self, level: int, text: str) -> str:
        return f"<{self._facility | _severity(level)}>{self._name}[{os.getpid()}]: {text}"


_WORDS = {7: "debug: ", 6: "", 4: "warning: ", 3: "error: "}
"""What stands before the text in syslog, which keeps no severity in its files: Postfix's words. A decision has none."""


def _severity(level: int) -> int:
    """Return the severity of syslog(3)."""
    return 7 if level < logging.INFO else 6 if level < logging.WARNING else 4 if level < logging.ERROR else 3


def _line(level: int, text: str) -> str:
    """Return a line of the log on standard error; `text` is printable."""
    return (
        f"{_time(time.time())} gatekeeper[{os.getpid()}]: "
        f"{logging.getLevelName(level)} {redaction.hide_known_keys(text)}\n"
    )


def _note(text: str) -> str:
    """Return the line that says how many were dropped."""
    return _line(logging.WARNING, text)


class _Formatter(logging.Formatter):
    """Formats each record so that it starts exactly one line of the log.

    What follows the first line (a traceback, or line breaks from outside) is indented behind a bar, and control
    characters are shown as `?`.
    """

    def formatTime(  # noqa: N802 (logging's name)
        self,
        record: logging.LogRecord,
        datefmt: str | None = None,  # noqa: ARG002 (logging passes it)
    ) -> str:
        """Return the local time to the millisecond."""
        return _time(record.created)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        text = redaction.hide_known_keys(super().format(record))
        if text.isprintable():
            return text
        return "\n    | ".join(map(_visible, text.splitlines() or [""]))


def _time(seconds: float) -> str:
    return f"{_second(int(seconds))}.{int(seconds * 1000) % 1000:03}"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _visible(line: str) -> str:
    return line if line.isprintable() else "".join(c if c.isprintable() or c == "\t" else "?" for c in line)


def trace_id(client: Client) -> str:
    """Return the name that policy daemon and milter both give to one connection.

    It is base32 of the first 40 bits of SHA-256 over the client's address and port; empty without an address.
    """
    return "" if client.address is None else _trace_id(client.address, client.port)


@lru_cache(maxsize=1024)  # a connection has several recipients, and messages
def _trace_id(address: Address, port: int | None) -> str:
    seen = f"{address},{'' if port is None else port}"
    return base64.b32encode(hashlib.sha256(seen.encode()).digest()[:5]).decode("ascii")


def write_decision(
    logger: logging.Logger,
    decision: Decision,
    side: str,
    words: Words,
    level: int = logging.INFO,
    *,
    known: Iterable[Pair] = (),
) -> None:
    """Log the line of one decision, as `logger` would. `known` is what was found out about the mail."""
    if not logger.isEnabledFor(level):
        return
    line = decision_line(decision, side, words, known)
    match logging.root.handlers:
        case [_Handler() as handler]:
            handler.write(level, line)
        case _:
            logger.log(level, "%s", line)


def decision_line(decision: Decision, side: str, words: Words, known: Iterable[Pair] = ()) -> str:
    """Return the log line of one decision. `side` is the front door that asked, policy or milter."""
    pairs = (*_pairs(decision, side, words), *known)
    return " ".join([f"{name}={escape(value)}" for name, value in pairs if value])


def took_ms(seconds: float) -> Pair:
    """Return the pair that says how long a decision took, DNS and store included, in milliseconds."""
    return "took", f"{seconds * 1000:.1f}"


def escape(value: str) -> str:
    r"""Return `value` as a logfmt value: bare if it is plain, else quoted with `\xNN` for each unsafe byte."""
    if len(value) <= _MAX_VALUE:
        if _PLAIN.fullmatch(value):
            return value
        if _PRINTABLE.fullmatch(value):
            return f'"{value}"'
    data = value.encode("utf-8", "surrogateescape")
    if len(data) > _MAX_VALUE:
        data = data[: _MAX_VALUE - 3] + b"..."
    text = _UNSAFE.sub(lambda match: b"\\x%02x" % match[0][0], data).decode("ascii")
    return text if _PLAIN.fullmatch(text) else f'"{text}"'


def unescape(text: str) -> str:
    """Return the value that `escape` wrote as `text`."""
    data = text.removeprefix('"').removesuffix('"').encode("ascii")
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), data).decode("utf-8", "surrogateescape")


def read_decision(line: str) -> dict[str, str] | None:
    """Return the pairs of the decision line in `line`, whatever precedes it; None for any other line.

    Sender and recipient have the names that a Request gives them. Lines of before have them too.
    """
    at = line.find(" side=")
    if at < 0 or not line.isascii():
        return None
    return {_REQUEST_NAMES.get(name, name): unescape(value) for name, value in _PAIR.findall(line, at)}


def _pairs(decision: Decision, side: str, words: Words) -> list[tuple[str, str]]:
    request, reasons = decision.request, ",".join(decision.reasons)
    client = request.client
    action = words(decision.verdict, request)
    judged = action if decision.judged is decision.verdict else words(decision.judged, request)
    return [
        ("side", side),
        ("trace", trace_id(client)),
        ("queue_id", request.queue_id),
        ("stage", request.stage),
        ("context", request.policy_context),
        ("action", action),
        ("judged", judged if judged != action else ""),
        ("reasons", reasons),
        ("observed", ",".join(decision.observed)),
        (WAITED, _waited(decision) if "greylist." in reasons else ""),
        (WHY, _why(decision) if "sign." in reasons and "sign.ok" not in reasons else ""),
        ("client", str(client.address or "unknown")),
        ("name", client.name),
        ("reverse_name", "" if client.reverse_name in (client.name, UNKNOWN) else client.reverse_name),
        ("helo", request.helo or ""),
        # The null sender is distinguished from a sender that is not known yet.
        ("from", "" if request.sender is None else f"<{request.sender}>"),
        ("to", "" if request.recipient is None else f"<{request.recipient}>"),
        ("sasl_user", request.sasl_user),
        ("recipients", str(request.recipient_count) if request.recipient_count else ""),
        ("size", str(request.size) if request.size else ""),
        ("tls", request.encryption_protocol),
    ]


def _waited(decision: Decision) -> str:
    for step in decision.steps:
        if step.verdict.reason.startswith("greylist."):
            for note in step.lazy_notes:
                if isinstance(note, Note) and note.what == WAITED:
                    return note.found
    return ""


def _why(decision: Decision) -> str:
    notes = (note for step in decision.steps if step.check == "sign" for note in reversed(step.notes))
    return next((f"{what}: {found}" for what, found in notes if not found.startswith("d=")), "")
