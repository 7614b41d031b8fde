# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy daemon as Postfix meets it: a real process, real sockets, all that Postfix sends and more."""

import random
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.service import Service

pytestmark = pytest.mark.integration("gatekeeper")

IDLE = 1000
ATTRIBUTES = {
    b"request": b"smtpd_access_policy",
    b"protocol_state": b"RCPT",
    b"protocol_name": b"ESMTP",
    b"client_address": b"192.0.2.1",
    b"client_name": b"client.example",
    b"client_port": b"41234",
    b"reverse_client_name": b"client.example",
    b"server_address": b"192.0.2.25",
    b"server_port": b"25",
    b"helo_name": b"client.example",
    b"sender": b"alice@good.example",
    b"recipient": b"bob@example.org",
    b"recipient_count": b"0",
    b"queue_id": b"",
    b"instance": b"12ab.345.6",
    b"size": b"12345",
    b"etrn_domain": b"",
    b"stress": b"",
    b"sasl_method": b"",
    b"sasl_username": b"",
    b"sasl_sender": b"",
    b"ccert_subject": b"",
    b"ccert_issuer": b"",
    b"ccert_fingerprint": b"",
    b"ccert_pubkey_fingerprint": b"",
    b"encryption_protocol": b"TLSv1.3",
    b"encryption_cipher": b"TLS_AES_256_GCM_SHA384",
    b"encryption_keysize": b"256",
    b"policy_context": b"",
    b"compatibility_level": b"3.6",
    b"mail_version": b"3.12.0",
    b"server_sni": b"mx.example.org",
    b"not_thought_of_yet": b"a=b=c",
}
"""All that Postfix sends up to 3.12, and what it may send one day."""

CONFIG = """\
hostname = "mx.example.org"
recipient_delimiter = ""
[dns]
nameservers = ["127.0.0.1:9"]
[store]
url = "memory:"
[policy]
listen = "inet:127.0.0.1:0"
workers = 2
restrictions = '''
    check_client_access inline:{ 192.0.2.66=REJECT, 2001:db8::66=REJECT, { unknown = 450 4.7.1 no name } }
    check_sender_access inline:{ spam.example=REJECT }
    check_helo_access inline:{ {bad.example = 553 5.7.1 bad} }
    check_recipient_access static:{ DEFER_IF_PERMIT 4.7.0 seen }
'''
"""
SEEN = b"action=DEFER_IF_PERMIT 4.7.0 <bob@example.org>: Recipient address rejected: seen\n\n"


def frame(**changes: bytes) -> bytes:
    attributes = ATTRIBUTES | {name.encode(): value for name, value in changes.items()}
    return b"".join(b"%b=%b\n" % pair for pair in attributes.items()) + b"\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("wire") / "gatekeeper.toml"
    path.write_text(CONFIG)
    # As systemd starts services: few open files, but more if one asks.
    few = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (128, r.getrlimit(r.RLIMIT_NOFILE)[1]))"
    service = Service(path, "policy", prelude=few)
    service.wait_for("^listening policy ")
    yield service
    assert 0 == service.end()


@pytest.fixture
def postfix(service: Service) -> Iterator[socket.socket]:
    with service.policy() as connection:
        yield connection


def answer(connection: socket.socket) -> bytes:
    """One answer; more than that has not been asked for."""
    said = b""
    while not said.endswith(b"\n\n"):
        data = connection.recv(4096)
        assert data, said
        said += data
    return said


def ask(connection: socket.socket, **changes: bytes) -> bytes:
    connection.sendall(frame(**changes))
    return answer(connection)


def test_attributes_come_in_any_order_with_unknown_ones(postfix: socket.socket) -> None:
    for seed in range(20):
        lines = [b"%b=%b\n" % pair for pair in ATTRIBUTES.items()]
        random.Random(seed).shuffle(lines)
        postfix.sendall(b"".join(lines) + b"\n")
        assert SEEN == answer(postfix)


def test_a_request_with_every_attribute_comes_byte_by_byte(postfix: socket.socket) -> None:
    postfix.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in frame() + frame(sender=b"a@spam.example")[:-1]:
        postfix.sendall(bytes([byte]))
    assert SEEN == answer(postfix)
    postfix.sendall(b"\n")
    assert answer(postfix).startswith(b"action=554 5.7.1 <a@spam.example>: Sender address rejected")


def test_pipelined_requests_are_answered_in_order(postfix: socket.socket) -> None:
    postfix.sendall(frame() * 50 + frame(sender=b"a@spam.example"))
    said = b""
    while said.count(b"\n\n") < 51:
        said += postfix.recv(65536)
    assert said.startswith(SEEN * 50 + b"action=554 5.7.1 ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"client_address": b"unknown", "client_name": b"unknown"}, b"450 4.7.1"),
        ({"client_address": b"unknown"}, b"DEFER_IF_PERMIT"),
        ({"client_address": b"192.0.2.66"}, b"554 5.7.1"),
        ({"client_address": b"::ffff:192.0.2.66"}, b"554 5.7.1"),
        ({"client_address": b"2001:db8::66"}, b"554 5.7.1"),
        ({"client_address": b"2001:DB8:0::66"}, b"554 5.7.1"),
        ({"client_address": b"fe80::1%eth0"}, b"DEFER_IF_PERMIT"),
        ({"helo_name": b"\xff\xfe.bad.example"}, b"553 5.7.1"),
        ({"sender": b"\xe9t\xe9@good.example"}, b"DEFER_IF_PERMIT"),
        ({"sender": "ü@spam.example".encode()}, b"554 5.7.1"),
        ({"recipient": b"\x80\r\x1b[31m@example.org"}, b"DEFER_IF_PERMIT"),
        ({"helo_name": b"a" * 2048 + b".bad.example"}, b"553 5.7.1"),
        ({"sender": b"a=b@spam.example"}, b"554 5.7.1"),
    ],
)
def test_odd_values_are_understood(postfix: socket.socket, changes: dict[str, bytes], expected: bytes) -> None:
    said = ask(postfix, **changes)
    assert said.startswith(b"action=" + expected + b" ")
    assert said[:-2].isascii()
    assert said[:-2].decode().isprintable()


def test_a_thousand_idle_connections_do_not_keep_others_from_being_answered(service: Service) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 200:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 200), hard))
    with ExitStack() as stack:
        idle = [stack.enter_context(service.policy()) for _ in range(IDLE)]
        for connection in idle[::100]:  # asked before, now between two mails
            assert SEEN == ask(connection)
        others = [stack.enter_context(service.policy()) for _ in range(20)]
        for connection in others * 5:
            assert SEEN == ask(connection)
        for connection in idle:
            connection.sendall(frame())
        assert {SEEN} == {answer(connection) for connection in idle}
    assert not [line for line in service.lines if "cannot accept" in line]
