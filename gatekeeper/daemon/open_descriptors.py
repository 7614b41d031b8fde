# SPDX-License-Identifier: GPL-3.0-or-later
"""What a child of the parent may hold. Whatever is not in this table, it closes before it does anything else.

| child | has, beside standard input, output and error, and the log |
|---|---|
| policy worker | its control socket, every policy listener |
| milter worker | its control socket, the listener of its address, and until it has read them the keys |
| who reads the configuration | the pipe for its answer, the keys in force and the memory for the new ones |

So none has the sockets that wake the parent up, which take orders; nor its selector; nor another worker's control
socket, whose end of file must mean that the parent has gone; nor a listener that it does not accept on; nor a
connection on its way to somebody else; nor what whoever started the service had open. What a worker then opens itself,
its event loop, the store, DNS, connections, is its own.
"""

import os
from collections.abc import Mapping
from contextlib import suppress

Inherited = Mapping[int, tuple[int, int]]
"""Descriptors, each with device and inode of what was open there."""


def open_now() -> Inherited:
    """Return what this process has open, but standard input, output and error. Raises OSError."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one of this listing is closed again
            status = os.fstat(int(name))
            found[int(name)] = (status.st_dev, status.st_ino)
    return {number: what for number, what in found.items() if number > 2}


def close_inherited(inherited: Inherited) -> None:
    """Close what is still open of these: no object of this process owns it."""
    for number, what in inherited.items():
        with suppress(OSError):
            status = os.fstat(number)
            if (status.st_dev, status.st_ino) == what:  # else it was closed, and its number used again
                os.close(number)
