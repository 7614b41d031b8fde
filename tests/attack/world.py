# SPDX-License-Identifier: GPL-3.0-or-later
"""The service that is attacked, with its DNS, keys and tables in a folder of its own, and what its log must not say."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives import serialization

from gatekeeper.dnsclient.zone import Zone
from tests.lab.dns import DnsServer
from tests.lab.ports import free_port
from tests.support.milter_service import KEY, PUBLIC
from tests.support.service import Service, until

ZONE = f"""\
sel._domainkey.ours.example. TXT "v=DKIM1; p={PUBLIC}"
client.example. MX 10 mail.client.example.
client.example. TXT "v=spf1 ip4:192.0.2.1 -all"
mail.client.example. A 192.0.2.1
_dmarc.client.example. TXT "v=DMARC1; p=reject"
1.2.0.192.in-addr.arpa. PTR mail.client.example.
2.0.0.127.list.example. A 127.0.0.2
66.2.0.192.list.example. A 127.0.0.2
66.2.0.192.list.example. TXT "listed"
silent.example. ANY !TIMEOUT
"""
CONFIG = """\
hostname = "mx.ours.example"
user = "nobody"
mynetworks = ["198.51.100.0/24"]
local_domains = ["ours.example"]
[log]
level = "{level}"
[dns]
nameservers = ["{dns}"]
timeout = "1s"
[store]
url = "{store}"
[policy]
listen = "inet:127.0.0.1:{port}"
workers = 2
restrictions = ["permit_mynetworks", "reject_invalid_helo_hostname", "reject_non_fqdn_helo_hostname", \
"check_sender_access hash:{folder}/senders", "reject_unknown_sender_domain", "reject_rbl_client list.example", \
"spf", "ratelimit", "greylist"]
[milter]
listen = "{milter}"
workers = 2
[signing]
key_table = "{folder}/KeyTable"
signing_table = "refile:{folder}/SigningTable"
[checks.ratelimit]
client_messages = "1000000/1m"
client_recipients = "1000000/1m"
[checks.greylist]
clients = "all"
learning = "0s"
"""


class World:
    """One service with what it lives on. `store` is the url of its store; `{folder}` in it is the world's folder."""

    def __init__(self, folder: Path, dns: DnsServer, store: str, level: str, *, milter_on_tcp: bool) -> None:
        self.folder = folder
        self.dns = dns
        self.config = folder / "gatekeeper.toml"
        self._store, self._level = store, level
        self.policy_address = ("127.0.0.1", free_port())
        """Where the policy daemon listens."""
        self.milter_address: str | tuple[str, int] = f"{folder}/milter.sock"
        self._milter = f"unix:{self.milter_address}"
        if milter_on_tcp:
            self.milter_address = ("127.0.0.1", free_port())
            self._milter = f"inet:127.0.0.1:{self.milter_address[1]}"
        """Where the milter listens."""
        pem = KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._write("sel.private", pem, 0o600)
        self._write("KeyTable", f"ours ours.example:sel:{folder}/sel.private\n".encode())
        self._write("SigningTable", b"*@ours.example ours\n")
        self._write("senders", b"banned@client.example REJECT we know you\n")
        self.write_config()
        self.service = self._start()

    def _write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(mode)

    def write_config(self, more: str = "") -> None:
        """Write gatekeeper.toml, with `more` above it."""
        store = self._store.format(folder=self.folder)
        text = CONFIG.format(
            dns=self.dns.address,
            folder=self.folder,
            store=store,
            port=self.policy_address[1],
            level=self._level,
            milter=self._milter,
        )
        self._write("gatekeeper.toml", (more + text).encode())

    def touch_table(self, number: int) -> None:
        """Change a table, which changes no answer to an honest client."""
        self._write("senders", f"banned@client.example REJECT we know you\nx{number}@client.example OK\n".encode())

    def _start(self) -> Service:
        service = Service(self.config, "run")
        service.wait_for("^listening policy")
        service.wait_for("^listening milter")
        return service

    def start_again(self) -> None:
        """Start the service that has been killed, on the same milter socket."""
        self.service = self._start()

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return self.service.children()

    def memory(self) -> int:
        """Bytes that the workers and their parent hold for themselves alone, and their share of the rest (PSS)."""
        total = 0
        for pid in (self.service.process.pid, *self.workers):
            with contextlib.suppress(OSError):  # a process that has just gone
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += sum(int(kilobytes) * 1024 for kilobytes in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.M))
        return total

    def answers(self) -> None:
        """Wait until both doors are open: a fresh connection to each is accepted."""
        until(lambda: _connects(self.policy_address), "the policy daemon takes connections", 30)
        until(lambda: _connects(self.milter_address), "the milter takes connections", 30)

    def accidents(self) -> list[str]:
        """What the log says that it must never say: tracebacks, and whatever begins with them."""
        return [line for line in self.service.lines if "Traceback" in line or line.startswith(("Fatal", "Exception"))]

    def end(self) -> list[str]:
        """End the service as systemd does; what was wrong with that."""
        begun = time.monotonic()
        status = self.service.end()
        took = time.monotonic() - begun
        found = [] if status == 0 else [f"ended with status {status}"]
        return found if took < 15 else [*found, f"took {took:.0f} s to end"]


def _connects(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(address)
        except OSError:
            return False
    return True


@contextmanager
def world(
    store: str = "sqlite:{folder}/state/state.db", *, level: str = "warning", milter_on_tcp: bool = False
) -> Iterator[World]:
    """A world that is gone in the end, whatever happened in it. A million lines of `info` would only be kept here."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="gatekeeper-attack-")))
        folder.chmod(0o755)
        dns = stack.enter_context(DnsServer(Zone.parse(ZONE)))
        made = World(folder, dns, store, level, milter_on_tcp=milter_on_tcp)
        try:
            yield made
        finally:
            if made.service.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(made.service.process.pid, signal.SIGKILL)


def every(seconds: float, times: int, act: Callable[[int], None]) -> None:
    """Call `act` with 0, 1, 2 … `times` times, `seconds` apart."""
    due = time.monotonic()
    for number in range(times):
        due += seconds
        act(number)
        time.sleep(max(0.0, due - time.monotonic()))
