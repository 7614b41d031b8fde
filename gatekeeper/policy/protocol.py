# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's policy delegation protocol (SMTPD_POLICY_README): bytes to Request, Verdict to bytes. Does no I/O.

A request is `name=value` lines and an empty line, an answer one `action=` line and an empty line. Lines end in LF; the
CR that interactive tools send before it is dropped. A malformed request raises ProtocolError, and the connection is
closed without an answer, as the document asks; a well-formed one that means nothing to us raises NotUnderstood, and is
answered DUNNO. Of two attributes of the same name the first counts, as in Postfix's own attr_scan_plain(3). Values are
UTF-8 with surrogateescape: a HELO may contain any byte.
"""

import re
from collections.abc import Mapping
from itertools import repeat

from gatekeeper.core.request import UNKNOWN, Client, Request, Stage, parse_address
from gatekeeper.core.verdict import MAX_ACTION, Outcome, Verdict, printable

MAX_REQUEST = 64 * 1024
"""Bytes of one request, and so of one line. Postfix's own values end at 2048 (`line_length_limit`); names in
certificates may be longer."""

_END_OF_REQUEST = re.compile(rb"\n\r?\n")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ProtocolError(Exception):
    """The input is not a policy request: nothing that follows on this connection can be trusted."""


class NotUnderstood(Exception):
    """A well-formed request for something that we do not know."""


class RequestParser:
    """Takes bytes in chunks of any size, and returns requests in order. Buffers one request and what follows it."""

    __slots__ = ("_buffer", "_seen")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._seen = 0
        """Where to continue the search for the end of a request: one-byte chunks must not cost a full search each."""

    @property
    def pending(self) -> int:
        """The number of bytes that were fed and not yet returned as requests."""
        return len(self._buffer)

    def unread(self) -> bytes:
        """Return the bytes that were fed and not yet returned as requests."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append `data` to the buffer."""
        self._buffer += data

    def next(self) -> dict[str, str] | None:
        """Return the attributes of the next request, or None if it is not complete yet. Raises ProtocolError."""
        buffer = self._buffer
        if buffer.startswith((b"\n", b"\r\n")):
            raise ProtocolError("an empty request")
        start = buffer.find(b"\n\n", self._seen)
        stop = start + 2
        if buffer.find(b"\r", self._seen, stop if start >= 0 else None) >= 0 and (
            end := _END_OF_REQUEST.search(buffer, self._seen)
        ):
            start, stop = end.span()
        # Without an end, the last two bytes may be the start of it: so the limit does not depend on the chunks.
        if (start if start >= 0 else len(buffer) - 2) > MAX_REQUEST:
            raise ProtocolError(f"a request of more than {MAX_REQUEST} bytes")
        if start < 0:
            self._seen = max(0, len(buffer) - 2)
            return None
        frame = bytes(buffer[:start])
        del buffer[:stop]
        self._seen = 0
        return _attributes(frame)


def _attributes(frame: bytes) -> dict[str, str]:
    if b"\0" in frame:
        raise ProtocolError("a NUL byte")
    if b"\r" in frame:
        frame = (frame + b"\n").replace(b"\r\n", b"\n")[:-1]
    lines = frame.decode("utf-8", "surrogateescape").split("\n")
    try:
        attributes: dict[str, str] = dict(map(str.split, reversed(lines), repeat("="), repeat(1)))
    except ValueError:
        attributes = {"": ""}
    if "" in attributes:
        bad_line = next(line for line in lines if line.partition("=")[0] in ("", line))
        raise ProtocolError(f"a line that is not name=value: {printable(bad_line, 80)}")
    if "request" not in attributes:
        raise ProtocolError("no request= attribute")
    return attributes


_STAGES = {
    "CONNECT": Stage.CONNECT,
    "HELO": Stage.HELO,
    "EHLO": Stage.HELO,
    "MAIL": Stage.MAIL,
    "RCPT": Stage.RCPT,
    "DATA": Stage.DATA,
    "BDAT": Stage.DATA,
    "END-OF-MESSAGE": Stage.END_OF_MESSAGE,
    "VRFY": Stage.VRFY,
    "ETRN": Stage.ETRN,
}
_IN_TRANSACTION = frozenset((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE))


