# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemctl, journalctl and the journal do with one service, where no systemd runs: for the walk through the docs.

The unit is read as systemd reads it: the file, then its drop-ins by name, an empty assignment undoing those before.
ExecStart and ExecReload run as they stand, by no shell. Called as `systemctl`, as `journalctl`, or as `journald` for
/dev/log. What a test relies on and is not here fails with a sentence.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

STATE = Path("/run/stand-in")
FOLDERS = (Path("/etc/systemd/system"), Path("/lib/systemd/system"))
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# What a test wants of the Python that is measured or not compiled is no part of a unit.
ENVIRONMENT |= {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}


def files(unit: str) -> list[Path]:
    """The unit's own file, then its drop-ins."""
    found = [folder / f"{unit}.service" for folder in FOLDERS if (folder / f"{unit}.service").exists()][:1]
    if not found:
        sys.exit(f"Unit {unit}.service could not be found.")
    drop_ins = {
        path.name: path for folder in reversed(FOLDERS) for path in (folder / f"{unit}.service.d").glob("*.conf")
    }
    return [*found, *(path for _, path in sorted(drop_ins.items()))]


def options(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in files(unit):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith(("#", ";", "[")):
                found[name] = [*found[name], value.strip()] if value.strip() else []
    return found


def run(command: str, log: Path, **environment: str) -> int:
    words = [
        environment.get(word.removeprefix("$"), word) if word.startswith("$") else word for word in shlex.split(command)
    ]
    with log.open("ab") as out:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=ENVIRONMENT, check=False
        ).returncode


def journal(unit: str) -> Path:
    return STATE / f"{unit}.journal"


def main_pid(unit: str) -> int:
    """The process of a unit that runs; 0 if none does."""
    try:
        pid = int((STATE / f"{unit}.pid").read_text())
        alive = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return 0
    return pid if alive else 0


def failed(unit: str) -> None:
    sys.exit(f"Job for {unit}.service failed.\n{journal(unit).read_text()}")


def start(unit: str) -> None:
    found = options(unit)
    if main_pid(unit):
        return
    for command in found["ExecStartPre"]:
        if run(command.removeprefix("-"), journal(unit)) and not command.startswith("-"):
            failed(unit)
    (command,) = found["ExecStart"]
    if found["Type"] == ["forking"]:
        status = run(command, journal(unit))
        deadline = time.monotonic() + 10
        while not status and time.monotonic() < deadline and not Path(found["PIDFile"][0]).exists():
            time.sleep(0.02)
        if status or not Path(found["PIDFile"][0]).exists():
            failed(unit)
        (STATE / f"{unit}.pid").write_text(Path(found["PIDFile"][0]).read_text())
    else:
        with journal(unit).open("ab") as out:
            process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        (STATE / f"{unit}.pid").write_text(str(process.pid))
    if not main_pid(unit):
        failed(unit)


def stop(unit: str) -> None:
    pid = main_pid(unit)
    if not pid:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while main_pid(unit):
        if time.monotonic() > deadline:
            sys.exit(f"{unit} does not end")
        time.sleep(0.02)


def reload(unit: str) -> None:
    pid = main_pid(unit)
    if not pid:
        sys.exit(f"Failed to reload {unit}.service: Unit {unit}.service is not active.")
    for command in options(unit)["ExecReload"]:
        if run(command, journal(unit), MAINPID=str(pid)):
            failed(unit)


def cat(unit: str) -> None:
    for path in files(unit):
        print(f"# {path}\n{path.read_text()}")


def systemctl(words: list[str]) -> None:
    verb, *rest = words
    now = "--now" in rest
    units = [word.removesuffix(".service") for word in rest if word != "--now"]
    if verb == "daemon-reload":
        return
    for unit in units:
        match verb:
            case "start":
                start(unit)
            case "stop":
                stop(unit)
            case "restart":
                stop(unit)
                start(unit)
            case "reload":
                reload(unit)
            case "cat":
                cat(unit)
            case "enable":
                files(unit)
                if now:
                    start(unit)
            case "disable":
                files(unit)
                if now:
                    stop(unit)
            case _:
                sys.exit(f"the stand-in for systemctl does not know {verb}")


def journalctl(words: list[str]) -> None:
    (unit,) = [word for before, word in pairwise(words) if before == "-u"]
    print(journal(unit).read_text() if journal(unit).exists() else "", end="")
    said = (STATE / "syslog").read_text() if (STATE / "syslog").exists() else ""
    print(
        "".join(line for line in said.splitlines(keepends=True) if re.match(rf"<\d+>(\S+ +\S+ \S+ )?{unit}\[", line)),
        end="",
    )


def journald() -> None:
    """Take what is sent to /dev/log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, (STATE / "syslog").open("a", buffering=1) as log:
        sock.bind("/dev/log")
        os.chmod("/dev/log", 0o666)
        (STATE / "ready").touch()
        while True:
            log.write(sock.recv(65536).decode(errors="replace").rstrip("\0\n") + "\n")


if __name__ == "__main__":
    STATE.mkdir(exist_ok=True)
    called = Path(sys.argv[0]).name
    if called == "journald":
        journald()
    elif called == "journalctl":
        journalctl(sys.argv[1:])
    else:
        systemctl(sys.argv[1:])
