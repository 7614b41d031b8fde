# SPDX-License-Identifier: GPL-3.0-or-later
"""The public suites once more, through the milter: a real socket, libmilter, and DNS over the wire on loopback."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from gatekeeper.core.message import crlf
from tests.lab.dns import DnsServer
from tests.support.arc_messages import expected, suite
from tests.support.milter_client import MilterClient
from tests.support.milter_service import serving
from tests.support.needs import require_corpus
from tests.support.service import Service, need_milter, until
from tests.support.zones import suite_zone

pytestmark = pytest.mark.integration("gatekeeper")


def test_every_case_of_the_arc_suite_comes_out_as_it_should() -> None:
    cases = list(suite())
    zone = "\n".join(dict.fromkeys("\n".join(zone for _, _, zone in cases).splitlines()))
    wrong = []
    with serving(zone=zone) as socket_path, MilterClient(socket_path) as client:
        client.open()
        for name, case, _ in cases:
            client.envelope()
            [(_, told)] = client.content(crlf(case["message"].encode())).fields
            found = re.search(r"\sarc=([a-z]+)", told)
            if expected(case) != (found[1] if found else "none"):
                wrong.append((name, case["cv"], told))
    assert [] == wrong


SPF_CONFIG = """\
hostname = "mx{number}.ours.example"
mynetworks = []
[dns]
nameservers = ["{dns}"]
timeout = "3s"
[store]
url = "memory:"
[milter]
listen = "unix:{folder}/milter.sock"
workers = 1
mode = "v"
[verify]
methods = ["spf"]
"""


def found_by(client: MilterClient, case: dict[str, Any], receiver: str) -> str:
    """The result that the milter tells of the envelope of one case; empty if it is another generation's."""
    client.open(client=case["host"], helo=case["helo"].encode("utf-8", "surrogateescape"))
    client.envelope(case["mailfrom"].encode("utf-8", "surrogateescape"))
    [(_, told)] = client.content(b"From: a@x.example\r\n\r\nHello\r\n").fields
    match = re.match(rf" {re.escape(receiver)};\s+spf=([a-z]+)", told)
    return match[1] if match else ""


def scenarios() -> Iterator[tuple[int, dict[str, Any]]]:
    corpus = require_corpus("spf-rfc7208.yml")
    yield from enumerate(filter(None, yaml.safe_load_all(corpus.read_text("utf-8"))))


def test_every_case_of_the_spf_suite_comes_out_as_it_should() -> None:
    """Names repeat between scenarios: each has a DNS server of its own, and the milter takes it by a reload, which
    also empties its cache."""
    need_milter()
    wrong, count, service = [], 0, None
    with TemporaryDirectory(prefix="gatekeeper-test-") as made, ThreadPoolExecutor(8) as threads:
        folder = Path(made)
        folder.chmod(0o755)
        config = folder / "gatekeeper.toml"
        for number, scenario in scenarios():
            with DnsServer(suite_zone(scenario["zonedata"])) as dns:
                config.write_text(SPF_CONFIG.format(number=number, dns=dns.address, folder=folder))
                config.chmod(0o644)
                if service is None:
                    service = Service(config, "milter")
                    service.wait_for("^listening milter")
                else:
                    service.process.send_signal(signal.SIGHUP)
                    service.wait_for("reloaded", number)
                cases = scenario["tests"]
                # at once: some wait for a name server that does not answer
                told = threads.map(lambda name: until(lambda: ask(folder, cases[name], number), name), cases)  # noqa: B023 (called before the loop goes on)
                for (case_name, case), found in zip(cases.items(), told, strict=True):
                    allowed = case["result"] if isinstance(case["result"], list) else [case["result"]]
                    count += 1
                    if found not in allowed:
                        wrong.append((case_name, allowed, found))
        assert service is not None
        assert 0 == service.end()
    assert ([], 203) == (wrong, count)


def ask(folder: Path, case: dict[str, Any], number: int) -> str:
    with MilterClient(f"{folder}/milter.sock") as client:
        return found_by(client, case, f"mx{number}.ours.example")
