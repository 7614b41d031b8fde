# SPDX-License-Identifier: GPL-3.0-or-later
"""Does DNSSEC vouch for an answer? A signed zone on nsd, validated by unbound, asked as the service asks."""

import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dns.dnssec
import dns.dnssectypes
import dns.zone
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gatekeeper.dnsclient.live import LiveResolver
from gatekeeper.records.dkim import examine
from gatekeeper.records.key_record import KeyRecord
from tests.lab.ports import free_port
from tests.support.authoritative_servers import servers
from tests.support.needs import require_program
from tests.support.service import until
from tests.support.signing_world import rsa

pytestmark = pytest.mark.integration("nsd", "unbound")

RECORD = KeyRecord.of("s", "example.com", rsa()).zone()
HELD = "@ NS ns1\nns1 A 127.0.0.2\n" + RECORD


def signed(text: str) -> tuple[str, str]:
    """The zone example.com with its signatures, and its DNSKEY as a trust anchor."""
    zone = dns.zone.from_text(f"$ORIGIN example.com.\n@ 60 SOA ns1 x 1 3600 600 86400 60\n{text}", relativize=False)
    private = Ed25519PrivateKey.generate()
    key = dns.dnssec.make_dnskey(private.public_key(), dns.dnssectypes.Algorithm.ED25519, flags=257)
    now = datetime.now(UTC)
    with zone.writer() as writer:
        dns.dnssec.sign_zone(
            zone, writer, keys=[(private, key)], inception=now - timedelta(hours=1), expiration=now + timedelta(days=1)
        )
    lines = [line for line in zone.to_text(relativize=False).splitlines() if " SOA " not in line]
    return "\n".join(lines), f"example.com. DNSKEY {key.to_text()}\n"


@pytest.fixture(scope="module")
def validating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """unbound, with the zone's key as its only trust anchor."""
    folder = tmp_path_factory.mktemp("dnssec")
    text, anchor = signed(HELD)
    with servers(
        folder, {"127.0.0.2": {"example.com": text, "example.org": HELD.replace("example.com", "example.org")}}
    ) as started:
        (folder / "anchor").write_text(anchor)
        port = free_port("127.0.0.1")
        (folder / "unbound.conf").write_text(
            f"server:\n  interface: 127.0.0.1@{port}\n  username: ''\n  chroot: ''\n  directory: {folder}\n"
            f"  pidfile: {folder}/unbound.pid\n  do-daemonize: no\n  use-syslog: no\n  do-not-query-localhost: no\n"
            f"  trust-anchor-file: {folder}/anchor\n  module-config: 'validator iterator'\n"
            "remote-control:\n  control-enable: no\n"
            + "".join(
                f"stub-zone:\n  name: {name}\n  stub-addr: 127.0.0.2@{started['127.0.0.2'].port}\n"
                for name in ("example.com", "example.org")
            )
        )
        process = subprocess.Popen([require_program("unbound", "unbound"), "-c", str(folder / "unbound.conf")])
        try:
            until(lambda: _listens(port), "unbound listens")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(("domain", "secure"), [("example.com", True), ("example.org", False)])
async def test_a_key_is_secure_where_its_zone_is_signed(domain: str, secure: bool, validating: str) -> None:
    resolver = LiveResolver([validating], 5.0)
    found = await examine(resolver, domain, "s", rsa())
    assert (True, secure) == (found.good, found.secure), found
