# SPDX-License-Identifier: GPL-3.0-or-later
"""What strangers send: policy requests and milter packets, right ones that are changed until they are wrong.

The peer may be cut off, or told a bounded, printable word; nobody else may notice. Every run can be had again by its
seed.
"""

import multiprocessing
import random
import re
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.queues import Queue
from typing import NamedTuple, TypeAlias

from tests.attack.honest import load
from tests.attack.report import Result
from tests.attack.world import world

_SPAWN = multiprocessing.get_context("spawn")
_ANSWER_WITHIN = 12.0
"""Seconds for the answer to a well-framed request: the DNS budget, on a busy machine."""
_AT_ONCE = 8
"""Milter sessions at the same time."""
_IDLE = 0.5
"""Seconds after which a milter that says nothing is taken to wait for the rest of a packet."""
_GROWTH = 64 << 20
"""Bytes that the whole service may have grown by: caches that fill up to their bounds, and the heap's own waste."""


class Fuzzed(NamedTuple):
    """What a fuzzer did, and what it found."""

    connections: int
    sent: int
    answers: int
    findings: tuple[str, ...]


Results: TypeAlias = "Queue[tuple[str, Fuzzed]]"


def fuzz(result: Result, minutes: float, seed: int) -> None:
    """Feed both protocols with nonsense for `minutes`, beside honest clients."""
    # By TCP, as strangers come: on a unix socket that is Postfix's alone, nobody stands before libmilter.
    with world(milter_on_tcp=True) as attacked, load(attacked.policy_address, attacked.milter_address) as clients:
        time.sleep(3.0)  # until caches and code are warm
        workers, before = sorted(attacked.workers), attacked.memory()
        results: Results = _SPAWN.Queue()
        fuzzers = [
            _SPAWN.Process(target=_run_policy, args=(attacked.policy_address, minutes, seed, results)),
            _SPAWN.Process(target=_run_milter, args=(attacked.milter_address, minutes, seed, results)),
        ]
        for process in fuzzers:
            process.start()
        for _ in fuzzers:
            name, fuzzed = results.get(timeout=minutes * 60 + 120)
            result.count(f"{name} connections", fuzzed.connections)
            result.count(f"{name} frames", fuzzed.sent)
            result.count(f"{name} answers to them", fuzzed.answers)
            result.findings += [f"{name}: {finding}" for finding in fuzzed.findings]
        for process in fuzzers:
            process.join(10)
        after = attacked.memory()
        died = set(workers) - set(attacked.workers)
        clients.end()
        result.clients(clients.policy, clients.milter)
        result.count("workers that died", len(died))
        result.figure("memory", f"{before >> 20} MB before, {after >> 20} MB after")
        result.require(not died, "no worker dies")
        result.require(clients.policy.lost + clients.milter.lost == 0, "no honest session is lost")
        result.require(after - before < _GROWTH, f"memory grows by less than {_GROWTH >> 20} MB")
        result.end(attacked)


def _run_policy(address: tuple[str, int], minutes: float, seed: int, results: Results) -> None:
    results.put(("policy", fuzz_policy(address, time.monotonic() + minutes * 60, random.Random(seed))))


def _run_milter(address: str | tuple[str, int], minutes: float, seed: int, results: Results) -> None:
    results.put(("milter", fuzz_milter(address, time.monotonic() + minutes * 60, random.Random(seed))))


# -- bytes ----------------------------------------------------------------------------------------------------------

_ODD = (
    b"", b"\0", b"\n", b"\r\n", b"=", b"\xff\xfe", b"%s%n", b"a" * 300, b"a" * 3000, b"<>", b'"', b"\\", b"::1",
    b"[::1]", b"256.1.1.1", b"999999999999999999999", b"-1", b"\xe2\x80\xae", b"xn--", b".", b"..", b"@", b"a@b@c",
    b"\x1b[2J", b"action=OK\n\n", b"(" * 500, b"1.2.3.4/0", b"unknown", b"\r\nX: y",
)  # fmt: skip


