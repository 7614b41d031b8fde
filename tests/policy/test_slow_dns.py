# SPDX-License-Identifier: GPL-3.0-or-later
"""A slow or dead name server passes nobody, and delays nobody else: the whole policy daemon, with real DNS."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from gatekeeper.dnsclient.time_limit import SECONDS_WITH_LISTS
from gatekeeper.dnsclient.zone import Zone
from tests.lab.dns import DnsServer
from tests.policy.test_wire import ask
from tests.support.service import Service

pytestmark = pytest.mark.integration("gatekeeper")

ZONE = Zone.parse(
    """
sender.slow.example      MX  10 mx.slow.example
*.late.example           A   192.0.2.9
good.example             MX  10 mx.good.example
forged.example           TXT "v=spf1 -all"
example.org              MX  10 mx.example.org
client.example           A   192.0.2.1
1.2.0.192.in-addr.arpa   PTR client.example
2.0.0.127.bl.example     A   127.0.0.2
66.2.0.192.bl.example    A   127.0.0.2
66.2.0.192.bl.example    TXT "a spammer"
"""
)
CONFIG = """\
hostname = "mx.example.org"
recipient_delimiter = ""
local_domains = ["example.org"]
[dns]
nameservers = ["{}"]
[store]
url = "memory:"
[policy]
listen = "inet:127.0.0.1:0"
workers = 1
[checks.dnsbl]
lists = ["bl.example"]
[checks.greylist]
learning = "0s"
"""
CLIENTS = 130
SLACK = 4.0
"""Seconds for a machine that is busy with other things."""


@contextmanager
def daemon(folder: Path, nameserver: str, more: str = "") -> Iterator[Service]:
    path = folder / "gatekeeper.toml"
    path.write_text(CONFIG.format(nameserver) + more)
    service = Service(path, "policy")
    try:
        yield service
    finally:
        assert 0 == service.end()


@contextmanager
def slow_world(folder: Path, delays: Mapping[str, float], more: str = "") -> Iterator[Service]:
    with DnsServer(ZONE, delays=delays) as dns, daemon(folder, dns.address, more) as service:
        yield service


Asked = tuple[float, bytes]
"""How long an answer took, in seconds, and what it was."""


def ask_timed(connection: socket.socket, **changes: bytes) -> Asked:
    began = time.monotonic()
    said = ask(connection, **changes)
    return time.monotonic() - began, said


def all_at_once(service: Service, of: Callable[[int], dict[str, bytes]]) -> list[Asked]:
    """What CLIENTS connections are answered that ask in the same moment."""
    answers: list[Asked] = []

    def one(connection: socket.socket, changes: dict[str, bytes]) -> None:
        with connection:
            answers.append(ask_timed(connection, **changes))

    connections = [service.policy() for _ in range(CLIENTS)]
    threads = [threading.Thread(target=one, args=(sock, of(number))) for number, sock in enumerate(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def of_sender(domain: bytes) -> Callable[[int], dict[str, bytes]]:
    return lambda number: {
        "sender": b"a@" + domain.replace(b"*", b"%d" % number),
        "instance": b"%d" % number,
        "client_name": b"unknown",
    }


@pytest.mark.parametrize("domain", [b"never.example", b"x*.never.example"], ids=["one domain", "a domain each"])
def test_a_flood_from_domains_that_are_never_answered_is_deferred_in_time_and_delays_nobody(
    tmp_path: Path, domain: bytes
) -> None:
    with slow_world(tmp_path, {"never.example": 60.0}) as service, service.policy() as other:
        ask(other)  # the worker is warm
        quick: list[Asked] = []
        flood = threading.Thread(target=lambda: slow.extend(all_at_once(service, of_sender(domain))))
        slow: list[Asked] = []
        flood.start()
        while flood.is_alive():
            quick.append(ask_timed(other, instance=b"q%d" % len(quick)))
            time.sleep(0.1)
    assert CLIENTS == len(slow)
    assert {b"action=DEFER_IF_PERMIT 4.1.8"} == {answer[:28] for _, answer in slow}
    assert max(seconds for seconds, _ in slow) < SECONDS_WITH_LISTS + SLACK
    assert max(seconds for seconds, _ in quick) < 2.0
    assert not [line for line in service.lines if "no decision within" in line]


def test_answers_that_take_three_seconds_are_waited_for_together_and_count(tmp_path: Path) -> None:
    """The MX of one, and for another, which has none, its address: after 3 s, not after 9."""
    with slow_world(tmp_path, {"slow.example": 3.0, "late.example": 3.0}) as service:
        for sender in (b"a@sender.slow.example", b"a@only.late.example"):
            with service.policy() as connection:
                seconds, answer = ask_timed(connection, sender=sender, sasl_username=b"")
            assert b"4.1.8" not in answer
            assert 3.0 < seconds < SECONDS_WITH_LISTS + SLACK


def test_a_sender_whose_servers_are_slow_does_not_use_up_the_time_of_dns_lists(tmp_path: Path) -> None:
    more = '[policy.contexts.all]\nrestrictions = "reject_unknown_helo_hostname, reject_unknown_sender_domain, dnsbl"\n'
    with slow_world(tmp_path, {"never.example": 60.0}, more) as service, service.policy() as connection:
        seconds, answer = ask_timed(
            connection,
            client_address=b"192.0.2.66",
            helo_name=b"mail.never.example",
            sender=b"a@never.example",
            policy_context=b"all",
        )
    assert answer.startswith(b"action=554 5.7.1 ")
    assert b"a spammer" in answer
    assert seconds < SECONDS_WITH_LISTS + SLACK


def test_a_client_whose_servers_are_slow_does_not_use_up_the_time_of_the_domain_that_it_forges(tmp_path: Path) -> None:
    more = '[checks.spf]\nmode = "enforce"\n[policy.contexts.all]\nrestrictions = "reject_unknown_helo_hostname, spf"\n'
    delays = {"late.example": 4.5, "forged.example": 1.5}
    with slow_world(tmp_path, delays, more) as service, service.policy() as connection:
        seconds, answer = ask_timed(
            connection, helo_name=b"mail.late.example", sender=b"a@forged.example", policy_context=b"all"
        )
    assert answer.startswith(b"action=550 5.7.23 SPF of forged.example ")
    assert seconds < SECONDS_WITH_LISTS + SLACK


def test_where_no_resolver_listens_the_answer_is_there_at_once(tmp_path: Path) -> None:
    with daemon(tmp_path, "127.0.0.1:1") as service, service.policy() as connection:
        seconds, answer = ask_timed(connection)
    assert answer.startswith(b"action=DEFER_IF_PERMIT 4.1.8 ")
    assert seconds < SLACK


def test_a_resolver_that_is_down_defers_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
        hole.bind(("127.0.0.1", 0))
        with daemon(tmp_path, "{}:{}".format(*hole.getsockname())) as service, service.policy() as connection:
            seconds, answer = ask_timed(connection, client_name=b"unknown")
    assert answer.startswith(b"action=DEFER_IF_PERMIT 4.1.8 ")
    assert seconds < SECONDS_WITH_LISTS + SLACK
