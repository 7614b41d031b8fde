# SPDX-License-Identifier: GPL-3.0-or-later
"""Root writes in a folder of somebody else, who does his worst at every moment: nothing that is root's changes."""

import os

import pytest

from gatekeeper.config import access_entry, config_file
from gatekeeper.core import file_lock, safe_files
from gatekeeper.daemon.background import write_pid_file
from gatekeeper.daemon.endpoints import Access, Endpoints
from gatekeeper.daemon.listening_sockets import open_listener, remove_socket
from gatekeeper.daemon.worker import WorkerKind
from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.signing.key_generation import write_key
from gatekeeper.stores.state_owner import make_state_folder
from tests.support.hostile_folder import ATTACKS, NOBODY, SECRET, Attack, HostileFolder, Work, attacked_at_every_step

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has anything to lose in folders of others")


def listen(hostile: HostileFolder) -> None:
    address = ListenAddress("unix", path=str(hostile.folder / "socket"))
    open_listener(address, 0o666, "nogroup", NOBODY).close()
    with open_listener(address, 0o666, "nogroup", NOBODY):  # over the stale one
        pass
    remove_socket(address.path)


def listen_again(hostile: HostileFolder) -> None:
    endpoint = WorkerKind.MILTER, ListenAddress("unix", path=str(hostile.folder / "socket"))
    endpoints = Endpoints((WorkerKind.MILTER,))
    try:
        endpoints.open({endpoint: Access()})
        endpoints.open({endpoint: Access(0o666, owner=NOBODY)})
    finally:
        endpoints.close_outgoing()
        endpoints.close([*endpoints.sockets])


def pid_file(hostile: HostileFolder) -> None:
    with write_pid_file(hostile.folder / "pid") as write:
        write()
        with write_pid_file(hostile.folder / "pid") as write_again:
            write_again()


def key(hostile: HostileFolder) -> None:
    for replace in (False, True):
        write_key(hostile.folder / "key", b"private", owner=(NOBODY, NOBODY), replace=replace)


def allow(hostile: HostileFolder) -> None:
    try:
        for name in ("a.example", "b.example"):
            entry = access_entry.allow(name, kind="recipient")
            access_entry.add(config_file.defaults(), entry, hostile.folder)
    except access_entry.EntryRefused:
        pass


def change(hostile: HostileFolder) -> None:
    path = hostile.folder / "file"
    with file_lock.changing(path, wait=0) as file:
        file.replace(b"old", 0o666)
    with file_lock.changing(path, wait=0) as file:
        file.replace((file.data or b"") + b"new")
    assert safe_files.read(path) != SECRET.encode()


def state_folder(hostile: HostileFolder) -> None:
    make_state_folder(f"sqlite:{hostile.folder}/state/state.db", (NOBODY, NOBODY))


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("work", [listen, listen_again, pid_file, key, allow, change, state_folder])
def test_nobody_can_turn_root_against_root(work: Work, attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("socket", "pid", "key", "access_recipient", "file", "state", "state.db")
    assert 5 < attacked_at_every_step(work, attack, names, monkeypatch)
