# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals as bytes on a socket that a selector watches, so that nothing happens between two instructions.

Whoever holds one of its ends can give the parent orders: children close both before anything else.
"""

import signal
import socket

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class Wakeup:
    """The signals of this process. Raises OSError."""

    def __init__(self) -> None:
        self.socket, self._written = socket.socketpair()
        self.socket.setblocking(False)
        self._written.setblocking(False)

    def catch(self) -> None:
        """Have signals come here from now on."""
        signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)

    def read(self) -> bytes:
        """Return the numbers of the signals that have come."""
        try:
            return self.socket.recv(4096)
        except OSError:  # no memory for a moment: they are still there, and wake us again
            return b""

    def close(self) -> None:
        """Let go of both ends: set_wakeup_fd has only held a number."""
        self.socket.close()
        self._written.close()


def reset() -> None:
    """Undo this handling in a child that was just forked.

    To reload is the parent's: a child passes over what the whole service is told (`systemctl kill -s HUP`).
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
