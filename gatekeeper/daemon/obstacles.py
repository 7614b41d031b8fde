# SPDX-License-Identifier: GPL-3.0-or-later
"""What on this machine stands in the way of a configuration, for check-config. Nothing is made or left open.

Three kinds. What would keep `run`, started now by whoever asks, from starting is a mistake. Trouble is an address that
another program holds, which may be the one that gatekeeper is about to replace, and a socket in Postfix's queue
directory that Postfix cannot reach. Elsewhere that is a warning, as somebody else may connect there; so is a store that
cannot be used: decisions go on without it, and it may be back by then. Whether a user may use a file is judged by
owner, groups and mode, as for a process of his; access control lists are not looked at.
"""

import asyncio
import importlib.util
import os
import pwd
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from grp import getgrgid, getgrnam
from pathlib import Path

from gatekeeper.config.config_file import Config
from gatekeeper.config.locations import KeyPath
from gatekeeper.config.schema import MilterSection, PolicySection
from gatekeeper.core import redaction
from gatekeeper.core.problem import Problem
from gatekeeper.core.safe_path import UnsafePath, is_sticky, place
from gatekeeper.daemon.listening_sockets import AddressTaken, try_listener
from gatekeeper.daemon.orphans import is_service
from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.postfix.service_address import lies_in_queue, not_seen_from_chroot
from gatekeeper.stores.store import StoreError
from gatekeeper.stores.store_url import describe, redis_store, sqlite_path

_READ, _WRITE, _SEARCH = 4, 2, 1
_PATIENCE = 1.0
"""Seconds that a Redis has to answer."""
_PROGRAMS = {"policy": ("smtpd",), "milter": ("smtpd", "cleanup")}
"""Which of Postfix's programs connect."""


@dataclass(frozen=True, slots=True)
class _User:
    """A user with all groups that his processes have, as initgroups(3) gives them to workers and to smtpd."""

    name: str
    uid: int
    groups: frozenset[int]

    @classmethod
    def named(cls, name: str, group: str = "") -> "_User":
        """Return the user `name`, whose first group is `group` or his own. Raises KeyError."""
        entry = pwd.getpwnam(name)
        first = getgrnam(group).gr_gid if group else entry.pw_gid
        return cls(name, entry.pw_uid, frozenset(os.getgrouplist(name, first)))

    @classmethod
    def ourselves(cls) -> "_User":
        uid = os.geteuid()
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = str(uid)
        return cls(name, uid, frozenset((os.getegid(), *os.getgroups())))

    def may(self, what: int, mode: int, owner: int, group: int) -> bool:
        """Return whether he has the rights `what` on something with this mode, owner and group."""
        if self.uid == 0:
            return True
        shift = 6 if owner == self.uid else 3 if group in self.groups else 0
        return (mode >> shift) & what == what

    def may_use(self, what: int, status: os.stat_result) -> bool:
        return self.may(what, status.st_mode, status.st_uid, status.st_gid)

    def barred_by(self, folder: Path) -> Path | None:
        """Return the first folder on the way into `folder` that he may not enter. Raises OSError."""
        way = (*reversed(folder.parents), folder)
        return next((one for one in way if not self.may_use(_SEARCH, one.stat())), None)


def obstacles(config: Config) -> Iterator[Problem]:
    """Yield what is in the way of `run`."""
    yield from of_addresses(config)
    yield from _of_state(config)
    yield from _of_shared_store(config)
    if importlib.util.find_spec("milter") is None:
        what = "pymilter is not installed, so there is no milter; pip install 'gatekeeper[milter]' adds it"
        yield _warning(config, ("milter",), what)


def of_addresses(config: Config, kinds: Collection[str] = ("policy", "milter")) -> Iterator[Problem]:
    """Yield what is in the way of the listening sockets."""
    seen: dict[tuple[str, int, str], str] = {}
    sections: dict[str, PolicySection | MilterSection] = {"policy": config.policy, "milter": config.milter}
    for kind in kinds:
        section = sections[kind]
        if config.is_replaced((kind, "listen")):
            continue  # what is wrong with it has been told, and this is a default
        for index, listen in enumerate(section.listen):
            at: KeyPath = (kind, "listen", index)
            address = (listen.host, listen.port, listen.path)
            if (listen.port or listen.path) and (other := seen.get(address, kind)) != kind:
                yield config.problem(at, f"{listen} is that of the {other} service too; each needs its own")
                continue
            seen[address] = kind
            if _is_made_at_start(config, listen):
                continue
            group = section.socket_group if _is_group(section.socket_group) else ""
            try:
                try_listener(listen, group)
            except AddressTaken as taken:
                if not _is_ours(taken.process):
                    yield _trouble(config, at, f"{taken}; gatekeeper cannot start before")
            except OSError as error:
                yield config.problem(at, f"{kind}.listen: {error}")
                continue
            if listen.path and group == section.socket_group:
                yield from _between_postfix_and(listen, config, kind, section, at)


def _trouble(config: Config, at: KeyPath, what: str) -> Problem:
    found = config.problem(at, what, warning=True)
    return Problem(found.file, found.line, found.what, warning=True, trouble=True)


def _warning(config: Config, at: KeyPath, what: str) -> Problem:
    return config.problem(at, what, warning=True)


def _is_made_at_start(config: Config, listen: ListenAddress) -> bool:
    """Return whether the folder of a socket is missing, and one that we make ourselves."""
    folder = Path(listen.path).parent
    return config.sockets is not None and folder == config.sockets.folder and not folder.exists()


