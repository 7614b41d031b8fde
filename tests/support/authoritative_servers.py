# SPDX-License-Identifier: GPL-3.0-or-later
"""Real authoritative name servers: nsd on loopback, one process an address, all at one port that is not 53."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from tests.lab.ports import free_port
from tests.support.needs import require_program
from tests.support.service import until

SOA = "@ 60 SOA ns1.example.com. postmaster.example.com. {serial} 3600 600 86400 60\n"


class Nsd:
    """One server, from when it is made until `close`. `serve` changes what is in a zone."""

    def __init__(self, folder: Path, address: str, port: int, zones: Mapping[str, str]) -> None:
        folder.mkdir()
        self.address, self.port = address, port
        self._folder = folder
        self._serials: dict[str, int] = {}
        for zone, text in zones.items():
            self._write(zone, text)
        served = "".join(f"zone:\n  name: {zone}\n  zonefile: {folder}/{zone}.zone\n" for zone in zones)
        (folder / "nsd.conf").write_text(
            f'server:\n  ip-address: {address}@{port}\n  username: ""\n  chroot: ""\n  zonesdir: {folder}\n'
            f"  pidfile: {folder}/pid\n  zonelistfile: {folder}/list\n  xfrdfile: {folder}/xfrd\n  xfrdir: {folder}\n"
            f'  database: ""\n  server-count: 1\n  logfile: {folder}/log\n  reuseport: no\n'
            f"remote-control:\n  control-enable: no\n{served}"
        )
        self._start(next(iter(zones)))

    def serve(self, zone: str, text: str) -> None:
        """Another content for a zone that is served. By a new process: when nsd reloads, the old one still answers a
        question or two after the new one has begun to."""
        self.close()
        self._write(zone, text)
        self._start(zone)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _write(self, zone: str, text: str) -> None:
        self._serials[zone] = self._serials.get(zone, 0) + 1
        (self._folder / f"{zone}.zone").write_text(f"$ORIGIN {zone}.\n{SOA.format(serial=self._serials[zone])}{text}\n")

    def _start(self, zone: str) -> None:
        self._process = subprocess.Popen(
            [require_program("nsd", "nsd"), "-d", "-c", str(self._folder / "nsd.conf")], stderr=subprocess.DEVNULL
        )

        def served() -> bool:
            try:
                asked = dns.message.make_query(zone, "SOA")
                answer = dns.query.udp(asked, self.address, timeout=0.2, port=self.port).answer
            except (OSError, dns.exception.DNSException):
                time.sleep(0.02)
                return False
            return bool(answer) and answer[0][0].serial == self._serials[zone]

        try:
            until(served, f"{self.address} serves {zone}")
        except BaseException:
            self.close()
            raise


@contextmanager
def servers(folder: Path, zones: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Nsd]]:
    """A server for each address in `zones`, with its zones."""
    port = free_port(next(iter(zones)))
    with ExitStack() as stack:
        started = {}
        for address, served in zones.items():
            started[address] = Nsd(folder / address, address, port, served)
            stack.callback(started[address].close)
        yield started
