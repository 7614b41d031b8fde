# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens the listening sockets in the parent, and says who holds an address that is taken.

A unix socket that a dead process left behind is removed; one that somebody still answers on is not.
"""

import contextlib
import grp
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gatekeeper.postfix.listen_address import ListenAddress

BACKLOG = 512


def bound(listen: ListenAddress, sock: socket.socket) -> ListenAddress:
    """`listen` with the port that the system chose where it said 0."""
    return listen if listen.family == "unix" else replace(listen, port=sock.getsockname()[1])


class AddressTaken(OSError):
    """Somebody else listens there; the message names the process where we may look."""


def open_listener(listen: ListenAddress, mode: int = 0o660, group: str = "", owner: int = -1) -> socket.socket:
    """Open a listening, non-blocking socket. `mode`, `group` and `owner` (a user id) are for a unix socket's path.

    Raises AddressTaken, or OSError with a sentence for a person.
    """
    try:
        if listen.family == "unix":
            return _open_unix(listen.path, mode, group, owner)
        return _open_inet(listen)
    except OSError as error:
        raise _explained(listen, error) from error


def _open_inet(listen: ListenAddress) -> socket.socket:
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
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _open_unix(path: str, mode: int, group: str, owner: int) -> socket.socket:
    try:
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise OSError(f"unix:{path}: there is no group {group!r}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound_here = False
    try:
        _remove_stale(path)
        before = os.umask(0o177)  # nobody may connect before mode and group are set
        try:
            sock.bind(path)
            bound_here = True
        finally:
            os.umask(before)
        if group or owner >= 0:
            os.chown(path, owner, gid)
        Path(path).chmod(mode)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        if bound_here:  # the file is ours, and nobody will listen there
            with contextlib.suppress(OSError):
                Path(path).unlink()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(f"unix:{path}: a file that is not a socket is in the way; remove it or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # who has a full backlog listens, and is not to be waited for
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except OSError:
            return
    raise AddressTaken(f"unix:{path} is taken by {holder(path) or 'another process'}")


def _explained(listen: ListenAddress, error: OSError) -> OSError:
    """`error` with its place and, for a taken port, its holder."""
    if isinstance(error, AddressTaken) or str(error).startswith("unix:"):
        return error
    if error.errno == 98:  # EADDRINUSE
        who = holder(listen.path or listen.port)
        return AddressTaken(f"{listen} is taken by {who or 'another process'}: stop it, or change the listen address")
    return OSError(f"cannot listen on {listen}: {error.strerror or error}")


def holder(where: str | int) -> str:
    """Who listens on a TCP port or a unix path, as `name, pid N`; empty if we may not see it (proc(5))."""
    with contextlib.suppress(OSError):  # no descriptor left, for one: the name is a courtesy
        inodes = set(_inodes(where))
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and _holds(process, inodes):
                with contextlib.suppress(OSError):
                    return f"{(process / 'comm').read_text().strip()}, pid {process.name}"
    return ""


def _inodes(where: str | int) -> Iterator[str]:
    """Inode numbers of the sockets that listen there, from /proc/net."""
    if isinstance(where, str):
        for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7] == where:
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
