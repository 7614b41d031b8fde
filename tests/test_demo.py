# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo`: the first thing that somebody new runs."""

import subprocess
import sys

import pytest

from tests.lab.demo import SESSIONS
from tests.support.lab import need_postfix
from tests.support.needs import ROOT

pytestmark = pytest.mark.integration("postfix")


def test_the_demo_plays_every_session_and_leaves_nothing() -> None:
    need_postfix()
    command = [sys.executable, "-m", "tests.lab.demo"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    titles = [name.replace("-", " ") for name in SESSIONS]
    assert [] == [title for title in titles if f"\n{title} " not in done.stdout]
    assert done.stdout.endswith("Postfix, DNS and gatekeeper are stopped, their files removed.\n")
