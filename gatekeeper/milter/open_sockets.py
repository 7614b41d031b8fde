# SPDX-License-Identifier: GPL-3.0-or-later
"""The sockets that this process has open, whoever opened them: libmilter does not tell which are its own.

Reads /proc, so Linux only. Knows no libmilter.
"""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def open_sockets() -> Iterator[tuple[int, socket.socket]]:
    """Yield every socket of this process with its descriptor, as a duplicate that is closed before the next.

    Nothing else is duplicated: closing the duplicate of a file would end all locks that this process has on it
    (fcntl(2)), and SQLite lives by its own (stores/sqlite/files.py).
    """
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            duplicate = os.dup(int(entry.name))
        except OSError:  # closed meanwhile
            continue
        try:
            sock = socket.socket(fileno=duplicate)
        except OSError:  # another file has taken the descriptor meanwhile
            os.close(duplicate)
            continue
        with sock:
            yield int(entry.name), sock


def listening_descriptors() -> set[int]:
    """Return the descriptors of all listening sockets."""
    return {descriptor for descriptor, sock in open_sockets() if _is_listening(sock)}


def count_connections(address: Any) -> int:
    """Return how many connections are open that the listener at `address` has accepted.

    This is exact, unlike any counter of callbacks: libmilter may have accepted one without having called us yet.
    """
    count = 0
    for _, sock in open_sockets():
        local = sock.getsockname()
        # A listener on a wildcard address accepts connections whose own address is a real one: the port decides.
        inet = isinstance(local, tuple) and isinstance(address, tuple)
        same = local[1] == address[1] if inet else local == address
        count += same and not _is_listening(sock)
    return count


def _is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
