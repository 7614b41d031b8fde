# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lists over real DNS: a server on loopback, with unbound in between, and the whole service on top."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.checks.dnslists.lookup import parse_list, sanitize
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.live import LiveResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.dnslists.dns_list import ListKind
from gatekeeper.dnslists.health import STRIKES
from gatekeeper.dnslists.monitor import ListMonitor
from gatekeeper.dnslists.queries import ListQueries, ListQuestion
from tests.lab.dns import DnsServer
from tests.lab.ports import free_port
from tests.support.needs import ROOT, require_program
from tests.support.service import Service, until

KEY = "abcd1234efgh5678ijkl90mnop"
WORLD = r"""
$TTL 0
com NS a.gtld-servers.example
2.0.0.127.good.example A 127.0.0.2
9.2.0.192.good.example A 127.0.0.4
9.2.0.192.good.example TXT "spam\013\010550 " "from \027[31m\200\255 here"
*.everything.example A 127.0.0.2
*.parked.example A 203.0.113.7
*.refused.example A 127.255.255.254
*.failing.example A !SERVFAIL
*.silent.example A !TIMEOUT
"""
EXPECTED = {
    "good.example": "",
    "everything.example": "lists everything, even 127.0.0.1, which no list may have (127.0.0.2)",
    "nothing.example": "lists nothing, not even 127.0.0.2, which every list has (RFC 5782)",
    "parked.example": "answers what no list answers (203.0.113.7)",
    "refused.example": "refuses to answer (127.255.255.254, it was asked through a public resolver",
    "failing.example": "does not answer (",
    "silent.example": "does not answer (",
}


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(Zone.parse(WORLD)) as server:
        yield server


