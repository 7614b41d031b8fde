# SPDX-License-Identifier: GPL-3.0-or-later
"""What check-config finds on this machine: what keeps the service from starting, and what Postfix could not reach."""

import grp
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from gatekeeper.config import config_file
from gatekeeper.core.problem import Problem
from gatekeeper.daemon.listening_sockets import open_listener
from gatekeeper.daemon.obstacles import obstacles
from gatekeeper.postfix import postconf
from gatekeeper.stores.state_owner import make_state_folder
from tests.support.needs import missing
from tests.support.postconf import no_postfix

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
NOBODY = pwd.getpwnam("nobody")
"""Whom Postfix runs as here: a user that every machine has."""


def by(queue: Path) -> postconf.Ask:
    """A Postfix of nobody's with its queue in `queue`."""

    def ask(names: Sequence[str]) -> Mapping[str, str]:
        return {"queue_directory": str(queue), "mail_owner": "nobody", "config_directory": str(queue)}

    return ask


def found(folder: Path, text: str, ask: postconf.Ask = no_postfix) -> list[Problem]:
    path = folder / "gatekeeper.toml"
    path.write_text(text if "[store]" in text else f'{text}\n[store]\nurl = "memory:"\n')
    config, _ = config_file.examine(path, ask)
    return [problem for problem in obstacles(config) if "pymilter" not in problem.what]


def listening(address: str, more: str = "") -> str:
    return f'[policy]\nlisten = {address}\n{more}\n[milter]\nlisten = "inet:127.0.0.1:0"\n'


def kinds(problems: Sequence[Problem]) -> list[str]:
    return ["trouble" if one.trouble else "warning" if one.warning else "mistake" for one in problems]


def refused(folder: Path) -> Iterator[str]:
    """What the start says of the same addresses."""
    for listen in config_file.load(folder / "gatekeeper.toml", no_postfix).policy.listen:
        try:
            open_listener(listen).close()
        except OSError as error:
            yield f"policy.listen: {error}"


def connects(path: Path) -> bool:
    """Whether a process of Postfix's user can connect."""
    code = (
        "import os, pwd, socket, sys; user = pwd.getpwnam('nobody'); os.initgroups('nobody', user.pw_gid);"
        "os.setgid(user.pw_gid); os.setuid(user.pw_uid); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    )
    return subprocess.run([sys.executable, "-I", "-c", code, path], capture_output=True, check=False).returncode == 0


# What keeps it from starting


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ('"unix:{f}/none/p.sock"', "its folder is missing; make it: install -d -g postfix -m 0750 {f}/none"),
        ('"unix:{f}/file/p.sock"', "Not a directory"),
        ('"unix:{f}/file"', "a file that is not a socket is in the way"),
        ('"inet:192.0.2.1:10040"', "this machine does not have it"),
        ('"inet:no.such.host.invalid:10040"', "there is no host 'no.such.host.invalid'"),
        ('["unix:{f}/p.sock", "unix:{f}/none/p.sock"]', "its folder is missing"),
        ('["inet:127.0.0.1:0", "inet:192.0.2.1:0"]', "this machine does not have it"),
    ],
)
def test_an_address_that_cannot_be_opened_is_a_mistake_at_its_line(tmp_path: Path, address: str, said: str) -> None:
    (tmp_path / "file").touch()
    (problem,) = found(tmp_path, listening(address.replace("{f}", str(tmp_path))))
    assert said.replace("{f}", str(tmp_path)) in problem.what
    assert ("mistake", 2) == (kinds([problem])[0], problem.line)
    assert [problem.what] == list(refused(tmp_path))


def test_the_folder_is_to_be_given_to_the_group_of_the_socket(tmp_path: Path) -> None:
    problems = found(tmp_path, listening(f'"unix:{tmp_path}/none/p.sock"', 'socket_group = "daemon"'))
    assert "install -d -g daemon -m 0750" in problems[0].what


def test_an_address_for_two_services_is_a_mistake(tmp_path: Path) -> None:
    text = f'[policy]\nlisten = "unix:{tmp_path}/s"\n[milter]\nlisten = "unix:{tmp_path}/s"\n'
    (problem,) = found(tmp_path, text)
    assert (4, True) == (problem.line, problem.what.endswith("is that of the policy service too; each needs its own"))


