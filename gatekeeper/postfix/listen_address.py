# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a service listens: the spellings of Postfix, OpenDKIM and the product, as one frozen value.

Pure parsing: opens nothing and looks no name up. `str()` gives the spelling that everything here prints.
"""

from dataclasses import dataclass
from typing import Literal

ALLOWED = "inet:HOST:PORT, unix:/PATH, or as OpenDKIM and Postfix write it: inet:PORT@HOST, local:/PATH, HOST:PORT"
_LONGEST_PATH = 107
"""Bytes of a path in sockaddr_un (unix(7)): 108 with the final NUL."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An address to listen on. `host` is a name or an address, empty for every interface; `path` is for `unix` alone.

    Port 0 stands for any free port.
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
    """The address that `text` means: `inet:HOST:PORT`, `unix:/PATH`, `inet:PORT[@HOST]`, `local:/PATH`, `HOST:PORT`.

    OpenDKIM's `inet:PORT` without a host listens everywhere (opendkim.conf(5), Socket). Raises ValueError with a
    sentence for the one who wrote it.
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
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > _LONGEST_PATH:
        raise ValueError(f"{text!r}: the path of a socket has at most {_LONGEST_PATH} bytes")
    return ListenAddress("unix", path=path)


def _inet(text: str, rest: str, family: Literal["inet", "inet6"]) -> ListenAddress:
    if "@" in rest:
        port, _, host = rest.partition("@")
    elif ":" in rest:
        host, _, port = rest.rpartition(":")
    elif rest.isdigit() and text.strip() != rest:
        host, port = "", rest
    else:
        raise ValueError(f"{text!r} is no address to listen on; allowed: {ALLOWED}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and "@" not in rest:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets: inet:[::1]:PORT")
    if host == "*":
        host = ""
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{text!r}: {port!r} is no port; allowed: 0 to 65535, in {ALLOWED}")
    if any(c.isspace() or c in "[]@/" for c in host):
        raise ValueError(f"{text!r}: {host!r} is no host; allowed: {ALLOWED}")
    return ListenAddress("inet6" if ":" in host else family, host, int(port))
