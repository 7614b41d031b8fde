# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole mail world for tests and `make demo`: a private Postfix, its DNS, a sink for what it delivers, gatekeeper.

    with Lab(zone=Zone.parse(...)) as lab:
        lab.run(Path("gatekeeper.toml"))
        ... SMTP to lab.postfix.ports.smtp ...
        lab.delivered(queue_id)

Everything lies in one new folder, listens on loopback at ports that were free, and is gone afterwards, even if this
process is killed (guard.py). Several labs can stand side by side. Needs root: `why_not()` says so.
"""

import os
import pwd
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from gatekeeper.dnsclient.zone import Zone
from tests.lab.dns import DnsServer
from tests.lab.guard import Guard
from tests.lab.postfix import LabError, Postfix, find, why_not
from tests.lab.sasl import SaslServer
from tests.lab.service import Service, write_config
from tests.lab.sink import Sink

__all__ = ["Lab", "LabError", "why_not"]

USER = "nobody"
"""Whom gatekeeper works as: one who may read only what all may read."""


class Lab:
    """The world around gatekeeper, and gatekeeper in it. To be used with `with`; raises LabError if it cannot start."""

    def __init__(self, *, zone: Zone, hostname: str, relay_domains: Sequence[str]) -> None:
        self._zone = zone
        self._hostname = hostname
        self._relay_domains = relay_domains
        self._runs = 0
        self._stack = ExitStack()
        self._service: Service | None = None
        self.config: Path | None = None
        """The configuration of the gatekeeper that runs; None while none does."""

    root: Path
    dns: DnsServer
    sink: Sink
    postfix: Postfix

    @property
    def service(self) -> Service:
        """The gatekeeper that runs."""
        assert self._service is not None
        return self._service

    def run(self, config: Path, changes: Mapping[str, object] | None = None, *, store: str = "") -> Service:
        """Start gatekeeper with the configuration at `config`, in place of the one that ran before.

        Its state is new: `store` is the URL of a store, else SQLite. `changes` are laid over the configuration.
        """
        self.stop()
        self._runs += 1
        state = self.root / f"state{self._runs}"
        state.mkdir()
        nobody = pwd.getpwnam(USER)
        os.chown(state, nobody.pw_uid, nobody.pw_gid)
        here = {
            "user": USER,
            "dns": {"nameservers": [self.dns.address]},
            "store": {"url": store or f"sqlite:{state}/state.db"},
            "policy": self._listen("policy"),
            "milter": self._listen("milter"),
        }
        folder = self.root / f"gatekeeper{self._runs}"
        merged = write_config(folder, config, here, changes or {})
        self._service = Service(merged, folder / "log")
        try:
            self._service.start(self._guard.began)
        except LabError:
            self.stop()
            raise
        self.config = config
        return self._service

    def delivered(self, queue_id: str) -> bytes | None:
        """The message that Postfix has delivered under this queue id; None if none comes within ten seconds."""
        delivery = self.sink.find(b"id " + queue_id.encode())
        return None if delivery is None else delivery.content

    def stop(self) -> None:
        """Stop the gatekeeper that runs, if one does. Raises LabError if it does not end when asked."""
        service, self._service, self.config = self._service, None, None
        if service is not None:
            service.stop()
            self._guard.ended(service.pid)

    def redis(self) -> str:
        """Start a redis-server of the lab's own, on a unix socket; its URL. Raises LabError."""
        program = find("redis-server")
        if program is None:
            raise LabError("redis-server is not installed: apt-get install redis-server")
        path = self.root / "redis.sock"
        options = f"--port 0 --unixsocket {path} --unixsocketperm 777 --save --appendonly no --dir {self.root}"
        process = subprocess.Popen(
            [program, *options.split()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._guard.began(process.pid)
        self._stack.callback(self._end, process)
        deadline = time.monotonic() + 10.0
        while not _accepts(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError("redis-server did not start")
            time.sleep(0.02)
        return f"unix://{path}"

    def _listen(self, side: str) -> dict[str, object]:
        """Where the shipped fragments expect policy daemon and milter."""
        return {
            "listen": f"unix:{self.postfix.sockets}/{side}.sock",
            "socket_mode": "0660",
            "socket_group": self.postfix.group,
        }

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait(10.0)
        self._guard.ended(process.pid)

    def _start(self, stack: ExitStack) -> None:
        if reason := why_not():
            raise LabError(reason)
        self.root = Path(tempfile.mkdtemp(prefix="gatekeeper-lab-"))
        self.root.chmod(0o755)
        self._guard = stack.enter_context(Guard(self.root))
        self.dns = stack.enter_context(DnsServer(self._zone))
        self.sink = Sink()
        stack.callback(self.sink.close)
        self.postfix = Postfix(
            self.root, sink=self.sink.port, hostname=self._hostname, relay_domains=self._relay_domains
        )
        sasl = SaslServer(self.root / "sasl.sock")
        stack.callback(sasl.close)
        stack.callback(self.postfix.stop)
        self.postfix.start(self._guard.began)
        stack.callback(self.stop)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


def _accepts(path: Path) -> bool:
    """True if somebody listens on this unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
