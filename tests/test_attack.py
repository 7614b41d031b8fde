# SPDX-License-Identifier: GPL-3.0-or-later
"""`make attack` works: a short one, whose figures are of no interest, finds nothing."""

import subprocess
import sys

import pytest

from tests.support.needs import ROOT, needs
from tests.support.service import need_milter


@pytest.mark.integration("gatekeeper")
def test_a_short_attack_holds() -> None:
    need_milter()
    needs("gatekeeper")
    command = [
        sys.executable,
        "-m",
        "tests.attack",
        "--kills",
        "3",
        "--minutes",
        "0.05",
        "--seed",
        "1",
        "kills",
        "fuzz",
    ]
    attack = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert 0 == attack.returncode, attack.stdout + attack.stderr
    assert "requests and messages of honest clients, 0 wrong answers; seed 1" in attack.stdout


def test_an_attack_that_there_is_not_is_named() -> None:
    command = [sys.executable, "-m", "tests.attack", "nonsense"]
    attack = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert 2 == attack.returncode
    assert "there is no attack nonsense; there are kills, parent, reloads, stores, dns, logs, fuzz" in attack.stderr