def test_several_free_ports_are_no_mistake(tmp_path: Path) -> None:
    assert [] == found(tmp_path, listening('["inet:127.0.0.1:0", "inet:127.0.0.1:0"]'))


def test_an_address_that_one_service_names_twice_is_one(tmp_path: Path) -> None:
    assert [] == found(tmp_path, listening(f'["unix:{tmp_path}/s", "unix:{tmp_path}/s"]'))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do all of this")
def test_what_only_root_may_do_is_a_mistake_for_everybody_else(tmp_path: Path) -> None:
    for address, more, said in (
        ('"inet:127.0.0.1:25"', "", "ports below 1024 are root's"),
        ('"unix:/p.sock"', "", "its folder / cannot be written"),
        (f'"unix:{tmp_path}/p.sock"', 'socket_group = "root"', "can give a socket to the group root"),
    ):
        (problem,) = found(tmp_path, listening(address, more))
        assert said in problem.what


def test_a_wrong_listen_is_not_judged_by_its_default(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        assert [] == found(tmp_path, listening(f'"inet:127.0.0.1:{holder.getsockname()[1]}:x"'))


# What another program holds


def test_an_address_that_another_program_holds_is_trouble_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        addresses = f'["inet:127.0.0.1:{tcp.getsockname()[1]}", "unix:{tmp_path}/s"]'
        problems = found(tmp_path, listening(addresses))
    assert ["trouble", "trouble"] == kinds(problems)
    assert all(f", pid {os.getpid()}" in problem.what for problem in problems)


def test_a_socket_that_was_left_behind_is_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
    assert [] == found(tmp_path, listening(f'"unix:{tmp_path}/s"'))
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)


# What Postfix could not reach


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """A queue directory that everybody may enter, and a folder for sockets in it."""
    for folder in (*reversed(tmp_path.parents), tmp_path):
        if folder.stat().st_mode & stat.S_IXOTH == 0 and folder.owner() == pwd.getpwuid(os.geteuid()).pw_name:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IXGRP)
    (tmp_path / "queue" / "gatekeeper").mkdir(parents=True)
    for folder in (tmp_path / "queue", tmp_path / "queue" / "gatekeeper"):
        folder.chmod(0o755)
    return tmp_path / "queue"


@ROOT_ONLY
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "may not connect to {q}/gatekeeper/p.sock with mode 0660 and no socket_group"),
        ('socket_group = "daemon"', "with mode 0660 and the group daemon: set policy.socket_group ="),
        ('socket_mode = "0640"\nsocket_group = "{g}"', "with mode 0640 and the group {g}"),
        ('socket_mode = "0666"\npeers = ["root"]', "is not among policy.peers: add 'nobody'"),
        ('socket_mode = "0666"', ""),
        ('socket_group = "{g}"', ""),
        ('socket_mode = "0666"\npeers = ["nobody"]', ""),
    ],
)
def test_a_socket_that_postfix_may_not_use_is_trouble(queue: Path, more: str, said: str) -> None:
    group = grp.getgrgid(NOBODY.pw_gid).gr_name
    more, said = (text.replace("{g}", group).replace("{q}", str(queue)) for text in (more, said))
    text = 'user = "daemon"\n' + listening(f'"unix:{queue}/gatekeeper/p.sock"', more)
    problems = found(queue.parent, text, by(queue))
    assert ["trouble"] * bool(said) == kinds(problems)
    assert all(said in problem.what for problem in problems)
    section = config_file.load(queue.parent / "gatekeeper.toml", by(queue)).policy
    owner = pwd.getpwnam("daemon").pw_uid
    with open_listener(section.listen[0], section.socket_mode, section.socket_group, owner):
        assert (not said or "peers" in said) == connects(queue / "gatekeeper" / "p.sock")  # ask the system itself


