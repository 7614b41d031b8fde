# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP and UDP ports on loopback for servers that are started a moment later, by this process or another.

A port that the kernel gives for 0 is only free until somebody else asks: the next lab, or any connection that goes
out. So ports are taken from below those, and one that was handed out is held by an abstract unix socket of its name,
which all processes of the machine see, whoever runs them, and which goes when the process ends.
"""

import random
import socket
from pathlib import Path

_LOWEST = 10000
_held: list[socket.socket] = []


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that nobody listens on, and that nobody else is given as long as this process lives.

    Raises OSError if `host` is none of ours."""
    highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for attempt in range(100):
        port = random.randrange(_LOWEST, max(highest, _LOWEST + 1000))
        hold = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            hold.bind(f"\0gatekeeper-port-{port}")
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind((host, port))
        except OSError:
            hold.close()
            if attempt == 99:
                raise
        else:
            _held.append(hold)
            return port
    raise AssertionError
