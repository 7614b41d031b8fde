# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Postfix: its own configuration, queue, data and log in one directory, on loopback ports of its own.

Composed from the fragments in postfix-snippets/, so that what is shipped is what is tested; the rest of its main.cf
only makes it a relay that needs no DNS and hands everything to one sink. It never reads or writes /etc/postfix, runs
`master` itself instead of `postfix start` (which would check and mend the machine's own files), and is not chrooted.
Clients are made up with XCLIENT, which 127.0.0.1 may use. Postfix starts as root only.
"""

import grp
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.ports import free_port

SNIPPETS = Path(__file__).resolve().parents[2] / "postfix-snippets"
SBIN = "/usr/sbin:/sbin"

# Where Postfix's own postfix-files puts them, and with which mode; owner postfix, group postdrop where it matters.
_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"),
)
_GROUP_QUEUES = {"maildrop": 0o730, "public": 0o710}

_MAIN = """\
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file = {root}/maillog
maillog_file_prefixes = {root}
myhostname = {hostname}
mydestination =
relay_domains = {relay_domains}
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
smtp_host_lookup = native
default_transport = smtp:[127.0.0.1]:{sink}
relay_transport = smtp:[127.0.0.1]:{sink}
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {root}/sasl.sock
smtpd_tls_security_level = none
smtp_tls_security_level = none

# --- postfix-snippets/main.cf ---
"""

_MASTER = """\
postlog   unix-dgram n - n - 1 postlogd
pickup    unix  n - n 1 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
"""


class LabError(Exception):
    """The lab cannot start here; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The loopback TCP ports of one lab: port 25, submission, and the port where a content filter hands mail back."""

    smtp: int
    submission: int
    reinject: int


def why_not() -> str:
    """Why no lab can run here and what to do about it, in a sentence; empty if one can."""
    if find("postconf") is None:
        return "Postfix is not installed: apt-get install postfix (dnf install postfix)"
    if importlib.util.find_spec("milter") is None:
        return "pymilter is not installed: apt-get install libmilter-dev, then pip install 'gatekeeper[milter]'"
    if os.geteuid() != 0:
        return "a private Postfix needs root to start (it drops to its own user): run this with sudo"
    if not SNIPPETS.is_dir():
        return f"{SNIPPETS} is missing: run this from a clone of gatekeeper's repository"
    return ""


def find(program: str) -> str | None:
    """The path of a program, also in /usr/sbin, which users do not have in their PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SBIN}")


class Postfix:
    """One private Postfix below `root`, an existing directory that others may enter. `start()`, then `stop()`."""

    def __init__(self, root: Path, *, sink: int, hostname: str, relay_domains: Sequence[str]) -> None:
        self.root = root
        self.config = root / "config"
        self.queue = root / "queue"
        self.log = root / "maillog"
        self.sockets = self.queue / "gatekeeper"  # where the fragments expect gatekeeper's sockets
        self.ports = Ports(smtp=free_port(), submission=free_port(), reinject=free_port())
        self._main = _MAIN.format(root=root, sink=sink, hostname=hostname, relay_domains=", ".join(relay_domains))
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def group(self) -> str:
        """The group whose members reach the sockets: Postfix's own."""
        return grp.getgrgid(pwd.getpwnam(self.postconf("mail_owner")).pw_gid).gr_name

    def start(self, began: Callable[[int], None], timeout: float = 15.0) -> None:
        """Write the configuration, start `master`, tell `began` its process group, and wait until port 25 answers.

        Raises LabError with what Postfix said instead.
        """
        self._write()
        self._settle()
        program = Path(self.postconf("daemon_directory")) / "master"
        self._master = subprocess.Popen(
            [program, "-c", self.config, "-d"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # its children are one process group, and Ctrl-C reaches only us
        )
        began(self._master.pid)
        deadline = time.monotonic() + timeout
        while not _greets(self.ports.smtp):
            if self._master.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"Postfix did not start:\n{self.why_it_failed()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End `master` and all its children. May be called twice."""
        if self._master is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._master.pid, number)
                self._master.wait(5.0)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self._master.wait(5.0)
        if self._master.stderr is not None:
            self._master.stderr.close()
        self._master = None

    def postconf(self, name: str) -> str:
        """The value of a parameter of this Postfix."""
        return _run("postconf", "-c", str(self.config), "-xh", name)

    def sendmail(self, message: bytes, *, sender: str, recipient: str) -> None:
        """Give it a message as a local program does, through sendmail(1)."""
        program = find("sendmail") or "sendmail"
        command = [program, "-C", str(self.config), "-i", "-f", sender, recipient]
        subprocess.run(command, input=message, check=True, capture_output=True, timeout=20)

    def why_it_failed(self) -> str:
        """What its log and its standard error say."""
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        if self._master is not None and self._master.poll() is not None and self._master.stderr is not None:
            said += self._master.stderr.read().decode(errors="replace")
        return said

    def _write(self) -> None:
        self.config.mkdir()
        snippet = (SNIPPETS / "main.cf").read_text()
        (self.config / "main.cf").write_text(self._main + snippet)
        (self.config / "master.cf").write_text(
            _MASTER + master_services((SNIPPETS / "master.cf").read_text(), self.ports)
        )
        self._settle()
        owner = pwd.getpwnam(self.postconf("mail_owner"))
        drop = grp.getgrnam(self.postconf("setgid_group")).gr_gid
        self.queue.mkdir()
        (self.queue / "pid").mkdir()
        for name in _QUEUES:
            _make(self.queue / name, 0o700, owner.pw_uid)
        for name, mode in _GROUP_QUEUES.items():
            _make(self.queue / name, mode, owner.pw_uid, drop)
        _make(self.root / "data", 0o700, owner.pw_uid)
        _make(self.sockets, 0o750, 0, owner.pw_gid)

    def _settle(self) -> None:
        """Make the configuration look old: what is younger than a second could still be in the making for Postfix,
        and each of its programs waits before it reads that."""
        for name in ("main.cf", "master.cf"):
            os.utime(self.config / name, (0, 0))


def master_services(fragment: str, ports: Ports) -> str:
    """The services of the lab's master.cf: port 25 as Debian ships it, and those of the shipped fragment.

    Only the port and the chroot flag change, since a lab may use neither port 587 nor somebody else's /etc.
    """
    here = {"smtp": ports.smtp, "submission": ports.submission, "127.0.0.1:10026": ports.reinject}
    lines = []
    for line in ("smtp inet n - y - - smtpd\n" + fragment).splitlines():
        service = re.match(r"(\S+)\s+inet\s+n\s+-\s+y\s+(.*)", line)
        if service and not line.startswith("#"):
            lines.append(f"127.0.0.1:{here[service[1]]} inet n - n {service[2]}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _make(path: Path, mode: int, uid: int, gid: int = -1) -> None:
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)


def _greets(port: int) -> bool:
    """True if an SMTP server greets on this port within a second."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            return connection.recv(3) == b"220"
    except OSError:
        return False


def _run(program: str, *arguments: str) -> str:
    path = find(program)
    if path is None:
        raise LabError(f"{program} is not installed")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise LabError(f"{program} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()