def to_request(attributes: Mapping[str, str]) -> Request:
    """Convert the attributes of a policy request to a Request. Raises NotUnderstood.

    Postfix sends an empty value for what it does not know: an empty `sender` within a mail transaction is the null
    sender, before it means that there is none yet. An empty `helo_name` always means that there was no HELO.
    `recipient` is empty at DATA and END-OF-MESSAGE if there is more than one.
    """
    get = attributes.get
    if get("request") != "smtpd_access_policy":
        raise NotUnderstood(f"request={printable(get('request', ''), 80)}")
    stage = _STAGES.get(get("protocol_state", ""))
    if stage is None:
        raise NotUnderstood(f"protocol_state={printable(get('protocol_state', ''), 80)}")
    sender, recipient = get("sender", ""), get("recipient", "")
    return Request(
        stage=stage,
        client=Client(
            address=parse_address(get("client_address", "")),
            name=get("client_name") or UNKNOWN,
            reverse_name=get("reverse_client_name") or UNKNOWN,
            port=_number(get("client_port", "")) or None,
        ),
        helo=get("helo_name") or None,
        sender=sender if stage in _IN_TRANSACTION else sender or None,
        recipient=recipient if stage is Stage.RCPT else recipient or None,
        recipient_count=_number(get("recipient_count", "")),
        size=_number(get("size", "")),
        queue_id=get("queue_id", ""),
        instance=get("instance", ""),
        sasl_user=get("sasl_username", ""),
        sasl_method=get("sasl_method", ""),
        encryption_protocol=get("encryption_protocol", ""),
        policy_context=get("policy_context", ""),
        etrn_domain=get("etrn_domain", ""),
        server_address=parse_address(get("server_address", "")),
        ccert_subject=get("ccert_subject", ""),
        ccert_issuer=get("ccert_issuer", ""),
        ccert_fingerprint=get("ccert_fingerprint", ""),
        ccert_pubkey_fingerprint=get("ccert_pubkey_fingerprint", ""),
    )


def _number(text: str) -> int:
    """Parse a count; 0 for anything else (`size` is empty if the client did not declare it)."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


DUNNO = b"action=DUNNO\n\n"

_SOFT = {Outcome.DEFER_IF_PERMIT: "DEFER_IF_PERMIT", Outcome.DEFER_IF_REJECT: "DEFER_IF_REJECT"}


def encode_answer(verdict: Verdict, request: Request | None = None) -> bytes:
    """Encode `verdict` as an answer: one line, whatever its text contains.

    What a client hears is printable ASCII. In an action that Postfix carries out the text is a value: a mailbox keeps
    its UTF-8, and Postfix gets the bytes that it sent.

    If `request` is given, the answer is cut so that the SMTP reply that Postfix makes of it is not too long.
    """
    return b"action=" + action(verdict, request).encode("utf-8", "surrogateescape") + b"\n\n"


def action(verdict: Verdict, request: Request | None = None) -> str:
    """Return the access(5) action for `verdict`, cut as `encode_answer` does.

    A refusal is a full reply, with code, enhanced code and always a text: Postfix 3.7 sends stray bytes for a code with
    an enhanced code only, and treats a code alone as a permit. DEFER_IF_* take no code, Postfix answers with its
    access_map_defer_code (450). An empty action would permit, so an ACTION without text is DUNNO.
    """
    match verdict.outcome:
        case Outcome.REJECT:
            return _refusal(f"{verdict.code} {verdict.enhanced}", verdict.text, request)
        case Outcome.DEFER_IF_PERMIT | Outcome.DEFER_IF_REJECT:
            return _refusal(f"{_SOFT[verdict.outcome]} {verdict.enhanced}", verdict.text, request)
        case Outcome.ACCEPT:
            return "OK"
        case Outcome.ACTION:
            return _one_line(verdict.text) or "DUNNO"
    return "DUNNO"


def _one_line(text: str) -> str:
    """Return `text` with `?` for control characters, cut between two characters if it has too many bytes."""
    data = _CONTROL.sub("?", text.strip(" \t\r\n")).encode("utf-8", "surrogateescape")
    end = MAX_ACTION if len(data) > MAX_ACTION else len(data)
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end].decode("utf-8", "surrogateescape")


MAX_REPLY = 510
"""Bytes of a reply line without its CRLF (RFC 5321 section 4.5.3.1.5)."""
_PREFIX = len("<>: Recipient address rejected: ")
_MIN_ACTION = 120
"""Characters of an action that are always sent, however long the name before them."""


def _refusal(codes: str, text: str, request: Request | None) -> str:
    """Return a refusal, cut to what fits into one SMTP reply.

    Postfix inserts `<name>: Recipient address rejected: ` between codes and text, and does not cut what is then too
    long: smtpd_check_reject() means to, but Postfix 3.7 was seen to send 657 bytes. `name` is the recipient, or with
    other restriction lists the sender, the HELO name or the client; a request does not say which list it is for.
    """
    reply = f"{codes.strip()} {text.strip() or 'Service unavailable'}"
    limit = MAX_REPLY - _PREFIX
    if request is not None and len(reply) > _MIN_ACTION:
        client = f"{request.client.name}[{request.client.address}]"
        names = (request.recipient or "", request.sender or "", request.helo or "", client)
        limit = max(_MIN_ACTION, limit - max(len(name.encode("utf-8", "surrogateescape")) for name in names))
    return printable(reply, limit)
