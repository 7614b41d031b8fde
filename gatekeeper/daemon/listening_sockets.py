# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens the listening sockets in the parent, and says who holds an address that is taken.

A unix socket that a dead process left behind is replaced; one that somebody still answers on is not. Its file gets
owner, group and mode before anybody can connect, and nothing is done to a path that leads through a folder of somebody
else (core/safe_path.py): Debian's /run/opendkim belongs to the user of the workers, who could let it lead anywhere.

- Where only root (or we) could have put anything on the way, the socket is bound to its path.
- Elsewhere it is bound in a new folder that only we can enter, prepared there and moved to its place, over what is
  there: the address is never missing. The system shows the name under which it was bound, `/proc/self/fd/N/MARK`, where
  the mark tells `holder` the folder that it was moved to.
"""

import contextlib
import errno
import grp
import os
import shlex
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gatekeeper.core.safe_files import private_folder
from gatekeeper.core.safe_path import Place, place
from gatekeeper.postfix.listen_address import ListenAddress

BACKLOG = 512
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""


def bound(listen: ListenAddress, sock: socket.socket) -> ListenAddress:
    """`listen` with the port that the system chose where it said 0."""
    return listen if listen.family == "unix" else replace(listen, port=sock.getsockname()[1])


class AddressTaken(OSError):
    """Somebody else listens there: `process` is its number, or 0 where we may not look; the message names it."""

    def __init__(self, what: str, process: int) -> None:
        super().__init__(what)
        self.process = process


def open_listener(listen: ListenAddress, mode: int = 0o660, group: str = "", owner: int = -1) -> socket.socket:
    """Open a listening, non-blocking socket. `mode`, `group` and `owner` (a user id) are for a unix socket's path.

    Raises AddressTaken, or OSError with a sentence for a person.
    """
    try:
        if listen.family == "unix":
            return _open_unix(listen.path, _Rights(mode, owner, _group_id(listen, group)))
        return _open_inet(listen)
    except OSError as error:
        raise _explained(listen, error, group) from error


def try_listener(listen: ListenAddress, group: str = "") -> None:
    """Raise what `open_listener` would raise now, as far as can be known without making anything.

    A TCP address is bound for a moment, and nobody is listened to.
    """
    try:
        if listen.family == "unix":
            with place(Path(listen.path)) as where:
                _is_stale(where)
                _check_writable(where)
            _check_group(listen, group)
        else:
            _bind_inet(listen).close()
    except OSError as error:
        raise _explained(listen, error, group) from error


def remove_socket(path: str) -> None:
    """Remove the file of a unix socket that is closed, if it is one. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), place(Path(path)) as where:
        found = where.lstat()
        if found is not None and stat.S_ISSOCK(found.st_mode):
            os.unlink(where.name, dir_fd=where.folder)


def _open_inet(listen: ListenAddress) -> socket.socket:
    sock = _bind_inet(listen)
    try:
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_inet(listen: ListenAddress) -> socket.socket:
    family, everywhere = (socket.AF_INET6, "::") if listen.family == "inet6" else (socket.AF_INET, "0.0.0.0")  # noqa: S104 (only where the configuration names no host)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        address = socket.getaddrinfo(listen.host or everywhere, listen.port, family, socket.SOCK_STREAM)[0][4]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every accepted connection: without it, small answers wait for Postfix's delayed ACK.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


@dataclass(frozen=True, slots=True)
class _Rights:
    """Mode, user and group of a socket's file; -1 leaves an id as it is."""

    mode: int
    owner: int
    group: int

    def give(self, name: str, folder: int) -> None:
        """Give them to the socket `name` in a folder in which nobody else can change names. Raises OSError."""
        if self.owner >= 0 or self.group >= 0:
            os.chown(name, self.owner, self.group, dir_fd=folder, follow_symlinks=False)
        os.chmod(name, self.mode, dir_fd=folder)


def _group_id(listen: ListenAddress, group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise OSError(f"{listen}: there is no group {group!r}") from error


def _check_writable(where: Place) -> None:
    """Raise OSError if nothing could be put into the folder."""
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=where.folder, effective_ids=True):
        raise OSError(errno.EACCES, f"its folder {where.path.parent} cannot be written")


def _check_group(listen: ListenAddress, group: str) -> None:
    """Raise OSError if a socket could not be given to `group`: only root gives to groups that he is not in."""
    number = _group_id(listen, group)
    if number >= 0 and os.geteuid() != 0 and number not in (os.getegid(), *os.getgroups()):
        raise OSError(errno.EPERM, f"only root, or who is in it, can give a socket to the group {group}")


def _open_unix(path: str, rights: _Rights) -> socket.socket:
    with place(Path(path)) as where:
        stale = _is_stale(where)
        if not where.stable:
            return _bind_and_move(where, rights)
        if stale:
            os.unlink(where.name, dir_fd=where.folder)
        # Under the name that people know, unless that is a link, which bind(2) does not follow.
        address = str(where.folder_path / where.name) if Path(path).is_symlink() else path
        return _bind(address, where.name, where.folder, rights)