@pytest.fixture
def unbound(server: DnsServer, tmp_path: Path) -> Iterator[str]:
    """A resolver that forwards to the server and keeps nothing: `HOST:PORT`."""
    program = require_program("unbound", "unbound")
    port, config = free_port(), tmp_path / "unbound.conf"
    config.write_text(
        f"""server:
    interface: 127.0.0.1@{port}
    username: ""
    chroot: ""
    directory: "{tmp_path}"
    pidfile: ""
    use-syslog: no
    do-daemonize: no
    do-ip6: no
    do-not-query-localhost: no
    module-config: "iterator"
    cache-max-ttl: 0
    cache-max-negative-ttl: 0
    local-zone: "invalid." nodefault
remote-control:
    control-enable: no
forward-zone:
    name: "."
    forward-addr: {server.address.replace(":", "@")}
"""
    )
    process = subprocess.Popen([program, "-d", "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(port), "unbound answers")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=["directly", pytest.param("through unbound", marks=pytest.mark.integration("unbound"))])
def nameserver(request: pytest.FixtureRequest, server: DnsServer) -> str:
    if request.param == "directly":
        return server.address
    address: str = request.getfixturevalue("unbound")
    return address


@pytest.mark.slow
async def test_each_illness_is_told_from_the_others(nameserver: str) -> None:
    sites = {zone: parse_list(zone) for zone in EXPECTED}
    watched = ListMonitor(
        LiveResolver([nameserver], timeout=2.0), uses=[(site, ListKind.ADDRESS) for site in sites.values()]
    )
    for _ in range(STRIKES):
        await watched.probe()
    found = {zone: watched.why_off(site) for zone, site in sites.items()}
    assert EXPECTED == {zone: why[: len(EXPECTED[zone])] for zone, why in found.items()}
    assert "" == found["good.example"]


@pytest.mark.integration("unbound")
async def test_a_resolver_that_rewrites_nxdomain_is_found_out(
    server: DnsServer, unbound: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.zone = Zone.parse("*. A 203.0.113.7\ncom NS a.gtld-servers.example")
    watched = ListMonitor(LiveResolver([unbound]), uses=[(parse_list("zen.spamhaus.org"), ListKind.ADDRESS)])
    await watched.probe()
    assert ["the DNS resolver invents answers"] == [message[:32] for message in caplog.messages]
    server.zone = Zone.parse("2.0.0.127.zen.spamhaus.org 0 A 127.0.0.2")
    await watched.probe()
    assert ["the DNS resolver is well again"] == [message[:30] for message in caplog.messages[1:]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r'"plain"', "plain"),
        (r'"two\013\010550 lines"', "two 550 lines"),
        (r'"\027[31mred\009tab\000nul"', "[31mred tab nul"),
        (r'"caf\195\169 \255"', "caf? ?"),
        (" ".join('"x"' for _ in range(200)), "x" * 200),
        (" ".join(f'"{"y" * 250}"' for _ in range(240)), "y" * 197 + "..."),  # 60 kB
        ('""', ""),
    ],
    ids=["plain", "CRLF", "control", "8-bit", "many", "60 kB", "empty"],
)
async def test_a_list_s_own_words_are_made_safe(server: DnsServer, text: str, expected: str) -> None:
    server.zone = Zone.parse(f"9.2.0.192.good.example TXT {text}")
    answer = await LiveResolver([server.address]).query("9.2.0.192.good.example", "TXT")
    assert expected == sanitize([record for record in answer.records if isinstance(record, bytes)], "good.example")


async def test_a_silent_list_is_waited_for_no_longer_than_the_budget(nameserver: str) -> None:
    watched = ListMonitor(CachingResolver(LiveResolver([nameserver])), timeout=0.3)
    questions = [
        ListQuestion(parse_list(f"{zone}.example"), ListKind.ADDRESS, "9.2.0.192") for zone in ("silent", "good")
    ]
    await watched.resolver.query("9.2.0.192.good.example", "A")  # known by then, however busy this machine is
    silent, good = await ListQueries(watched).ask(questions)
    assert (True, ("127.0.0.4",)) == (silent.unknown, good.records)


CONFIG = """\
hostname = "mx.example"
mynetworks = ["127.0.0.0/8"]
[dns]
nameservers = ["{nameserver}"]
timeout = "10s"
[store]
url = "sqlite:{folder}/state.db"
[policy]
listen = "inet:127.0.0.1:0"
workers = 1
restrictions = '''
  reject_rbl_client everything.example, reject_rbl_client parked.example, reject_rbl_client refused.example,
  reject_rhsbl_sender {key}.dbl.dq.spamhaus.net, reject_rbl_client {key}.zen.dq.spamhaus.net=127.0.0.[2..11], dnsbl'''
[checks.dnsbl]
lists = ["good.example", "{key}.combined.mail.abusix.zone*3"]
[log]
level = "debug"
"""
QUICK = "import gatekeeper.dnslists.monitor as w; w.CONFIRM_INTERVAL = w.RECOVERY_INTERVAL = w.PROBE_INTERVAL = 0.2"
QUESTION = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nhelo_name=mail.example.net\nclient_address=%b\nsender=a@%b\n\n"
)


def ask(connection: socket.socket, address: bytes, sender: bytes = b"example.net") -> bytes:
    connection.sendall(QUESTION % (address, sender))
    answer = b""
    while not answer.endswith(b"\n\n"):
        data = connection.recv(4096)
        assert data
        answer += data
    return answer


