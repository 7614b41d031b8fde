# SPDX-License-Identifier: GPL-3.0-or-later
"""The control socket between the parent and a worker: words in both directions, and connections that change hands.

A packet is a word and, behind a line end, bytes; it may carry one descriptor (SCM_RIGHTS, unix(7)). To the parent:
`ready`, `alive`, and `take` with a policy connection and the bytes read from it that are not answered yet. To a
worker: `retire`, `leave`, `stop`, and such a `take` passed on. Nobody waits: what the socket does not hold now is not
sent.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

READY, ALIVE, TAKE, RETIRE, LEAVE, STOP = b"ready", b"alive", b"take", b"retire", b"leave", b"stop"

MOST_BYTES = 100_000
"""Unread bytes that may go with a connection: what a socket's buffer surely takes as one packet (socket(7))."""


_LATER = (errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS)


@dataclass(frozen=True, slots=True)
class ControlPacket:
    """What was heard. `descriptor` is -1 if none came; it is the hearer's to close."""

    word: bytes
    data: bytes = b""
    descriptor: int = -1

    @property
    def parts(self) -> tuple[bytes, bytes, int]:
        """What `say` takes to pass it on."""
        return self.word, self.data, self.descriptor

    def close(self) -> None:
        """Close what came along."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, which do not block. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setblocking(False)
        theirs.setblocking(False)
    except OSError:
        ours.close()
        theirs.close()
        raise
    return ours, theirs


def send_packet(control: socket.socket, word: bytes, data: bytes = b"", descriptor: int = -1) -> bool:
    """Send a packet; False if that cannot be done now, or ever again."""
    packet = word + b"\n" + data
    try:
        if descriptor < 0:
            control.send(packet)
        else:
            socket.send_fds(control, [packet], [descriptor])
    except OSError:  # the other is about to be reaped, or too busy to listen
        return False
    return True


def receive_packet(control: socket.socket) -> ControlPacket | None:
    """Return the next packet, one with an empty word at the end of the stream; None if there is none now."""
    try:
        packet, descriptors, _, _ = socket.recv_fds(control, MOST_BYTES + 64, 1)
    except OSError as error:
        # For want of memory it may be read later; to take that for the end would lose a worker that is well.
        return None if error.errno in _LATER else ControlPacket(b"")
    for surplus in descriptors[1:]:
        with contextlib.suppress(OSError):
            os.close(surplus)
    word, _, data = packet.partition(b"\n")
    return ControlPacket(word, data, descriptors[0] if descriptors else -1)


def pass_on(packets: Sequence[ControlPacket], takers: Sequence[socket.socket]) -> list[ControlPacket]:
    """Send each packet to one of the takers, in turn, and close it; return those that none can take now."""
    left = []
    for number, packet in enumerate(packets):
        first = number % len(takers) if takers else 0
        if any(send_packet(taker, *packet.parts) for taker in (*takers[first:], *takers[:first])):
            packet.close()
        else:
            left.append(packet)
    return left