def _bind_and_move(where: Place, rights: _Rights) -> socket.socket:
    with private_folder(where) as folder:
        name = _mark(where)
        sock = _bind(f"/proc/self/fd/{folder}/{name}", name, folder, rights)
        try:
            os.replace(name, where.name, src_dir_fd=folder, dst_dir_fd=where.folder)
        except OSError:
            sock.close()
            os.unlink(name, dir_fd=folder)
            raise
    return sock


def _mark(where: Place) -> str:
    """Return a name that says, within the 107 bytes that an address may have, where the socket is to be."""
    folder = os.fstat(where.folder)
    return f"{folder.st_dev:x}-{folder.st_ino:x}-{where.name}"[:80]


def _bind(address: str, name: str, folder: int, rights: _Rights) -> socket.socket:
    """Bind to `address`, which is `name` in a folder in which nobody else can change names, and listen."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound_here = False
    try:
        before = os.umask(0o177)  # nobody may connect before mode and group are set
        try:
            sock.bind(address)
            bound_here = True
        finally:
            os.umask(before)
        rights.give(name, folder)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        if bound_here:  # the file is ours, and nobody will listen there
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
        raise
    return sock


def _is_stale(where: Place) -> bool:
    """Return whether a socket is there on which nobody listens. Raises AddressTaken, OSError."""
    try:
        file = os.open(where.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=where.folder)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISSOCK(os.fstat(file).st_mode):
            what = "a file that is not a socket is in the way; remove it or choose another path"
            raise OSError(f"unix:{where.path}: {what}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # who has a full backlog listens, and is not to be waited for
            process = _listener(probe, f"/proc/self/fd/{file}")
    except ConnectionRefusedError:
        return True
    finally:
        os.close(file)
    found = _holder(str(where.path)) or process
    raise AddressTaken(f"unix:{where.path} is taken by {_name(found)}", found)


def _listener(probe: socket.socket, address: str) -> int:
    """Return the process that began to listen at `address`; 0 if it does not tell. Raises ConnectionRefusedError."""
    try:
        probe.connect(address)
        process: int = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[
            0
        ]
    except ConnectionRefusedError:
        raise
    except OSError:  # its backlog is full, for one
        return 0
    return process


def _name(process: int) -> str:
    """Return a process as `name, pid N`; 0 is one that is not known."""
    try:
        return f"{Path(f'/proc/{process}/comm').read_text().strip()}, pid {process}"
    except OSError:
        return "another process"


def _explained(listen: ListenAddress, error: OSError, group: str = "") -> OSError:
    """`error` with its place and, for a taken port, its holder; for a missing folder, what makes it."""
    if isinstance(error, AddressTaken) or str(error).startswith("unix:"):
        return error
    if error.errno == errno.EADDRINUSE:
        process = _holder(listen.path or listen.port)
        return AddressTaken(f"{listen} is taken by {_name(process)}: stop it, or change the listen address", process)
    why = error.strerror or str(error)
    if listen.path and isinstance(error, FileNotFoundError):
        folder = shlex.quote(str(Path(listen.path).parent))
        why = f"its folder is missing; make it: install -d -g {group or 'postfix'} -m 0750 {folder}"
    elif listen.host and isinstance(error, socket.gaierror):
        why = f"there is no host {listen.host!r} ({why})"
    elif error.errno == errno.EADDRNOTAVAIL:
        why += ": this machine does not have it"
    elif error.errno == errno.EACCES and 0 < listen.port < 1024:
        why += ": ports below 1024 are root's"
    return OSError(f"cannot listen on {listen}: {why}")


def holder(where: str | int) -> str:
    """Who listens on a TCP port or a unix path, as `name, pid N`; empty if we may not see it (proc(5))."""
    process = _holder(where)
    return _name(process) if process else ""


def _holder(where: str | int) -> int:
    """Return the process that listens there; 0 if we may not see it."""
    with contextlib.suppress(OSError):  # no descriptor left, for one: the name is a courtesy
        inodes = set(_inodes(where))
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and _holds(process, inodes):
                return int(process.name)
    return 0


def _inodes(where: str | int) -> Iterator[str]:
    """Inode numbers of the sockets that listen there, from /proc/net."""
    if isinstance(where, str):
        moved = "/"
        with contextlib.suppress(OSError), place(Path(where)) as found:
            moved += _mark(found)
        for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and (
                fields[7] == where or (fields[7].startswith("/proc/self/fd/") and fields[7].endswith(moved))
            ):
                yield fields[6]
        return
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(f":{where:04X}"):  # 0A: LISTEN
                    yield fields[9]


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:  # gone, or not ours to look at
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if os.readlink(descriptor).removeprefix("socket:[").removesuffix("]") in inodes:
                return True
    return False