def _changed(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four things wrong."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((0, 1, 2, 8, 64)))
        match rng.randrange(6):
            case 0:
                data = data[:at] + bytes([rng.randrange(256)]) + data[to:]
            case 1:
                data = data[:at] + rng.choice(_ODD) + data[at:]
            case 2:
                data = data[:at] + data[to:]
            case 3:
                data = data[:at] + data[at:to] * rng.randint(2, 50) + data[to:]
            case 4:
                data = data[:at] + rng.randbytes(rng.choice((1, 4, 40))) + data[to:]
            case _:
                data = data[:at]
    return data


def _send(sock: socket.socket, data: bytes, rng: random.Random) -> None:
    """Send in pieces of any size."""
    while data:
        size = len(data) if rng.random() < 0.7 else rng.randint(1, len(data))
        sock.sendall(data[:size])
        data = data[size:]


# -- policy requests ------------------------------------------------------------------------------------------------

_ATTRIBUTES = {
    b"request": b"smtpd_access_policy", b"protocol_state": b"RCPT", b"protocol_name": b"ESMTP",
    b"client_address": b"203.0.113.7", b"client_name": b"mail.fuzz.example", b"client_port": b"2525",
    b"reverse_client_name": b"mail.client.example", b"helo_name": b"client.example", b"sender": b"a@client.example",
    b"recipient": b"b@ours.example", b"recipient_count": b"0", b"queue_id": b"", b"instance": b"123.456.789.0",
    b"size": b"1000", b"etrn_domain": b"", b"stress": b"", b"sasl_method": b"", b"sasl_username": b"",
    b"sasl_sender": b"", b"ccert_subject": b"", b"ccert_fingerprint": b"", b"encryption_protocol": b"TLSv1.3",
    b"encryption_keysize": b"256", b"policy_context": b"", b"server_address": b"198.51.100.1", b"server_port": b"25",
}  # fmt: skip
_STATES = (b"CONNECT", b"EHLO", b"HELO", b"MAIL", b"RCPT", b"DATA", b"END-OF-MESSAGE", b"VRFY", b"ETRN", b"BDAT", b"x")
_ANSWER = re.compile(rb"action=[ -~]{1,1000}\n\n")
_ACTION = re.compile(rb"action=(?:DUNNO|(?:DEFER_IF_PERMIT|DEFER_IF_REJECT|[45]\d\d) [45]\.\d+\.\d+ .+|PREPEND .+)\n\n")


def _request(rng: random.Random) -> tuple[bytes, bool]:
    """A request, and whether it is framed well, so that it has to be answered."""
    attributes = dict(_ATTRIBUTES)
    attributes[b"protocol_state"] = rng.choice(_STATES)
    for _ in range(rng.randint(0, 4)):
        name = rng.choice(tuple(attributes)[1:])  # without `request` it is not a request
        odd = rng.choice(_ODD) if rng.random() < 0.7 else rng.randbytes(rng.randint(0, 40))
        value = rng.choice((odd, attributes[name] + odd, odd + attributes[name], odd + b"@" + odd))
        attributes[name] = value.replace(b"\n", b" ").replace(b"\0", b" ").replace(b"\r", b" ")
    if rng.random() < 0.1:
        attributes.pop(rng.choice(tuple(attributes)[1:]))
    names = list(attributes)
    if rng.random() < 0.3:
        rng.shuffle(names)
    frame = b"".join(name + b"=" + attributes[name] + b"\n" for name in names)
    if rng.random() < 0.5:
        return frame + b"\n", True
    return _changed(frame, rng) + rng.choice((b"\n", b"\n\n", b"")), False


def fuzz_policy(address: tuple[str, int], deadline: float, rng: random.Random) -> Fuzzed:
    """Send requests until `deadline`, right and wrong."""
    connections = sent = answers = 0
    findings: list[str] = []
    while time.monotonic() < deadline and len(findings) < 8:
        with socket.create_connection(address, timeout=_ANSWER_WITHIN) as sock:
            connections += 1
            for _ in range(rng.randint(1, 40)):
                frame, well = _request(rng)
                sent += 1
                try:
                    _send(sock, frame, rng)
                    if not well:
                        sock.shutdown(socket.SHUT_WR)
                    answer = _read_answer(sock)
                except TimeoutError:
                    findings.append(f"no answer within {_ANSWER_WITHIN:g} s to {frame[:300]!r}")
                    break
                except OSError:
                    answer = b""
                answers += bool(answer)
                if (answer or well) and not (_ANSWER.fullmatch(answer) and _ACTION.fullmatch(answer)):
                    findings.append(f"{answer[:300]!r} to {frame[:300]!r}")
                if not well or not answer:
                    break
    return Fuzzed(connections, sent, answers, tuple(findings))


def _read_answer(sock: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"\n\n") and len(answer) < 4096:
        data = sock.recv(4096)
        if not data:
            break
        answer += data
    # What was broken may have been two requests: each has its answer
    return answer[: answer.find(b"\n\n") + 2] if answer else answer


# -- milter packets -------------------------------------------------------------------------------------------------


def _packet(command: bytes, data: bytes = b"") -> bytes:
    return struct.pack("!L", len(data) + 1) + command + data


def _macros(rng: random.Random, at: bytes) -> bytes:
    """Macros as Postfix sends them, or a list that is odd, empty or not ended."""
    words = [b"i", b"4AbC", b"{auth_type}", b"PLAIN", b"{auth_authen}", b"ann@ours.example", b"{daemon_name}", b"smtpd"]
    count = rng.randint(0, len(words))
    if rng.random() < 0.98:
        count -= count % 2
    return _packet(b"D", at + b"".join(word + b"\0" for word in words[:count]))


def _session(rng: random.Random) -> list[bytes]:
    """The packets of a session."""
    field = rng.choice((b"From", b"DKIM-Signature", b"Authentication-Results", b"ARC-Seal", b"Received", b"X" * 200))
    value = rng.choice(
        (
            b" a@client.example",
            b" mx.ours.example; dkim=pass",
            b" v=1; a=rsa-sha256; d=client.example; s=sel; h=from; bh=AAAA; b=AAAA",
            b" i=1; a=rsa-sha256; cv=none; d=client.example; s=sel; b=AAAA",
            b" " + b"(" * rng.choice((1, 100, 5000)),
            rng.randbytes(rng.choice((0, 10, 1000, 60000))).replace(b"\0", b""),
        )
    )
    session = [
        _packet(b"O", struct.pack("!LLL", rng.choice((2, 6, 6, 6, 99)), 0x1FF, 0x1FFFFF)),
        _macros(rng, b"C"),
        _packet(b"C", b"mail.client.example\0" + b"4" + struct.pack("!H", 2525) + b"192.0.2.1\0"),
        _packet(b"H", b"client.example\0"),
    ]
    for _ in range(rng.randint(1, 3)):
        session += [
            _macros(rng, b"M"),
            _packet(b"M", b"<a@client.example>\0"),
            _macros(rng, b"R"),
            _packet(b"R", b"<b@ours.example>\0"),
            _packet(b"L", b"From\0 a@client.example\0"),
            _packet(b"L", field + b"\0" + value + b"\0"),
            _macros(rng, b"N"),
            _packet(b"N"),
            _packet(b"B", rng.randbytes(rng.choice((0, 1, 100, 60000)))),
            _macros(rng, b"E"),
            _packet(b"E"),
        ]
    return session


_COMMANDS = b"OCDHMRLNBEAQKTUabcxyz\0\xff"


def _damaged(session: list[bytes], rng: random.Random) -> list[bytes]:
    """The session with something wrong: in a packet, in its frame, or in their order."""
    at = rng.randrange(len(session))
    packet = session[at]
    match rng.randrange(9):
        case 0:
            session[at] = _packet(packet[4:5], _changed(packet[5:], rng))
        case 1:
            session[at] = _packet(bytes([rng.choice(_COMMANDS)]), packet[5:])
        case 2:
            session[at] = _packet(packet[4:5], packet[5:].rstrip(b"\0"))
        case 3:
            session[at] = struct.pack("!L", rng.choice((0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20))) + packet[4:]
        case 4:
            session[at] = _changed(packet, rng)
        case 5:
            rng.shuffle(session)
        case 6:
            del session[rng.randrange(len(session)) :]
        case 7:
            session.insert(at, _packet(bytes([rng.choice(_COMMANDS)]), rng.choice(_ODD)))
        case _:
            session.insert(at, session[rng.randrange(len(session))])
    return session


def fuzz_milter(address: str | tuple[str, int], deadline: float, rng: random.Random) -> Fuzzed:
    """Speak the milter protocol until `deadline`, rightly and wrongly; several at once, because libmilter may wait."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        seeds = [rng.randrange(1 << 32) for _ in range(_AT_ONCE)]
        parts = list(pool.map(lambda seed: _fuzz_milter(address, deadline, random.Random(seed)), seeds))
    return Fuzzed(
        sum(part.connections for part in parts),
        sum(part.sent for part in parts),
        sum(part.answers for part in parts),
        tuple(finding for part in parts for finding in part.findings),
    )


def _fuzz_milter(address: str | tuple[str, int], deadline: float, rng: random.Random) -> Fuzzed:
    connections = sent = answers = 0
    findings: list[str] = []
    while time.monotonic() < deadline and len(findings) < 8:
        session = [*_session(rng), _packet(b"Q")]
        if rng.random() < 0.9:
            session = _damaged(session, rng)
        connections += 1
        sent += len(session)
        heard = b""
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
            sock.settimeout(_IDLE)
            with suppress(OSError):  # it has hung up, or waits for the rest of a packet
                sock.connect(address)
                _send(sock, b"".join(session), rng)
                while data := sock.recv(65536):
                    heard += data
        number, finding = _look_at(heard)
        answers += number
        if finding:
            findings.append(f"{finding}, to {b''.join(session)[:300]!r}")
    return Fuzzed(connections, sent, answers, tuple(findings))


def _look_at(heard: bytes) -> tuple[int, str]:
    """How many packets came back, and what is wrong with them: fields and replies are one line or folded, and text."""
    number = 0
    while len(heard) >= 4:
        size = struct.unpack("!L", heard[:4])[0]
        packet, heard = heard[4 : 4 + size], heard[4 + size :]
        number += 1
        if packet[:1] in (b"h", b"i", b"m", b"y", b"q"):
            text = packet[5 if packet[:1] in (b"i", b"m") else 1 :].replace(b"\0", b" ")
            if re.search(rb"[^\t\n -~]|\n(?![ \t])", text):
                return number, f"an edit or reply that is not clean: {packet[:200]!r}"
    return number, ""
