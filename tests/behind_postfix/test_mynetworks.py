# SPDX-License-Identifier: GPL-3.0-or-later
"""mynetworks of main.cf means here what it means in Postfix: a table of values and clients, asked of a real one."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gatekeeper.app.plan import prepare
from gatekeeper.config import config_file
from gatekeeper.core.request import Client, parse_address
from gatekeeper.replay.smtp import SmtpClient
from tests.lab.guard import Guard
from tests.lab.ports import free_port
from tests.lab.postfix import Postfix
from tests.lab.sasl import SaslServer
from tests.support.lab import need_postfix
from tests.support.postfix_dns import has_ipv6, parameters

pytestmark = pytest.mark.integration("postfix")

FILES = {
    "networks": "# the office\n192.168.7.0/24, 10.1.0.0/16\n \t10.2.0.1\n",
    "excluding": "!192.168.7.9 192.168.7.0/24\n",
    "nested": "10.9.0.0/16\n!{root}/excluding\n{root}/networks\n",
    "comment": "10.1.0.0/16 # the old office 10.2.0.0/16\n",
    "broken": "10.1.0.0/16\n192.168.7.1/24\n10.2.0.0/16\n",
    "networks.cidr": "!192.168.0.0/16 outside\n192.168.7.9 no\n",
    "plain.cidr": "192.168.7.0/24 office\n2001:db8::/32 v6\n",
    "hosts": "192.168.7.9 printer\nhost.example.com a host\nexample.net a domain\n10.1 not a whole address\n",
    "names.pcre": "/^192\\.168\\.7\\./ office\n/\\.example\\.com$/ ours\n",
    "names.regexp": "/^HOST\\.example\\.com$/ ours\n",
}

CLIENTS = [
    ("127.0.0.1", "localhost"),
    ("192.168.7.9", "unknown"),
    ("192.168.7.10", "host.example.com"),
    ("192.168.7.11", "Sub.Host.Example.Com"),
    ("192.168.8.1", "notexample.com"),
    ("10.1.2.3", "example.com"),
    ("10.2.0.1", "office"),
    ("10.9.0.1", "a.example.net"),
    ("203.0.113.5", "localhost"),
    ("203.0.113.6", "unknown"),
    ("::1", "localhost"),
    ("2001:db8::9", "host.example.org"),
    ("2001:db8:1::9", "unknown"),
]

VALUES = [
    "127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128",
    "!192.168.7.9, 192.168.7.0/24",
    "192.168.7.0/24, !192.168.7.9",
    "!192.168.0.0/16, 192.168.7.9, 0.0.0.0/0",
    "!!192.168.7.9",
    "!192.168.7.9",
    "0.0.0.0/0",
    "[::]/0",
    "[::ffff:192.168.7.0]/120",
    "[::ffff:192.168.7.9]",
    "[2001:db8::]/32, ![::1], [::1]/128",
    "![2001:DB8:0:0::9] [2001:db8::]/32",
    "[2001:0db8::0009]",
    "[192.168.7.9]",
    "[192.168.7.0]/24",
    "192.168.7.9/32 192.168.7.10",
    "localhost",
    "127.0.0.0/8 # office 10.1.0.0/16",
    "127.0.0.0/8 #office, 10.1.0.0/16",
    "unknown",
    "!unknown 0.0.0.0/0",
    "example.com",
    "host.example.com",
    ".example.com",
    "!host.example.com, example.com",
    "EXAMPLE.NET, Localhost",
    "{root}/networks",
    "!{root}/networks, 0.0.0.0/0",
    "{root}/excluding, 10.0.0.0/8",
    "!{root}/excluding, 10.0.0.0/8",
    "{root}/nested",
    "{root}/comment",
    "{root}/missing, 127.0.0.0/8",
    "127.0.0.0/8, {root}/missing, 10.0.0.0/8",
    "cidr:{root}/plain.cidr",
    "cidr:{root}/networks.cidr",
    "!cidr:{root}/plain.cidr, 0.0.0.0/0",
    "texthash:{root}/hosts",
    "hash:{root}/hosts",
    "!texthash:{root}/hosts, 192.168.0.0/16",
    "pcre:{root}/names.pcre",
    "regexp:{root}/names.regexp",
    "static:all",
    "!static:all, 0.0.0.0/0",
    "inline:{{ 10.1.2.3=x, example.net=y }}, 127.0.0.0/8",
    "cidr:{{ {{ 10.0.0.0/8 x }} }}, 127.0.0.1",
    "127.0.0.0/8 192.168.7.1/24 10.0.0.0/8",
    "!192.168.7.1/24 192.168.0.0/16",
    "{root}/broken",
    "192.168/16, 127.0.0.1",
    "192.168.7",
    "10.0.0.0/255.0.0.0, 127.0.0.0/8",
    "127.0.0.0/8, 10.0.0.0/33, 192.168.0.0/16",
    "[::1/128] 127.0.0.0/8",
    "[::1 127.0.0.0/8",
    "",
]

WITHOUT_PARENTS = [value for value in VALUES if "example" in value or "hosts" in value or "names" in value]
"""Those that are asked a second time, with parent_domain_matches_subdomains empty."""

NARROWER = {"[::1 127.0.0.0/8", "[::1/128] 127.0.0.0/8"}
"""What Postfix takes for a mistake when a client of that IP version comes; here nobody is trusted by it at all."""


class Networks(Postfix):
    """A Postfix with a service for each of VALUES, which takes mail of mynetworks alone."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, sink=0, hostname="mx.example.org", relay_domains=["example.org"])
        self.services = {(value, True): free_port() for value in VALUES}
        self.services |= {(value, False): free_port() for value in WITHOUT_PARENTS}

    def _write(self) -> None:
        super()._write()
        main = self.config / "main.cf"
        ours = f"""
inet_protocols = all
in_flow_delay = 0
smtpd_milters =
smtpd_authorized_xclient_hosts = static:all
smtpd_client_event_limit_exceptions = static:all
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_relay_restrictions = permit
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000
smtpd_hard_error_limit = 1000
smtpd_junk_command_limit = 1000
smtpd_reject_unlisted_recipient = no
smtpd_reject_unlisted_sender = no
default_process_limit = 5
smtpd_sasl_path = {self.root}/sasl.sock
"""
        values = parameters(main.read_text()) | parameters(ours)
        main.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        with (self.config / "master.cf").open("a") as master:
            for (value, parents), port in self.services.items():
                words = f"-o {{ mynetworks = {value.format(root=self.root)} }}"
                words += f" -o {{ parent_domain_matches_subdomains = {'mynetworks' if parents else ''} }}"
                master.write(f"127.0.0.1:{port} inet n - n - - smtpd {words}\n")


