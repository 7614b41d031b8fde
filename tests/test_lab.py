# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab that the integration tests and `make demo` stand on: does it do what it says, and leave nothing behind?"""

import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.dnsclient.zone import Zone
from tests.lab.dns import DnsServer, answer
from tests.lab.postfix import Ports, master_services
from tests.lab.service import write_config
from tests.lab.sink import Delivery, Sink
from tests.support.lab import need_postfix, new_lab

ZONE = Zone.parse(
    """
    a.example A 192.0.2.1
    long.example TXT "%s"
    long.example TXT "%s"
    long.example TXT "%s"
    long.example TXT "%s"
    long.example TXT "%s"
    long.example TXT "%s"
    broken.example A !SERVFAIL
    silent.example A !TIMEOUT
    """.replace("    ", "")
    % tuple(letter * 250 for letter in "abcdef")
)


@pytest.fixture
def dns_server() -> Iterator[DnsServer]:
    with DnsServer(ZONE) as server:
        yield server


def ask(
    server: DnsServer, name: str, kind: str = "A", *, by: Callable[..., dns.message.Message]
) -> dns.message.Message:
    host, port = server.address.split(":")
    return by(dns.message.make_query(name, kind), host, port=int(port), timeout=5)


@pytest.mark.parametrize("by", [dns.query.udp, dns.query.tcp])
def test_dns_answers_from_the_zone(dns_server: DnsServer, by: Callable[..., dns.message.Message]) -> None:
    assert "192.0.2.1" == str(ask(dns_server, "A.example", by=by).answer[0][0])


@pytest.mark.parametrize(
    ("name", "rcode"), [("broken.example", dns.rcode.SERVFAIL), ("none.example", dns.rcode.NXDOMAIN)]
)
def test_dns_faults_are_response_codes(dns_server: DnsServer, name: str, rcode: dns.rcode.Rcode) -> None:
    assert rcode == ask(dns_server, name, by=dns.query.udp).rcode()


def test_a_dns_timeout_is_silence() -> None:
    assert answer(ZONE, dns.message.make_query("silent.example", "A").to_wire(), udp=True) is None


def test_a_long_answer_is_truncated_over_udp_and_whole_over_tcp(dns_server: DnsServer) -> None:
    assert ask(dns_server, "long.example", "TXT", by=dns.query.udp).flags & dns.flags.TC
    assert 6 == len(ask(dns_server, "long.example", "TXT", by=dns.query.tcp).answer[0])


@given(st.binary())
def test_no_bytes_upset_the_dns_server(wire: bytes) -> None:
    response = answer(ZONE, wire, udp=True)
    assert response is None or len(response) >= 12


def test_the_sink_keeps_a_message_byte_for_byte() -> None:
    sink = Sink()
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=10) as client:
        client.sendmail("a@example.com", ["b@example.org"], b"Subject: dots\r\n\r\n.\r\n..\r\n\xff\r\n")
    assert Delivery("a@example.com", ("b@example.org",), b"Subject: dots\r\n\r\n.\r\n..\r\n\xff\r\n") == sink.find(
        b"dots"
    )
    sink.close()


def test_the_lab_uses_the_shipped_services_on_its_own_ports_without_chroot() -> None:
    shipped = "# a comment\nsubmission inet n - y - - smtpd\n  -o a=b\n"
    assert (
        "127.0.0.1:1 inet n - n - - smtpd\n# a comment\n127.0.0.1:2 inet n - n - - smtpd\n  -o a=b\n"
        == master_services(shipped, Ports(smtp=1, submission=2, reinject=3))
    )


def test_a_configuration_keeps_its_neighbours_and_takes_the_labs_addresses(tmp_path: Path) -> None:
    original = tmp_path / "mine" / "gatekeeper.toml"
    original.parent.mkdir()
    (original.parent / "KeyTable").write_text("keys")
    original.write_text('hostname = "é\\u007f"\n[policy]\nlisten = "inet:1"\nworkers = 2\n[log]\nlevel = "debug"\n')
    written = write_config(tmp_path / "lab", original, {"policy": {"listen": ["unix:/x"]}, "quick": True, "log": None})
    expected = {"hostname": "é\x7f", "policy": {"listen": ["unix:/x"], "workers": 2}, "quick": True}
    assert expected == tomllib.loads(written.read_text("utf-8"))
    assert "keys" == (written.parent / "KeyTable").read_text()


@pytest.mark.integration("postfix")
def test_two_labs_stand_side_by_side_and_leave_nothing() -> None:
    with new_lab() as one, new_lab() as other:
        roots = [one.root, other.root]
        for lab in (one, other):
            lab.postfix.sendmail(b"Subject: hello\n\nhello\n", sender="a@example.org", recipient="b@example.com")
            assert lab.sink.find(b"hello") is not None
    assert [False, False] == [root.exists() for root in roots]


@pytest.mark.integration("postfix")
def test_a_killed_lab_is_cleaned_up() -> None:
    need_postfix()
    script = (
        "import time; from tests.support.lab import new_lab\n"
        "with new_lab() as lab: print(lab.root, lab.postfix.ports.smtp, flush=True); time.sleep(60)"
    )
    project = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=project) as process:
        assert process.stdout is not None
        root, port = process.stdout.readline().split()
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(root).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(root).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)
