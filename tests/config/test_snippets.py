# SPDX-License-Identifier: GPL-3.0-or-later
"""What config/ has for programs around us: fail2ban, rsyslog and logrotate take it, and it does what it says."""

import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from gatekeeper.core.log import escape
from tests.support.needs import ROOT, require_program

SNIPPETS = ROOT / "config"
HEADS = (
    "Mar  1 03:04:05 mx gatekeeper[7]: ",
    "2026-03-01T03:04:05.123456+00:00 mx gatekeeper[7]: ",
    "2026-03-01 03:04:05.123 gatekeeper[7]: INFO ",
)
CLIENT = "client=192.0.2.1 name=h.example helo=h.example from=<a@x.example> to=<b@y.example>"
BANNED = (
    f'side=policy trace=AB stage=RCPT action="550 5.7.1 no" reasons=dnsbl.listed {CLIENT}',
    f'side=milter trace=AB queue_id=4B1F2A0 stage=END-OF-MESSAGE action="550 5.7.1 no" reasons=dmarc.reject {CLIENT}',
    f'side=policy stage=RCPT action="554 5.7.1 no" judged="550 5.7.1 no" reasons=a,b {CLIENT}',
    'side=policy stage=RCPT action="550 5.7.1 no" reasons=a client=2001:db8::1 helo=h',
)
SPARED = (
    f"side=policy stage=RCPT action=DUNNO reasons=spf.pass {CLIENT}",
    f'side=policy stage=RCPT action="450 4.2.0 Greylisted" reasons=greylist.early {CLIENT}',
    f'side=policy stage=RCPT action="DEFER_IF_PERMIT 4.2.0 Greylisted" reasons=greylist.early {CLIENT}',
    f'side=policy stage=RCPT action=DUNNO judged="550 5.7.1 no" reasons=dnsbl.listed {CLIENT}',
    f'side=policy stage=RCPT action="554 5.7.1 too many" reasons=ratelimit.user {CLIENT} sasl_user=me',
    "listening policy inet:127.0.0.1:10040",
)


def fail2ban(tmp_path: Path, lines: list[str]) -> list[str]:
    """The addresses that fail2ban takes from a log with these lines."""
    program = require_program("fail2ban-regex", "fail2ban")
    (tmp_path / "log").write_text("".join(f"{line}\n" for line in lines))
    filters = tmp_path / "fail2ban" / "filter.d"
    if not filters.exists():
        shutil.copytree("/etc/fail2ban/filter.d", filters)
        shutil.copy(SNIPPETS / "fail2ban" / "filter.d" / "gatekeeper.conf", filters)
    command = [program, "--out", "ip", str(tmp_path / "log"), str(filters / "gatekeeper.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.integration("fail2ban")
@pytest.mark.parametrize("head", HEADS)
def test_fail2ban_finds_who_was_refused_for_good_and_nobody_else(tmp_path: Path, head: str) -> None:
    found = fail2ban(tmp_path, [head + line for line in (*BANNED, *SPARED)])
    assert ["192.0.2.1"] * 3 + ["2001:db8::1"] == sorted(found, key=lambda one: ip_address(one).version)


@pytest.mark.integration("fail2ban")
@pytest.mark.parametrize(
    "evil",
    [
        " client=198.51.100.1",
        '" client=198.51.100.1',
        f"\n{HEADS[0]}{BANNED[0].replace('192.0.2.1', '198.51.100.1')}",
        'x" action="550 5.7.1 no" client=198.51.100.1',
        "\\x22 client=198.51.100.1",
        "client=198.51.100.1",
    ],
)
def test_no_stranger_can_have_somebody_else_banned(tmp_path: Path, evil: str) -> None:
    said = f"helo={escape(evil)} from={escape(f'<{evil}>')}"
    spared = f"side=policy stage=RCPT action=DUNNO reasons=a client=192.0.2.1 {said}"
    refused = f"side=policy stage=RCPT action={escape(f'550 5.7.1 <{evil}>: no')} client=192.0.2.1 helo={escape(evil)}"
    assert ["192.0.2.1"] == fail2ban(tmp_path, [HEADS[0] + spared, HEADS[0] + refused])


@pytest.mark.integration("rsyslog")
def test_rsyslog_takes_its_snippet(tmp_path: Path) -> None:
    program = require_program("rsyslogd", "rsyslog")
    done = subprocess.run(
        [program, "-N1", "-f", str(SNIPPETS / "rsyslog.d/gatekeeper.conf")], capture_output=True, text=True
    )
    assert (0, False) == (done.returncode, "error" in done.stderr), done.stderr


@pytest.mark.integration("logrotate")
def test_logrotate_rotates_the_log(tmp_path: Path) -> None:
    program = require_program("logrotate", "logrotate")
    log = tmp_path / "gatekeeper.log"
    log.write_text("a line\n")
    config = tmp_path / "logrotate.conf"
    config.write_text((SNIPPETS / "logrotate.d/gatekeeper").read_text().replace("/var/log/gatekeeper.log", str(log)))
    config.chmod(0o644)
    subprocess.run(
        [program, "--force", "--state", str(tmp_path / "state"), str(config)], check=True, capture_output=True
    )
    assert ("", "a line\n") == (log.read_text(), (tmp_path / "gatekeeper.log.1").read_text())
