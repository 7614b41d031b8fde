# SPDX-License-Identifier: GPL-3.0-or-later
"""A configuration without addresses, for root beside a configured Postfix: sockets that only Postfix can open.

The Postfix is the lab's own, which `MAIL_CONFIG` makes the one of this machine; nothing of the real one is touched.
"""

import grp
import os
import pwd
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.config import config_file
from gatekeeper.replay.smtp import SmtpClient
from tests.lab import Lab
from tests.support.lab import new_lab
from tests.support.milter_service import INBOUND
from tests.support.service import Service, need_milter

pytestmark = [
    pytest.mark.integration("gatekeeper", "postfix"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root gets Postfix's sockets"),
]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    need_milter()
    with new_lab() as lab:
        monkeypatch.setenv("MAIL_CONFIG", str(lab.postfix.config))
        if lab.postfix.sockets.exists():
            lab.postfix.sockets.rmdir()
        yield lab


def write(lab: Lab, more: str = "") -> Path:
    path = lab.root / "gatekeeper.toml"
    path.write_text(
        'user = "nobody"\nmynetworks = []\n[store]\nurl = "memory:"\n'
        f'[dns]\nnameservers = ["{lab.dns.address}"]\n{more}'
    )
    return path


@pytest.mark.parametrize("named", [False, True], ids=["anybody", "Postfix alone"])
def test_mail_passes_through_sockets_that_nobody_named(lab: Lab, named: bool) -> None:
    peers = f'peers = ["{lab.postfix.postconf("mail_owner")}"]\n' if named else ""
    service = Service(write(lab, f"[policy]\nrestrictions = []\n{peers}[milter]\n{peers}"), "run")
    for side in ("policy", "milter"):
        service.wait_for(f"^listening {side} unix:{lab.postfix.sockets}/{side}.sock$")
        assert service.wait_for(rf"unix:gatekeeper/{side}\.sock, ")  # as main.cf has it, in a chroot and outside
    with SmtpClient("127.0.0.1", lab.postfix.ports.smtp) as smtp:
        for command in ("EHLO pc.client.example", "MAIL FROM:<a@client.example>", "RCPT TO:<b@example.org>", "DATA"):
            smtp.command(command)
        assert smtp.content(INBOUND).startswith("250 ")
    delivery = lab.sink.find(b"two  spaces")
    assert delivery is not None
    assert b"\r\nAuthentication-Results: mx.example.org;" in b"\r\n" + delivery.content
    service.wait_for("side=policy")
    folder, sock = os.stat(lab.postfix.sockets), os.stat(lab.postfix.sockets / "milter.sock")
    group = grp.getgrnam(lab.postfix.group).gr_gid
    assert (0, group, 0o750) == (folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode))
    assert (group, 0o660) == (sock.st_gid, stat.S_IMODE(sock.st_mode))
    assert not [line for line in service.lines if "On TCP" in line]
    assert 0 == service.end()


def test_what_names_an_address_keeps_it_and_the_other_gets_the_default(lab: Lab) -> None:
    config = config_file.load(write(lab, '[policy]\nlisten = "inet:127.0.0.1:10040"\n'))
    assert ["inet:127.0.0.1:10040"] == [str(one) for one in config.policy.listen]
    assert [f"unix:{lab.postfix.sockets}/milter.sock"] == [str(one) for one in config.milter.listen]
    assert ("", lab.postfix.group) == (config.policy.socket_group, config.milter.socket_group)


def test_a_mode_without_an_address_is_kept(lab: Lab) -> None:
    config = config_file.load(write(lab, '[policy]\nsocket_mode = "0666"\n[milter]\nsocket_group = "root"\n'))
    assert (0o666, "root") == (config.policy.socket_mode, config.milter.socket_group)


