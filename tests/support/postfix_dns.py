# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Postfix that judges by restriction lists of its own and looks names up in a Zone.

How it comes to ask our name server: its smtpd is chrooted, as Debian ships it, and in the chroot lies a resolv.conf
with a loopback address that nobody else uses; glibc knows no port but 53 there. No namespace is needed.

How it judges each session by other lists without being restarted: every list asks a policy service, the Chooser, which
answers with the name of a restriction class; Postfix then goes on with that class as if it stood there. What Postfix
tells the Chooser is what it would tell gatekeeper, and is kept.
"""

import random
import re
import socket
import socketserver
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

from gatekeeper.policy.protocol import RequestParser
from tests.lab.ports import free_port
from tests.lab.postfix import Postfix

LIST_NAMES = ("client", "helo", "sender", "recipient", "etrn", "data")

_MAIN = """
mydestination = local.example
mynetworks = 10.0.0.0/8
fast_flush_domains = good.example, example.org, sub.example.org
inet_protocols = all
recipient_delimiter = +
smtpd_peername_lookup = yes
smtpd_helo_required = no
disable_vrfy_command = no
strict_rfc821_envelopes = no
in_flow_delay = 0
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 10000
smtpd_hard_error_limit = 10000
smtpd_junk_command_limit = 10000
smtpd_client_event_limit_exceptions = static:all
smtpd_reject_unlisted_recipient = no
smtpd_reject_unlisted_sender = no
smtpd_relay_restrictions = check_client_access static:OK, reject
smtpd_milters =
non_smtpd_milters =
smtpd_authorized_xclient_hosts = static:all
smtpd_sasl_path = gatekeeper/sasl.sock
local_transport = discard:
relay_transport = discard:
default_transport = discard:
smtpd_tls_security_level = may
smtpd_tls_chain_files = {certificate}
smtpd_tls_CAfile = {certificate}
smtpd_tls_ask_ccert = yes
smtpd_tls_fingerprint_digest = sha256
relay_clientcerts = {relay_clientcerts}
smtpd_sender_login_maps = {logins}
smtpd_restriction_classes = {names}
{classes}
{lists}
"""


def free_loopback() -> str:
    """A loopback address where port 53 is free. Raises OSError if there is none for us."""
    for attempt in range(20):
        host = f"127.{random.randint(2, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((host, 53))
                return host
        except OSError:
            if attempt == 19:
                raise
    raise AssertionError


def has_ipv6() -> bool:
    """Whether Postfix could use IPv6 here; without, it does not look for AAAA."""
    return Path("/proc/net/if_inet6").exists()


class Judge(Postfix):
    """A Postfix with `classes` (name -> restrictions); the only client certificate that it trusts is its own.

    The service at `ports.smtp` asks the Chooser, the one at `policy_port` gatekeeper alone.
    """

    def __init__(
        self,
        root: Path,
        dns: str,
        classes: Mapping[str, str],
        *,
        logins: str,
        certificate: Path,
        relay_clientcerts: str,
    ) -> None:
        super().__init__(root, sink=0, hostname="mx.example.org", relay_domains=["example.org"])
        self._dns = dns
        self._classes = classes
        self._maps = {"logins": logins, "certificate": certificate, "relay_clientcerts": relay_clientcerts}
        self.policy_port = free_port()
        self.chooser = self.sockets / "chooser.sock"
        self.gatekeeper = self.sockets / "policy.sock"
        self.sasl = self.sockets / "sasl.sock"

    def _write(self) -> None:
        """Done by prepare()."""

    def prepare(self) -> None:
        """Write the configuration and make all folders: what listens there has to be up before Postfix starts."""
        super()._write()
        ask = "check_policy_service {{ unix:gatekeeper/chooser.sock, policy_context={} }}"
        text = _MAIN.format(
            **self._maps,
            names=" ".join(self._classes),
            classes="\n".join(f"{name} = {text}" for name, text in self._classes.items()),
            lists="\n".join(f"smtpd_{name}_restrictions = {ask.format(name)}" for name in LIST_NAMES),
        )
        main = self.config / "main.cf"
        # Each once: Postfix warns of a second one in all its processes, more than postlogd's socket holds at the start.
        values = parameters(main.read_text()) | parameters(text)
        main.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        asks = "check_policy_service,unix:gatekeeper/policy.sock"
        only = [f"-o smtpd_{name}_restrictions=" for name in LIST_NAMES]
        only += [f"-o smtpd_{name}_restrictions={asks}" for name in ("recipient", "etrn", "data")]
        services = (self.config / "master.cf").read_text().splitlines()
        with (self.config / "master.cf").open("w") as master:
            master.writelines(f"{line}\n" for line in services if re.match(r"\w+ +unix", line))
            master.write("tlsmgr unix - - n 1000? 1 tlsmgr\n")
            master.write("flush unix n - n 1000? 0 flush\n")
            master.write(f"127.0.0.1:{self.ports.smtp} inet n - y - - smtpd\n")
            master.write(f"127.0.0.1:{self.policy_port} inet n - y - - smtpd {' '.join(only)}\n")
        etc = self.queue / "etc"
        etc.mkdir()
        (etc / "resolv.conf").write_text(f"nameserver {self._dns}\noptions timeout:1 attempts:1\nsearch .\n")
        (etc / "nsswitch.conf").write_text("hosts: dns\n")


def parameters(text: str) -> dict[str, str]:
    """The parameters of a main.cf."""
    lines = re.sub(r"(?m)^#.*\n", "", text)
    lines = re.sub(r"\n[ \t]+", " ", lines)
    return {
        name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines.split("\n") if line)
    }


class _Chooser(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    classes: dict[tuple[str, str], str]
    asked: dict[tuple[str, str], dict[str, str]]


class _Questions(socketserver.StreamRequestHandler):
    server: _Chooser

    def handle(self) -> None:
        parser = RequestParser()
        while data := self.connection.recv(65536):
            parser.feed(data)
            while attributes := parser.next():
                port = attributes["client_port"]
                self.server.asked[port, attributes["protocol_state"]] = attributes
                chosen = self.server.classes.get((port, attributes["policy_context"]), "DUNNO")
                self.connection.sendall(f"action={chosen}\n\n".encode())


class Chooser:
    """Answers Postfix with the class that is to judge the client at a port, and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        self._server = _Chooser(str(path), _Questions)
        self._server.classes, self._server.asked = {}, {}
        path.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def choose(self, port: int, classes: Mapping[str, str]) -> None:
        """From now on the client at `port` is judged by `classes`, list name -> class."""
        self._server.classes |= {(str(port), name): chosen for name, chosen in classes.items()}

    def asked(self, port: int, state: str) -> dict[str, str]:
        """What was last asked about the client at `port` in this `protocol_state`; empty if nothing."""
        return self._server.asked.get((str(port), state), {})

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
