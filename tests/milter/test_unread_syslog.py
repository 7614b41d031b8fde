# SPDX-License-Identifier: GPL-3.0-or-later
"""A syslog that nobody reads holds up no message, and none of libmilter's threads."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.daemon.test_stalled_log import Syslog, counted, prelude_of
from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.milter_service import INBOUND, serving
from tests.support.needs import ROOT
from tests.support.service import need_milter, until

pytestmark = pytest.mark.integration("gatekeeper")

MESSAGES = 800
SILENCE = "from gatekeeper.milter import server; server._silence_libmilter()"


def test_messages_are_answered_while_nobody_reads_syslog() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        syslog = Syslog(Path(folder, "log"))
        with (
            serving(signing='\n[log]\nsyslog = "mail"\n', prelude=prelude_of(Path(folder, "log"))) as address,
            MilterClient(address) as client,
        ):
            client.open()
            for _ in range(MESSAGES):
                client.envelope()
                assert CONTINUE == client.content(INBOUND).answer
            assert len(syslog.read()) < MESSAGES
            until(lambda: counted(syslog.read()), "how many were dropped is told")
        syslog.close()


def test_libmilter_writes_nothing_to_syslog_by_itself() -> None:
    """A peer with an old protocol is enough to make it, and syslog(3) would wait."""
    need_milter()
    code = f"import syslog; {SILENCE}; print(syslog.setlogmask(0))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1\n" == done.stdout  # only LOG_EMERG, which it has no use for