def _is_group(name: str) -> bool:
    """Return whether there is such a group; that there is none, another problem tells."""
    try:
        return bool(name and getgrnam(name))
    except KeyError:
        return False


def _is_ours(process: int) -> bool:
    """Return whether `process` is a gatekeeper that runs: it makes way for the new one."""
    try:
        return is_service(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def _between_postfix_and(
    listen: ListenAddress, config: Config, kind: str, section: PolicySection | MilterSection, at: KeyPath
) -> Iterator[Problem]:
    """Yield why the Postfix on this machine could not connect to a unix socket, whose folder is there."""
    relay, path = config.postfix, Path(listen.path)
    tell = partial(_trouble if lies_in_queue(listen, relay.queue_directory) else _warning, config)
    try:
        user = _User.named(relay.mail_owner)
        its_group = getgrgid(pwd.getpwnam(relay.mail_owner).pw_gid).gr_name
        bar = user.barred_by(path.parent)
    except (KeyError, OSError):
        return
    whose = f"Postfix runs as {user.name}, who"
    if bar is not None:
        mend = f"chgrp {its_group} {bar} && chmod g+x {bar}" if bar == path.parent else "choose another folder"
        yield tell(at, f"{whose} may not enter {bar}, and so not connect to {path}: {mend}")
    owner, group = _worker(config).uid, section.socket_group
    if not user.may(_WRITE, section.socket_mode, owner, getgrnam(group).gr_gid if group else os.getegid()):
        named = f"the group {group}" if group else "no socket_group"
        what = f"{whose} may not connect to {path} with mode {section.socket_mode:04o} and {named}"
        mend = f'set {kind}.socket_group = "{its_group}" and {kind}.socket_mode = "0660"'
        yield tell(at, f"{what}: {mend}")
    if section.peers and user.uid not in section.peers.uids:
        yield tell((kind, "peers"), f"{whose} is not among {kind}.peers: add {user.name!r}")
    if what := not_seen_from_chroot(listen, relay.queue_directory, _PROGRAMS[kind]):
        yield tell(at, what)


def _worker(config: Config) -> _User:
    """Return whom workers become; ourselves if there is no such user, which another problem tells."""
    try:
        return _User.named(config.user, config.group) if os.geteuid() == 0 else _User.ourselves()
    except KeyError:
        return _User.ourselves()


def _of_state(config: Config) -> Iterator[Problem]:
    """Yield why the file of the store could not be used."""
    path = sqlite_path(config.store.url)
    if path is None:
        return
    user, at = _worker(config), ("store", "url")
    try:
        there = next(one for one in path.parents if os.path.lexists(one))
        if there != path.parent or not there.is_dir():
            what = f"store.url: the folder {path.parent} cannot be made: "
            if why := _why_nothing_is_made(there):
                # Only root makes it at the start; of others the workers do, and go on without.
                yield config.problem(at, what + why, warning=os.geteuid() != 0)
            elif not _root_makes(there) and not user.may_use(_WRITE | _SEARCH, there.stat()):
                yield config.problem(at, f"{what}{user.name} may not write in {there}; {_FORGETS}", warning=True)
        elif path.is_dir():
            yield config.problem(at, f"store.url: {path} is a folder, not a file; {_FORGETS}", warning=True)
        elif bar := user.barred_by(path.parent):
            yield config.problem(at, f"store.url: {user.name} may not enter {bar}; {_FORGETS}", warning=True)
        elif not _may_keep(user, path):
            what = f"store.url: {user.name} may not write {path} and beside it; {_FORGETS}"
            yield config.problem(at, f"{what}: chown -R {user.name}: {path.parent}", warning=True)
    except OSError as error:
        yield config.problem(at, f"store.url: {error.filename}: {error.strerror}")


def _of_shared_store(config: Config) -> Iterator[Problem]:
    """Warn if the Redis does not answer, which it may do later: gatekeeper starts without it and finds it again."""
    url = config.store.url
    if url.partition(":")[0] not in redaction.STORE_SCHEMES:
        return

    async def ask() -> None:
        store = redis_store(url, timeout=_PATIENCE)
        try:
            await asyncio.wait_for(store.get("probe"), _PATIENCE)
        finally:
            await store.close()

    try:
        asyncio.run(ask())
    except ValueError:
        return  # the url cannot be used, which another problem tells
    except (StoreError, OSError) as error:  # TimeoutError is one, without a text
        why = f"store.url: {describe(url)} cannot be used now: {str(error) or 'no answer'}"
        yield config.problem(("store", "url"), f"{why}; without it each process counts for itself", warning=True)


def _why_nothing_is_made(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    # In /proc and its like root is refused nothing, and nothing is there to be written to.
    if not os.access(folder, os.W_OK) or not os.statvfs(folder).f_blocks:
        return f"nobody can write in {folder}" if os.geteuid() == 0 else f"we may not write in {folder}"
    return ""


def _root_makes(folder: Path) -> bool:
    """Return whether we are root, who makes folders where nobody else could have put anything (core/safe_files.py)."""
    if os.geteuid() != 0:
        return False
    try:
        with place(folder / "state") as where:
            return where.private or is_sticky(os.fstat(where.folder))
    except UnsafePath:
        return False


def _may_keep(user: _User, path: Path) -> bool:
    """Return whether `user` may write an SQLite file at `path`, with those that SQLite puts beside it."""
    files = (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm")))
    return user.may_use(_WRITE | _SEARCH, path.parent.stat()) and all(
        user.may_use(_READ | _WRITE, one.stat()) for one in files if one.exists()
    )


_FORGETS = "nothing would be remembered (limits, greylisting)"