@pytest.mark.integration("gatekeeper")
def test_the_service_watches_its_lists_and_keeps_their_keys(server: DnsServer, tmp_path: Path) -> None:
    keyed = f"""
2.0.0.127.{KEY}.zen.dq.spamhaus.net A 127.0.0.2
8.2.0.192.{KEY}.zen.dq.spamhaus.net A 127.0.0.4
8.2.0.192.{KEY}.zen.dq.spamhaus.net TXT "https://check.example/8.2.0.192.{KEY}.zen.dq.spamhaus.net"
dbltest.com.{KEY}.dbl.dq.spamhaus.net A 127.0.1.2
bad.example.{KEY}.dbl.dq.spamhaus.net A 127.0.1.2
*.{KEY}.combined.mail.abusix.zone A !SERVFAIL
"""
    server.zone = Zone.parse(WORLD + keyed)
    config = tmp_path / "gatekeeper.toml"
    config.write_text(CONFIG.format(nameserver=server.address, folder=tmp_path, key=KEY))
    service = Service(config, "policy", prelude=QUICK)
    with service.policy() as connection:
        assert b"action=DUNNO\n\n" == ask(connection, b"192.0.2.1")  # nothing counts before the first probe is back
        service.wait_for("DNS list everything.example is switched off: it lists everything")
        service.wait_for("DNS list parked.example is switched off")
        service.wait_for("DNS list refused.example is switched off: .* ask through a resolver of your own")
        service.wait_for(r"DNS list combined.mail.abusix.zone is switched off: it does not answer \(SERVFAIL\)")
        answers = [ask(connection, b"192.0.2.1"), ask(connection, b"192.0.2.9"), ask(connection, b"192.0.2.8")]
        answers.append(ask(connection, b"192.0.2.1", b"bad.example"))
        server.zone = Zone.parse(WORLD.replace("*.everything", "2.0.0.127.everything") + keyed)
        service.wait_for("DNS list everything.example is switched on again")
    assert 0 == service.end()
    refused = b"action=554 5.7.1 Service unavailable; "
    assert [
        b"action=DUNNO",
        refused + b"Client host [192.0.2.9] blocked using good.example; spam 550 from [31m?? here",
        refused
        + b"Client host [192.0.2.8] blocked using zen.dq.spamhaus.net; "
        # the question in the list's words, without the key
        + b"https://check.example/8.2.0.192.zen.dq.spamhaus.net",
        refused + b"Sender address [a@bad.example] blocked using dbl.dq.spamhaus.net",
    ] == [answer.strip() for answer in answers]
    assert 1 == sum("everything.example is switched off" in line for line in service.lines)
    assert [] == [line for line in service.lines if KEY in line]
    assert [] == [path for path in tmp_path.glob("state.db*") if KEY.encode() in path.read_bytes()]


def run(config: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gatekeeper", "--config", str(config), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.integration("gatekeeper")
def test_explain_says_that_a_list_is_off_and_tells_no_key(server: DnsServer, tmp_path: Path) -> None:
    server.zone = Zone.parse(f"{WORLD}*.{KEY}.zen.dq.spamhaus.net A !SERVFAIL\n*.{KEY}.dbl.dq.spamhaus.net A 127.0.1.2")
    config = tmp_path / "gatekeeper.toml"
    config.write_text(CONFIG.format(nameserver=server.address, folder=tmp_path, key=KEY))
    session = ("explain", "--client", "192.0.2.1,a.example", "--helo", "a.example", "--from", "a@b.c", "--to", "d@e.f")
    said = run(config, *session)
    assert "list everything.example: switched off: lists everything, even 127.0.0.1" in said
    assert "list zen.dq.spamhaus.net: no answer: SERVFAIL" in said
    assert "reject_rbl_client zen.dq.spamhaus.net: has no objection" in said
    assert KEY not in said + run(config, *session, "--json")


@pytest.mark.integration("gatekeeper")
def test_check_config_tells_no_key(tmp_path: Path) -> None:
    config = tmp_path / "gatekeeper.toml"
    zones = [
        f"{KEY}.zen.dq.spamhaus.net{mistake}" for mistake in ("=127.0.0.[2..11", "*x", " ", "=10.0.0.1", "..", "!")
    ]
    words = ", ".join(f'"reject_rbl_client {zone} {zone}", "{zone}"' for zone in zones)
    lists = ", ".join(f'"{zone}"' for zone in zones)
    config.write_text(f"[policy]\nrestrictions = [{words}]\n[checks.dnsbl]\nlists = [{lists}]\n")
    said = run(config, "check-config") + run(config, "check-config", "--json")
    assert said.count("zen.dq.spamhaus.net") > 10
    assert KEY not in said