@ROOT_ONLY
def test_a_folder_that_postfix_may_not_enter_is_trouble(queue: Path) -> None:
    text = 'user = "daemon"\n' + listening(f'"unix:{queue}/gatekeeper/p.sock"', 'socket_mode = "0666"')
    (queue / "gatekeeper").chmod(0o750)
    (problem,) = found(queue.parent, text, by(queue))
    assert f"who may not enter {queue}/gatekeeper" in problem.what
    assert "chgrp " in problem.what
    queue.chmod(0o700)
    (problem,) = found(queue.parent, text, by(queue))
    assert problem.what.endswith("choose another folder")


@ROOT_ONLY
def test_a_folder_that_the_start_makes_is_not_missed(queue: Path) -> None:
    (queue / "gatekeeper").rmdir()
    assert [] == found(queue.parent, "", by(queue))
    assert not (queue / "gatekeeper").exists()


# The store


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("sqlite:{f}/file/state.db", "mistake", "is not a folder"),
        ("sqlite:{f}/file/more/state.db", "mistake", "is not a folder"),
        ("sqlite:/proc/none/state.db", "mistake", "in /proc"),
        ("sqlite:{f}/folder", "warning", "is a folder, not a file"),
        ("redis://127.0.0.1:1", "warning", "cannot be used now: cannot connect"),
        ("redis://no.such.host.invalid:6379", "warning", "cannot be used now: cannot connect"),
        ("unix:///none/redis.sock", "warning", "cannot be used now"),
    ],
)
def test_a_store_that_cannot_be_is_told(tmp_path: Path, url: str, kind: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    text = listening('"inet:127.0.0.1:0"') + f'[store]\nurl = "{url.replace("{f}", str(tmp_path))}"\n'
    problems = found(tmp_path, text)
    if os.geteuid() != 0:
        kind = "warning"  # nothing is made at the start
    assert ([kind], [True]) == (kinds(problems), [said in problem.what for problem in problems])
    assert [problem.line for problem in problems] == [7]
    if os.geteuid() == 0 and url.startswith("sqlite:"):
        with pytest.raises(OSError) if kind == "mistake" else nullcontext():  # noqa: PT011 (whatever the system says)
            make_state_folder(url.replace("{f}", str(tmp_path)), (NOBODY.pw_uid, NOBODY.pw_gid))


@ROOT_ONLY
def test_a_folder_that_workers_may_not_write_is_told_with_what_mends_it(queue: Path) -> None:
    state = queue / "state"
    state.mkdir()
    text = 'user = "nobody"\n' + listening('"inet:127.0.0.1:0"') + f'[store]\nurl = "sqlite:{state}/state.db"\n'
    (problem,) = found(queue, text)
    assert f"nobody may not write {state}/state.db" in problem.what
    assert f"chown -R nobody: {state}" in problem.what
    os.chown(state, NOBODY.pw_uid, NOBODY.pw_gid)
    assert [] == found(queue, text)
    (state / "state.db").touch(0o600)  # root's own
    assert 1 == len(found(queue, text))


# A second Postfix


def instance(folder: Path, chroot: str = "y") -> Path:
    """The folder of a second Postfix's main.cf, whose queue is beside it."""
    postfix = folder / "postfix-out"
    postfix.mkdir()
    (postfix / "main.cf").write_text(f"compatibility_level = 3.6\nqueue_directory = {folder}/queue\n")
    (postfix / "master.cf").write_text(f"smtp inet n - {chroot} - - smtpd\ncleanup unix n - n - 0 cleanup\n")
    return postfix


@pytest.mark.parametrize("chroot", ["y", "n"])
def test_a_socket_outside_of_the_chroot_is_told(queue: Path, chroot: str) -> None:
    if postconf._postconf() is None:
        missing("there is no postconf")
    sockets = queue.parent / "elsewhere"
    sockets.mkdir()
    text = listening(f'"unix:{sockets}/p.sock"', 'socket_mode = "0666"')
    with postconf.instance(instance(queue.parent, chroot)):
        problems = found(queue.parent, text, postconf.ask_postfix)
    told = [problem for problem in problems if "run in a chroot" in problem.what]
    assert ["warning"] * (chroot == "y") == kinds(told)  # somebody else may connect there
    assert all(f"smtp/inet of master.cf run in a chroot in {queue} and do not see" in one.what for one in told)
