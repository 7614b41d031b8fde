# SPDX-License-Identifier: GPL-3.0-or-later
"""Listen addresses, in the notations of Postfix, OpenDKIM and gatekeeper, parsed into one immutable value.

Pure parsing: opens nothing and looks up no names. `str()` gives gatekeeper's own notation.
"""

from dataclasses import dataclass
from typing import Literal

ALLOWED = "inet:HOST:PORT, unix:/PATH, or as OpenDKIM and Postfix write it: inet:PORT@HOST, local:/PATH, HOST:PORT"
_MAX_PATH = 107
"""Bytes of a path in sockaddr_un (unix(7)): 108 with the final NUL."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An address to listen on.

    `host` is a name or an address, empty for all interfaces; `path` is for `unix` only. Port 0 means any free port.
    """

    family: Literal["inet", "inet6", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.family == "unix":
            return f"unix:{self.path}"
        if ":" in self.host:
            return f"inet:[{self.host}]:{self.port}"
        return f"{self.family}:{self.host or '*'}:{self.port}"


def parse_listen_address(text: str) -> ListenAddress:
    """Parse `inet:HOST:PORT`, `unix:/PATH`, `inet:PORT[@HOST]`, `local:/PATH` or `HOST:PORT`.

    OpenDKIM's `inet:PORT` without a host listens everywhere (opendkim.conf(5), Socket). Raises ValueError with a
    message for whoever wrote it.
    """
    kind, colon, rest = text.strip().partition(":")
    match kind.lower() if colon else "":
        case "unix" | "local":
            return _unix(text, rest)
        case "inet":
            return _inet(text, rest, "inet")
        case "inet6":
            return _inet(text, rest, "inet6")
    if kind.startswith("/"):
        return _unix(text, text.strip())
    return _inet(text, text.strip(), "inet")


def _unix(text: str, path: str) -> ListenAddress:
    if not path.startswith("/"):
        raise ValueError(f"{text!r}: the path of a socket must be absolute: unix:/PATH")
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > _MAX_PATH:
        raise ValueError(f"{text!r}: the path of a socket has at most {_MAX_PATH} bytes")
    return ListenAddress("unix", path=path)


def _inet(text: str, rest: str, family: Literal["inet", "inet6"]) -> ListenAddress:
    if "@" in rest:
        port, _, host = rest.partition("@")
    elif ":" in rest:
        host, _, port = rest.rpartition(":")
    elif rest.isdigit() and text.strip() != rest:
        host, port = "", rest
    else:
        raise ValueError(f"{text!r} is not an address to listen on; allowed: {ALLOWED}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and "@" not in rest:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets: inet:[::1]:PORT")
    if host == "*":
        host = ""
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{text!r}: {port!r} is not a port; allowed: 0 to 65535, in {ALLOWED}")
    if any(c.isspace() or c in "[]@/" for c in host):
        raise ValueError(f"{text!r}: {host!r} is not a host; allowed: {ALLOWED}")
    return ListenAddress("inet6" if ":" in host else family, host, int(port))
