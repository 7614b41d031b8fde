# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Redis is and how one gets in: from a url to open connections. Nothing that it raises tells a password.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]             rediss:// the same with TLS
    unix://[USER:PASSWORD@]/PATH[?db=DB]
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/SERVICE[/DB]     rediss+sentinel://
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]                   rediss+cluster://

USER and PASSWORD are percent-encoded, and hold for Redis, not for its Sentinels. redis-py reads the urls with all that
may stand behind a `?` (ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_check_hostname, …), makes the TLS context and asks
the Sentinels; only the connection that requests go over is ours (connection.py).
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from redis.asyncio.connection import ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gatekeeper.stores.redis.connection import RedisConnection
from gatekeeper.stores.store import StoreError

_SENTINEL_LIMIT = 0.3
"""Seconds for one Sentinel to answer, so that one that is down does not use up the time for the next."""
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class RedisServer:
    """One Redis. `path` is that of a unix socket, and then host and port mean nothing."""

    host: str
    port: int
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    async def open(self, timeout: float) -> RedisConnection:  # noqa: ASYNC109 (of each later command)
        """A connection to it, logged in. Raises StoreError."""
        loop = asyncio.get_running_loop()
        wire = RedisConnection(timeout)
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
class RedisServers:
    """What a url means: one server, Sentinels that know where `service` is, or nodes of a cluster."""

    servers: tuple[RedisServer, ...]
    service: str = ""
    cluster: bool = False
    tls: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """redis-py's options for connections to Sentinels."""

    async def open(self, timeout: float) -> RedisConnection:  # noqa: ASYNC109 (of each later command)
        """A connection to the server, or to the one that is in charge now. Raises StoreError."""
        if not self.service:
            return await self.servers[0].open(timeout)
        host, port = await self._ask_sentinels()
        return await replace(self.servers[0], host=host, port=port).open(timeout)

    async def _ask_sentinels(self) -> tuple[str, int]:
        """Where the service is, as the first Sentinel knows that answers. Raises StoreError."""
        places = [(server.host, server.port) for server in self.servers]
        limits = {"socket_timeout": _SENTINEL_LIMIT, "socket_connect_timeout": _SENTINEL_LIMIT}
        asked = Sentinel(places, sentinel_kwargs={**limits, **self.tls, "retry": Retry(NoBackoff(), 0)})  # type: ignore[no-untyped-call]  # has none
        try:
            host, port = await asked.discover_master(self.service)
        except (RedisError, OSError):
            # redis-py's own words name its connections with all their options
            raise StoreError(f"no Sentinel that answers knows the service {self.service!a}") from None
        finally:
            for sentinel in asked.sentinels:
                await sentinel.aclose()
        return str(host), int(port)


def parse_redis_url(url: str) -> RedisServers:
    """What `url` means. Raises ValueError with what is wrong."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    login, at, hosts = parts.netloc.rpartition("@")
    service, path = "", parts.path
    if kind == "sentinel":
        service, _, db = path.strip("/").partition("/")
        path = f"/{db}"
    if scheme != "unix" and path.strip("/") and not (path.strip("/").isascii() and path.strip("/").isdigit()):
        raise ValueError("what stands behind the host is /DB, a number, or /SERVICE/DB with a Sentinel")
    if (kind == "sentinel" and not service) or ("," in hosts and not kind):
        raise ValueError("several hosts are for a cluster, or for Sentinels, which want /SERVICE behind the last")
    if scheme == "unix" and (hosts or not path.strip("/")):
        raise ValueError("a unix socket is written unix:///path/to/socket")
    places = [_with_port(host, kind) for host in hosts.split(",")] if scheme != "unix" else [""]
    pools = [_read(urlunsplit((scheme, login + at + place, path, parts.query, ""))) for place in places]
    servers = tuple(_server(pool) for pool in pools)
    if kind == "cluster" and servers[0].db:
        raise ValueError("a cluster has only the db 0")
    tls = {name: value for name, value in pools[0].connection_kwargs.items() if name.startswith("ssl_")}
    return RedisServers(servers, unquote(service), kind == "cluster", {"ssl": True, **tls} if servers[0].tls else {})


def _with_port(place: str, kind: str) -> str:
    """`HOST[:PORT]` with a port for Sentinels, whose own redis-py does not know."""
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not (host if colon else place).strip("[]") or (colon and not (port.isascii() and 0 < int(port or 0) < 65536)):
        raise ValueError(f"{place!a} is not HOST:PORT")
    return place if colon or kind != "sentinel" else f"{place}:{_SENTINEL_PORT}"


def _read(url: str) -> ConnectionPool:
    """redis-py's reading of the url of one server. Raises ValueError."""
    try:
        return ConnectionPool.from_url(url)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _server(pool: ConnectionPool) -> RedisServer:
    """The server that a pool would connect to. Raises ValueError for options that nobody knows, and for bad files."""
    try:
        connection = pool.connection_class(**pool.connection_kwargs)
        tls = connection.ssl_context.get() if isinstance(connection, SSLConnection) else None
    except (TypeError, OSError) as error:
        raise ValueError(str(error)) from None
    return RedisServer(
        host=getattr(connection, "host", ""),
        port=int(getattr(connection, "port", 0)),
        path=getattr(connection, "path", ""),
        db=int(connection.db),
        username=connection.username or "",
        password=connection.password or "",
        tls=tls,
    )
