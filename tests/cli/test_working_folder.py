# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in a working directory that is closed to them or gone: without a path there no trouble, else a sentence."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.needs import ROOT, missing

pytestmark = pytest.mark.integration("gatekeeper")

NOBODY = 65534
CONF = "Mode v\nSocket inet:8891@localhost\n"
SIGNING = "Mode sv\nKeyTable refile:KeyTable\nSigningTable refile:SigningTable\nSocket inet:8891@localhost\n"


def run(where: str, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a command in a folder that is `closed` to its user, or `gone`."""
    if where == "closed" and os.geteuid() != 0:
        missing("only root can be somebody else")
    with TemporaryDirectory() as made:
        for name, text in (("conf", CONF), ("signing", SIGNING), ("mail", "From: a@example.com\n\nHi\n"), ("dns", "")):
            Path(made, name).write_text(text)
        os.chmod(made, 0o755)
        inside = Path(made, "inside")
        inside.mkdir(mode=0o700)
        arguments = tuple(one.format(f=made) for one in arguments)
        leave = 'rmdir "$PWD" && ' if where == "gone" else ""
        command = ["sh", "-c", f'{leave}exec "$0" "$@"', sys.executable, "-m", "gatekeeper", *arguments]
        user = NOBODY if where == "closed" else None
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=inside,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            timeout=60,
        )
    if "No module named" in done.stderr:
        missing("another user cannot read this working copy")
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("where", ["closed", "gone"])
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("opendkim -t {f}/mail -x {f}/conf", "The milter would log: reasons=dkim.no_signature"),
        ("dmarc record example.com --dns {f}/dns", "there is no DMARC record"),
    ],
)
def test_what_is_given_no_relative_path_works(where: str, command: str, expected: str) -> None:
    assert expected in run(where, *command.split())[1]


@pytest.mark.parametrize("where", ["closed", "gone"])
def test_a_table_with_a_relative_path_is_named_with_the_reason(where: str) -> None:
    status, said = run(where, "opendkim", "-n", "-x", "{f}/signing")
    assert (78, True, False) == (status, "KeyTable: cannot read the table" in said, "Traceback" in said)


@pytest.mark.parametrize("command", ["replay .", "import-postgrey postgrey", "--postfix sub check-config"])
def test_what_may_not_be_looked_at_is_a_sentence(command: str) -> None:
    status, said = run("closed", *command.split())
    assert (75, True) == (status, said.splitlines()[-1].startswith("gatekeeper: cannot look at "))
    assert "Traceback" not in said
