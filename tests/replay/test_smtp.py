# SPDX-License-Identifier: GPL-3.0-or-later
"""The exact SMTP client of replay, against real sockets; and what it finds in a log afterwards."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.core.log import decision_line
from gatekeeper.core.message import Header, crlf
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.core.verdict import PASS, Decision
from gatekeeper.policy.protocol import action
from gatekeeper.replay.fixture import RecordedMessage
from gatekeeper.replay.smtp import ConnectionReplies, MessageReplies, SmtpClient, SmtpError
from tests.lab.evidence import decisions, header_changes, lines_of
from tests.lab.sink import Sink


@contextmanager
def server(*chunks: bytes) -> Iterator[int]:
    """A port where somebody says `chunks`, each in a packet of its own, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                for chunk in chunks:
                    try:
                        connection.sendall(chunk)
                    except OSError:  # the client has heard enough
                        return

        thread = threading.Thread(target=speak)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


def test_a_reply_of_many_lines_is_one_reply_in_whatever_pieces_it_comes() -> None:
    greeting = b"220-mx.example.org\r\n220-no spam\r\n220 please\r\n"
    with server(*(bytes([byte]) for byte in greeting)) as port, SmtpClient("127.0.0.1", port) as client:
        assert "220 mx.example.org no spam please" == client.greeting


@given(st.binary(max_size=64))
@settings(max_examples=50, deadline=None)
def test_what_is_no_reply_is_an_error_and_nothing_else(said: bytes) -> None:
    with server(said) as port:
        try:
            with SmtpClient("127.0.0.1", port) as client:
                assert client.greeting[:3].isdigit()
        except SmtpError:
            pass


def test_a_message_arrives_as_it_was_sent(sink: Sink) -> None:
    numbers = count()

    @given(st.lists(st.sampled_from([b".", b"..", b"", b"text", b" ", b"\xff\0"])))
    @settings(max_examples=50, deadline=None)
    def arrives(lines: list[bytes]) -> None:
        message = crlf(b"Subject: %d\n\n" % next(numbers) + b"\n".join(lines) + b"\n")
        for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA"):
            client.command(command)
        assert "250 2.0.0 ok" == client.content(message)
        delivery = sink.find(message)
        assert delivery is not None
        assert message == delivery.content

    with SmtpClient("127.0.0.1", sink.port) as client:
        arrives()


def test_xclient_escapes_what_would_end_its_word() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard = []

        def listen() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                for _ in range(3):
                    stream.write(b"250 ok\r\n")
                    stream.flush()
                    heard.append(stream.readline())

        thread = threading.Thread(target=listen)
        thread.start()
        with SmtpClient("127.0.0.1", listener.getsockname()[1]) as client:
            client.xclient({"LOGIN": "j\N{LATIN SMALL LETTER O WITH DIAERESIS} +=\r\n"})
        thread.join(10)
    assert b"XCLIENT LOGIN=j+C3+B6+20+2B+3D+0D+0A\r\n" == heard[1]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def decision(sender: str, recipient: str | None = None, helo: str = "") -> Decision:
    client = Client(address=IPv4Address("192.0.2.1"), port=1234)
    request = Request(stage=Stage.RCPT, client=client, helo=helo, sender=sender, recipient=recipient)
    return Decision(request, PASS, (), PASS)


@given(texts, texts, texts)
def test_a_decision_is_read_from_the_log_as_it_was_taken(helo: str, sender: str, recipient: str) -> None:
    told = decision_line(decision(sender, recipient, helo), "policy", action)
    [line] = decisions(f"2026-11-22 12:00:00.000 gatekeeper[1]: INFO {told}\n")
    assert (helo, f"<{sender}>", f"<{recipient}>") == (line.get("helo", ""), line["sender"], line["recipient"])


def test_equal_messages_of_one_connection_have_each_their_own_decision() -> None:
    lines = [
        decision_line(decision("a@x.example", "b@y.example", helo), "policy", action) for helo in ("first", "second")
    ]
    message = RecordedMessage.model_validate({"from": "a@x.example", "to": ["b@y.example"]})
    heard = ConnectionReplies(decision("").request.client, "220", [MessageReplies(("250",)), MessageReplies(("250",))])
    taken = lines_of("\n".join(f"x {line}" for line in lines), heard, [message, message])
    assert [["first"], ["second"]] == [[line["helo"] for line in one] for one in taken]


def test_header_changes_leave_out_what_postfix_adds_itself() -> None:
    sent = b"A: 1\r\nB: 2\r\nB: 2\r\n\r\n"
    arrived = b"New: 0\r\nReceived: by us\r\nA: 1\r\nB: 2\r\n\r\n"
    assert ([Header(b"New", b" 0")], [Header(b"B", b" 2")]) == header_changes(sent, arrived)
