# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command must not load: nine tenths of the time of a short command are imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import ROOT

RUN = """
import contextlib, io, sys
from gatekeeper import cli
nothing = io.StringIO()
with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing), contextlib.suppress(SystemExit):
    cli.main(sys.argv[1:])
print(*sys.modules)
"""
EVERYTHING = (
    *("asyncio", "pydantic", "cryptography", "dns", "spf", "dkim", "authres", "redis", "hiredis", "uvloop"),
    *("tomlkit", "tomllib", "sqlite3", "ssl", "pyexpat", "milter"),
)
OTHERS_WORK = (
    *("redis", "hiredis", "uvloop", "tomlkit", "milter", "pyexpat", "gatekeeper.opendkim"),
    *("gatekeeper.daemon.supervisor", "gatekeeper.daemon.worker"),
    *("gatekeeper.reports.unpack", "gatekeeper.records", "gatekeeper.rotation", "gatekeeper.replay"),
)
"""What check-config and explain have no use for, with a store that is not Redis."""

NOT_FOR = {
    "--version": EVERYTHING,
    "--help": (*EVERYTHING, "importlib.metadata", "email"),
    "no-such-command": (*EVERYTHING, "importlib.metadata", "email"),
    "greylist report /dev/null": tuple(name for name in EVERYTHING if name != "pydantic"),
    "dkim report /dev/null": EVERYTHING,
    "dmarc read /dev/null": tuple(name for name in EVERYTHING if name not in ("dns", "pyexpat")),
    "check-config": (*OTHERS_WORK, "gatekeeper.milter", "gatekeeper.policy", "gatekeeper.diagnose"),
    "explain --client 192.0.2.1 --from a@b.example --to x@example.com --dns /dev/null": OTHERS_WORK,
}


@pytest.mark.parametrize("command", NOT_FOR)
def test_a_command_loads_only_what_it_needs(command: str, tmp_path: Path) -> None:
    config = tmp_path / "gatekeeper.toml"
    config.write_text('hostname = "mx.example.com"\nstore.url = "memory:"\n')
    words = [*(["--config", str(config)] if command.startswith(("check", "explain")) else []), *command.split()]
    # Not measured: coverage would load what it needs itself.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "gatekeeper.cli" in loaded
    assert [] == [one for one in loaded if any(one == name or one.startswith(f"{name}.") for name in NOT_FOR[command])]


def test_workers_find_in_the_parent_what_they_would_load() -> None:
    """Each would load it for itself; all but libmilter, which is never in the parent."""
    program = (
        "import sys; from gatekeeper.app.plan import prepare; from gatekeeper.config import config_file;"
        "from gatekeeper.daemon.worker import WorkerKind, preload_code;"
        "preload_code(prepare(config_file.defaults(), lenient=True), tuple(WorkerKind));"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"gatekeeper.dnsclient.wire", "idna.uts46data", "gatekeeper.milter.session"} <= loaded
    assert not {"milter", "Milter"} & loaded
