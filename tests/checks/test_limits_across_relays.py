# SPDX-License-Identifier: GPL-3.0-or-later
"""One limit for all relays that share a store, exact under concurrency: real processes, real requests, a real Redis."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from gatekeeper.app.plan import prepare
from gatekeeper.config import config_file
from tests.support.needs import ROOT
from tests.support.postconf import no_postfix
from tests.support.redis_server import RedisServer, redis_server
from tests.support.service import Service

pytestmark = pytest.mark.integration("gatekeeper", "redis-server")

ANSWERED_AT = ("RCPT", "DATA", "END-OF-MESSAGE")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@contextmanager
def relay(folder: Path, store: str, limits: str, lists: str = "") -> Iterator[Service]:
    """A policy daemon with two workers."""
    config = folder / f"gatekeeper{len(list(folder.iterdir()))}.toml"
    config.write_text(
        f'hostname = "mx.example.org"\n[store]\nurl = "{store}"\ntimeout = "30s"\n[policy]\nworkers = 2\n'
        f'listen = "inet:127.0.0.1:0"\nrestrictions = "ratelimit"\n{lists}\n[checks.ratelimit]\n{limits}\n',
        "utf-8",
    )
    service = Service(config, "policy")
    service.wait_for("^listening policy")
    yield service
    service.end()
    assert [] == [line for line in service.lines if "Traceback" in line or "is gone" in line]


def ask(service: Service, instance: str, states: tuple[str, ...] = ("RCPT",), **attributes: str) -> list[str]:
    """The answers to one message, on a connection of its own."""
    with service.policy() as sock:
        return [answer(sock.makefile("rwb"), instance, state, **attributes) for state in states]


def answer(stream: Any, instance: str, state: str, **attributes: str) -> str:
    said = {
        "request": "smtpd_access_policy",
        "protocol_state": state,
        "client_address": "192.0.2.1",
        "client_name": "client.example",
        "sender": "a@client.example",
        "recipient": "b@example.org",
        "instance": instance,
        **attributes,
    }
    stream.write("".join(f"{name}={value}\n" for name, value in said.items()).encode() + b"\n")
    stream.flush()
    line: str = stream.readline().decode().strip()
    assert b"\n" == stream.readline()
    return line


@pytest.fixture(params=["redis", "sqlite"])
def shared(request: pytest.FixtureRequest, redis: RedisServer) -> Iterator[tuple[Path, str]]:
    """A folder for configurations, and the url of an empty store."""
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        (folder / "state").chmod(0o777)  # for workers that are nobody
        redis.admin.flushall()
        yield folder, redis.tcp_url if request.param == "redis" else f"sqlite:{folder}/state/s.db"


def test_relays_that_share_a_store_accept_exactly_the_limit(shared: tuple[Path, str]) -> None:
    limits = 'client_messages = ["50/1h", "70/1d"]\nclient_recipients = ["60/1h"]'
    with ExitStack() as stack:
        relays = [stack.enter_context(relay(*shared, limits)) for _ in range(2)]
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda number: ask(relays[number % 2], f"i{number}")[0], range(160)))
    assert 50 == answers.count("action=DUNNO")
    assert 110 == sum(answer.startswith("action=450 4.7.1 Error: too much mail from 192.0.2.1") for answer in answers)


def test_a_message_counts_once_whichever_processes_are_asked_at_whichever_state(shared: tuple[Path, str]) -> None:
    lists = 'data_restrictions = "ratelimit"\nend_of_data_restrictions = "ratelimit"'
    limits = 'client_messages = ["20/1h"]\nuser_messages = []'
    with ExitStack() as stack:
        relays = [stack.enter_context(relay(*shared, limits, lists)) for _ in range(2)]

        def message(number: int) -> list[str]:
            return [
                ask(relays[(number + turn) % 2], f"i{number}", (state,))[0] for turn, state in enumerate(ANSWERED_AT)
            ]

        with ThreadPoolExecutor(8) as pool:
            messages = list(pool.map(message, range(20)))
        assert [["action=DUNNO"] * 3] * 20 == messages
        assert "450" in ask(relays[0], "one more")[0]


def test_the_store_may_go_and_limits_go_on() -> None:
    with redis_server() as own, TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        config = folder / "gatekeeper.toml"
        config.write_text(
            f'hostname = "mx.example.org"\n[store]\nurl = "{own.tcp_url}"\n[policy]\nworkers = 1\n'
            'listen = "inet:127.0.0.1:0"\nrestrictions = "ratelimit"\n[checks.ratelimit]\nclient_messages = "2/1h"\n',
            "utf-8",
        )
        service = Service(config, "policy")
        service.wait_for("^listening policy")
        assert "DUNNO" in ask(service, "i1")[0]
        own.stop()
        answers = [ask(service, f"j{number}")[0] for number in range(4)]
        assert ["DUNNO", "DUNNO", "450", "450"] == [line.removeprefix("action=").split()[0] for line in answers]
        service.end()
    told = [line for line in service.lines if "is gone" in line]
    assert 1 == len(told)
    assert "limits by what each process counts" in told[0]


def test_the_example_in_the_documents_works(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "limits.md").read_text("utf-8"), re.DOTALL)
    path = tmp_path / "gatekeeper.toml"
    path.write_text(example.replace("/etc/gatekeeper/newsletters", "./newsletters"), "utf-8")
    (tmp_path / "newsletters").write_text("news@example.org\n", "utf-8")
    assert () == prepare(config_file.load(path, no_postfix)).warnings
