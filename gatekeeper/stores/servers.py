# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Redis is and how one gets in: from a url to open connections. Nothing that it raises tells a password.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]             rediss:// the same with TLS
    unix://[USER:PASSWORD@]/PATH[?db=DB]
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/SERVICE[/DB]     rediss+sentinel://
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]                   rediss+cluster://

USER and PASSWORD are percent-encoded, and hold for Redis, not for its Sentinels. Behind a `?` may stand `username` and
`password`, and for TLS ssl_ca_certs, ssl_certfile, ssl_keyfile (paths), ssl_cert_reqs=none, ssl_check_hostname=false.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote, urlsplit

from gatekeeper.store import StoreError
from gatekeeper.stores.wire import ReplyError, Wire

_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_OPTIONS = ("db", "username", "password", *_TLS_OPTIONS)
_SENTINEL_LIMIT = 0.3
"""Seconds for one Sentinel to answer, so that one that is down does not use up the time for the next."""


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis. `path` is that of a unix socket, and then host and port mean nothing."""

    host: str
    port: int
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    async def open(self, timeout: float) -> Wire:  # noqa: ASYNC109 (of each later command)
        """A connection to it, logged in. Raises StoreError."""
        loop = asyncio.get_running_loop()
        wire = Wire(timeout)
        try:
            if self.path:
                await loop.create_unix_connection(lambda: wire, self.path)
            else:
                await loop.create_connection(lambda: wire, self.host, self.port, ssl=self.tls)
            answers = []
            if self.password or self.username:
                who = (self.username, self.password) if self.username else (self.password,)
                answers.append(wire.send("AUTH", *who))
            if self.db:
                answers.append(wire.send("SELECT", self.db))
            for answer in answers:
                await answer
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot connect: {error}") from None
        except BaseException:
            wire.close()
            raise
        return wire


@dataclass(frozen=True, slots=True)
class Servers:
    """What a url means: one server, Sentinels that know where `service` is, or nodes of a cluster."""

    servers: tuple[Server, ...]
    service: str = ""
    cluster: bool = False

    async def open(self, timeout: float) -> Wire:  # noqa: ASYNC109 (of each later command)
        """A connection to the server, or to the one that is in charge now. Raises StoreError."""
        if not self.service:
            return await self.servers[0].open(timeout)
        problem = StoreError("no Sentinel answers")
        for sentinel in self.servers:
            try:
                async with asyncio.timeout(_SENTINEL_LIMIT):
                    host, port = await self._ask(sentinel)
            except TimeoutError:
                continue
            except StoreError as error:
                problem = error
                continue
            return await replace(sentinel, host=host, port=port).open(timeout)
        raise problem

    async def _ask(self, sentinel: Server) -> tuple[str, int]:
        """Where the service is, as one Sentinel knows."""
        wire = await replace(sentinel, username="", password="", db=0).open(_SENTINEL_LIMIT)
        try:
            found = await wire.send("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        except ReplyError as error:
            raise StoreError(f"the Sentinel says: {error}") from None
        finally:
            wire.close()
        if found is None:
            raise StoreError(f"the Sentinel knows no service {self.service!a}")
        return found[0].decode(), int(found[1])


def parse(url: str) -> Servers:
    """What `url` means. Raises ValueError with what is wrong."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise ValueError(f"there is no option {name!a} for it, only {', '.join(_OPTIONS)}")
    before, _, hosts = parts.netloc.rpartition("@")
    username, _, password = before.partition(":")
    service, db = "", options.get("db") or "0"
    if scheme == "unix":
        if hosts or not parts.path.strip("/"):
            raise ValueError("a unix socket is written unix:///path/to/socket")
        places = [("", 0)]
    else:
        places = [_place(text, 26379 if kind == "sentinel" else 6379) for text in hosts.split(",")]
        path = parts.path.strip("/")
        if kind == "sentinel":
            service, _, path = path.partition("/")
        db = path or db
    if (kind == "sentinel" and not service) or not (db.isascii() and db.isdigit()):
        raise ValueError("what stands behind the host is /DB, a number, or /SERVICE/DB with a Sentinel")
    if (len(places) > 1 and not kind) or (kind == "cluster" and int(db)):
        raise ValueError("several hosts are for a Sentinel or a cluster, and a cluster has only the db 0")
    servers = tuple(
        Server(
            host,
            port,
            unquote(parts.path) if scheme == "unix" else "",
            int(db),
            unquote(options.get("username") or username),
            unquote(options.get("password") or password),
            _tls(options) if scheme == "rediss" else None,
        )
        for host, port in places
    )
    return Servers(servers, unquote(service), kind == "cluster")


def _place(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(default)
    if not host.strip("[]") or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!a} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    """What to believe and who we are. Raises ValueError."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise ValueError(f"TLS: {_files(options)}: {error}") from None
    unverified = options.get("ssl_cert_reqs", "required") == "none"
    if unverified or options.get("ssl_check_hostname", "true").lower() in ("false", "no", "0"):
        context.check_hostname = False
    if unverified:
        context.verify_mode = ssl.CERT_NONE
    return context


def _files(options: Mapping[str, str]) -> str:
    names: Sequence[str] = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
    return ", ".join(options[name] for name in names if name in options)