@pytest.fixture(scope="module")
def postfix() -> Iterator[Networks]:
    need_postfix()
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    root = Path(tempfile.mkdtemp(prefix="gatekeeper-networks-"))  # Postfix may not enter pytest's own folders
    root.chmod(0o755)
    with ExitStack() as stack:
        guard = stack.enter_context(Guard(root))
        for name, text in FILES.items():
            (root / name).write_text(text.replace("{root}", str(root)))
        networks = Networks(root)
        stack.callback(SaslServer(root / "sasl.sock").close)
        stack.callback(networks.stop)
        networks.start(guard.began)
        postmap(root / "hosts", networks)
        yield networks


def postmap(table: Path, postfix: Networks) -> None:
    """Make the database of a hash: table."""
    subprocess.run([shutil.which("postmap") or "/usr/sbin/postmap", "-c", postfix.config, f"hash:{table}"], check=True)


def by_postfix(postfix: Networks, value: str, parents: bool) -> list[bool]:
    """Whether each of CLIENTS is in mynetworks."""
    with SmtpClient("127.0.0.1", postfix.services[value, parents]) as smtp:
        return [_is_trusted(smtp, address, name) for address, name in CLIENTS]


def _is_trusted(smtp: SmtpClient, address: str, name: str) -> bool:
    shown = "[UNAVAILABLE]" if name == "unknown" else name
    said = smtp.xclient(
        {"ADDR": f"IPV6:{address}" if ":" in address else address, "NAME": shown, "REVERSE_NAME": shown}
    )
    assert said.startswith("220"), said
    smtp.command("EHLO client.example")
    smtp.command("MAIL FROM:<a@example.com>")
    return smtp.command("RCPT TO:<b@example.org>").startswith("250")


def by_us(root: Path, value: str, parents: bool) -> list[bool]:
    main_cf = {
        "config_directory": str(root),
        "mynetworks": value.format(root=root),
        "parent_domain_matches_subdomains": "mynetworks" if parents else "",
    }
    site = prepare(config_file.defaults(lambda _: main_cf)).site
    return [site.is_internal(Client(address=parse_address(a), name=n)) for a, n in CLIENTS]


@pytest.mark.parametrize("parents", [True, False])
def test_a_client_is_internal_if_it_is_in_mynetworks_of_postfix(postfix: Networks, parents: bool) -> None:
    for value in VALUES if parents else WITHOUT_PARENTS:
        theirs, ours = by_postfix(postfix, value, parents), by_us(postfix.root, value, parents)
        if value in NARROWER:
            assert not any(ours), value
        else:
            assert (value, theirs) == (value, ours)