@pytest.mark.parametrize("user", ["nobody", "root"])
def test_whoever_is_not_root_or_has_no_postfix_listens_on_loopback(
    lab: Lab, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if user == "root":
        monkeypatch.setenv("MAIL_CONFIG", str(lab.root))
    code = (
        f"import os; os.setuid({pwd.getpwnam(user).pw_uid}); from gatekeeper.config import config_file as c; "
        "print(*c.defaults().policy.listen, *c.defaults().milter.listen)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "inet:127.0.0.1:10040 inet:127.0.0.1:8891\n" == said


def test_the_lines_are_those_for_the_postfix_that_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAIL_CONFIG")
    lab.postfix.sockets.mkdir()
    listen = f'[policy]\nlisten = "unix:{lab.postfix.sockets}/p.sock"\n[milter]\nlisten = "unix:{lab.root}/m.sock"\n'
    service = Service(write(lab, listen), "run", "--postfix", str(lab.postfix.config))
    service.wait_for(r"check_policy_service \{ unix:gatekeeper/p\.sock, ")
    service.wait_for(rf"smtpd_milters = \{{ unix:{lab.root}/m\.sock, ")
    service.wait_for(rf" --postfix {lab.postfix.config} explain ")
    assert 0 == service.end()


def test_on_tcp_the_start_says_what_that_means(lab: Lab) -> None:
    tcp = 'listen = "inet:127.0.0.1:0"\n'
    service = Service(write(lab, f"[policy]\n{tcp}[milter]\n{tcp}"), "run")
    service.wait_for("^On TCP whoever reaches the port is believed")
    assert 0 == service.end()


TRY = """\
import os, socket, sys
os.setgroups([]); os.setuid(int(sys.argv[1]))
sock = socket.socket(socket.AF_UNIX); sock.settimeout(20); sock.connect(sys.argv[2])
sock.sendall(b"request=smtpd_access_policy\\nprotocol_state=RCPT\\nclient_address=192.0.2.1\\n\\n")
sys.exit(0 if sock.recv(10) == b"action=DUN" else 3)
"""


def test_a_policy_client_who_is_not_named_is_hung_up_on_with_one_line(lab: Lab) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    more = f'[policy]\nlisten = "unix:{lab.root}/p.sock"\nsocket_mode = "0666"\npeers = ["root"]\nrestrictions = []\n'
    service = Service(write(lab, more), "policy")
    service.wait_for("^listening policy")

    def is_answered(uid: int) -> bool:
        command = [sys.executable, "-I", "-c", TRY, str(uid), f"{lab.root}/p.sock"]
        return subprocess.run(command, capture_output=True).returncode == 0

    assert [True, False, False, True] == [is_answered(uid) for uid in (0, nobody, nobody, 0)]
    service.wait_for(rf"a policy connection of user id {nobody} is closed: policy\.peers does not name it$")
    assert 0 == service.end()
    assert 3 > len([line for line in service.lines if "is closed" in line])  # once for each worker


@pytest.mark.parametrize(
    ("peers", "listen", "said"),
    [
        ('["nosuchuser"]', "unix:/run/p.sock", "there is no user 'nosuchuser' on this machine"),
        ('["192.0.2.1/24"]', "inet:127.0.0.1:0", "did you mean '192.0.2.0/24'?"),
        ('["192.0.2.300"]', "inet:127.0.0.1:0", "is not a valid network"),
        (
            '["root"]',
            "inet:127.0.0.1:0",
            "policy.peers names no addresses, so nobody could connect to inet:",
        ),
        ('["::1"]', "unix:/run/p.sock", "policy.peers names no users, so nobody could connect to unix:/run/p.sock"),
        ("5", "unix:/run/p.sock", "is not a list of users, user ids, addresses and networks"),
    ],
)
def test_a_list_of_peers_that_cannot_be_meant_is_a_mistake_with_its_line(
    peers: str, listen: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "gatekeeper.toml"
    path.write_text(f'[policy]\nlisten = "{listen}"\npeers = {peers}\n[milter]\nlisten = "inet:127.0.0.1:0"\n')
    command = [sys.executable, "-m", "gatekeeper", "--config", str(path), "check-config"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert 78 == done.returncode
    assert re.search(rf"gatekeeper\.toml:3: .*{re.escape(said)}", done.stdout + done.stderr)
