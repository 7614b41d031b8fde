# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker that dies is started again by its own record, and soon while nobody else does its work."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.daemon.restarts import Restarts
from tests.support.service import Service


def pauses(deaths: int, *, alone: bool) -> list[float]:
    """Seconds until the restart after each of so many quick deaths of one worker."""
    restarts: Restarts[str] = Restarts()
    found = []
    for _ in range(deaths):
        restarts.add("a", 100.0, quick=True)
        due = restarts.soonest(lambda _: alone)
        assert due is not None
        assert ["a"] == restarts.take_due(due, lambda _: alone)
        found.append(due - 100)
    return found


def test_the_pause_of_a_worker_that_keeps_dying_doubles_while_another_does_its_work() -> None:
    assert [2, 4, 8, 16, 30, 30] == pauses(6, alone=False)


def test_while_no_other_does_its_work_the_pause_is_a_second_at_most() -> None:
    assert [0, 0.25, 0.75, 1, 1, 1] == pauses(6, alone=True)
    assert 1 == max(pauses(2000, alone=True))


def test_the_deaths_of_one_worker_do_not_count_for_another() -> None:
    restarts: Restarts[str] = Restarts()
    for _ in range(5):
        restarts.add("a", 0.0, quick=True)
        restarts.take_due(1000.0, lambda _: False)
    restarts.add("b", 0.0, quick=True)
    assert 2 == restarts.soonest(lambda _: False)


def test_a_pause_is_cut_short_when_the_other_dies_too() -> None:
    restarts: Restarts[str] = Restarts()
    for _ in range(5):
        restarts.add("a", 0.0, quick=True)
        restarts.take_due(1000.0, lambda _: False)
    restarts.add("a", 0.0, quick=True)
    assert [] == restarts.take_due(2.0, lambda _: False)
    assert ["a"] == restarts.take_due(2.0, lambda _: True)


def test_who_lived_for_long_is_replaced_at_once() -> None:
    restarts: Restarts[str] = Restarts()
    restarts.add("a", 0.0, quick=True)
    restarts.take_due(1000.0, lambda _: False)
    restarts.add("a", 0.0, quick=False)
    assert 0 == restarts.soonest(lambda _: False)


CONFIG = """\
hostname = "mx.example"
mynetworks = []
[store]
url = "memory:"
[policy]
listen = "unix:{folder}/policy.sock"
workers = 2
restrictions = ["permit"]
"""


@pytest.fixture
def service() -> Iterator[Service]:
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder))
        running = Service(folder / "gatekeeper.toml", "policy")
        running.wait_for("explain")
        yield running
        assert 0 == running.end()


@pytest.mark.integration("gatekeeper")
def test_forty_kills_at_half_a_second_never_leave_nobody_for_long(service: Service) -> None:
    longest, since = 0.0, None
    for _ in range(40):
        if victims := service.children():
            os.kill(min(victims), signal.SIGKILL)
        until = time.monotonic() + 0.5
        while (now := time.monotonic()) < until:
            if service.children():
                since = None
            elif since is None:
                since = now
            else:
                longest = max(longest, now - since)
            time.sleep(0.01)
    # a second of pause, and what a busy machine takes to bury one and fork another; it was up to 12.7 s
    assert longest < 3
