# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine once more, to be thrown away: everything on it is there and may be changed, and nothing of that stays.

Its root is an overlay of ours in a mount namespace; its processes, and its network of loopback alone, are its own, and
end with it. What it truly lacks is a systemd (tests/support/systemd_stand_in.py takes its place) and package indexes:
`apt-get` makes sure that what is to be installed is there, and /root/pip is for a step to put in the place of a pip.
Only for root.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.needs import ROOT, missing, require_program

_UNSHARE = ("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private")
_ROOT = """
set -e
mount -t tmpfs machine {room}
mkdir {room}/changed {room}/work {room}/root
mount -t overlay machine -o lowerdir=/,upperdir={room}/changed,workdir={room}/work {room}/root
cd {room}/root
mkdir {room}/project {room}/work2
mkdir -p .{project} .{steps}
mount -t overlay project -o lowerdir={project},upperdir={room}/project,workdir={room}/work2 .{project}
mount --bind {steps} .{steps}
hostname mx.example.com
mount -t proc proc proc
mount -t tmpfs devices dev
mkdir dev/shm dev/pts
for device in null zero random urandom; do touch dev/$device; mount --bind /dev/$device dev/$device; done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
exec chroot . /bin/bash {steps}/walk
"""
_PREPARED = """
cd {project}
ip link set lo up
for name in systemctl journalctl journald; do
    (echo '#!/usr/bin/python3'; cat {project}/tests/support/systemd_stand_in.py) >/usr/local/sbin/$name
    chmod 755 /usr/local/sbin/$name
done
install -m 0755 {steps}/apt-get /usr/local/sbin/apt-get
install -m 0755 {steps}/pip /root/pip
journald & until [ -e /run/stand-in/ready ]; do sleep 0.02; done
"""
_APT_GET = """#!/bin/sh
# No package comes from anywhere here; what is to be installed has to be there.
[ "$1" = install ] || exit 0
shift
for package; do case $package in -*) ;; *) dpkg -s "$package" >/dev/null || exit 100 ;; esac; done
"""
_PIP = """#!/bin/sh
# There is no package index here. The environment gets what pip would put into it: what the tests run with.
[ "$*" = "install .[milter]" ] && [ -e pyproject.toml ] || {{ echo "what is pip $* to do?" >&2; exit 1; }}
folder=$(echo /opt/gatekeeper/lib/python3*/site-packages)
printf '%s\\n' "$PWD" {packages} >"$folder/gatekeeper.pth"
printf '#!/opt/gatekeeper/bin/python3\\nimport sys\\nfrom gatekeeper.cli import main\\nsys.exit(main())\\n' \\
    >/opt/gatekeeper/bin/gatekeeper
chmod 755 /opt/gatekeeper/bin/gatekeeper
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of one step."""

    status: int
    output: str


def walk(folder: Path, steps: Sequence[str], *, timeout: float = 270) -> list[Done]:
    """Run each of `steps` in one bash of root's, in the checkout; `folder` is for our own files.

    A step that ends the shell leaves those after it with status -1.
    """
    require_program("unshare", "mount")
    if os.geteuid() != 0:
        pytest.skip("only root can have a machine of his own")
    if (version := _version("/usr/bin/python3")) != _version(sys.executable):
        missing(f"the machine's own Python is {version}, and these tests run with another")
    scripts = folder / "steps"
    scripts.mkdir()
    places = {
        "room": shlex.quote(str(_made(folder / "room"))),
        "steps": scripts,
        "project": ROOT,
    }
    (scripts / "apt-get").write_text(_APT_GET)
    (scripts / "pip").write_text(_PIP.format(packages=" ".join(shlex.quote(one) for one in _packages())))
    lines = [_PREPARED.format(**places)]
    for number, step in enumerate(steps):
        (scripts / f"{number}.sh").write_text(step + "\n")
        lines.append(
            f"source {scripts}/{number}.sh >{scripts}/{number}.out 2>&1 </dev/null; echo $? >{scripts}/{number}.rc"
        )
    (scripts / "walk").write_text("\n".join(lines))
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        [*_UNSHARE, "bash", "-c", _ROOT.format(**places)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if not (scripts / "0.rc").exists():
        pytest.skip(f"this system lets nobody make a machine of his own: {done.stderr}")
    return [_done(scripts / f"{number}") for number in range(len(steps))]


def _done(step: Path) -> Done:
    status, output = step.with_suffix(".rc"), step.with_suffix(".out")
    text = output.read_text("utf-8", "replace") if output.exists() else ""
    return Done(int(status.read_text()) if status.exists() else -1, text)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _version(python: str) -> str:
    program = "import sys; print(*sys.version_info[:2], sep='.')"
    try:
        return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    except OSError:
        return "missing"


def _packages() -> list[str]:
    """Where what gatekeeper needs is installed."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
