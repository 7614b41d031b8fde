# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis URLs: parse them, and open connections to the servers that they name. No exception reveals a password.

So no exception has words of a library, or a part of the URL: what seems to be the host may be half a password.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]             rediss:// the same with TLS
    unix://[USER:PASSWORD@]/PATH[?db=DB]
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/SERVICE[/DB]     rediss+sentinel://
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]                   rediss+cluster://

USER and PASSWORD are percent-encoded, and are for Redis, not for its Sentinels. redis-py parses the URLs with all the
options that may follow a `?` (ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_check_hostname, …), creates the TLS context
and queries the Sentinels; only the connection that carries requests is ours (connection.py).
"""

import asyncio
import re
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

from gatekeeper.stores.redis.connection import RedisConnection, ReplyError
from gatekeeper.stores.store import StoreError

_SENTINEL_LIMIT = 0.3
"""Seconds for one Sentinel to answer, so that one that is down does not use up the time of the next."""
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class RedisServer:
    """One Redis server. With the `path` of a Unix socket, `host` and `port` mean nothing."""

    host: str
    port: int
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    async def open(self, timeout: float) -> RedisConnection:  # noqa: ASYNC109 (of each later command)
        """Open a connection, authenticated and with the database selected. Raises StoreError."""
        loop = asyncio.get_running_loop()
        connection = RedisConnection(timeout)
        try:
            if self.path:
                await loop.create_unix_connection(lambda: connection, self.path)
            else:
                await loop.create_connection(lambda: connection, self.host, self.port, ssl=self.tls)
            answers = []
            if self.password or self.username:
                credentials = (self.username, self.password) if self.username else (self.password,)
                answers.append(connection.send("AUTH", *credentials))
            if self.db:
                answers.append(connection.send("SELECT", self.db))
            for answer in answers:
                await answer
        except ReplyError as error:
            connection.close()
            # What does not know AUTH quotes it, with its arguments.
            kind = error.kind if re.fullmatch(r"[A-Z]{2,20}", error.kind) else "an error"
            raise ReplyError(f"{kind} in answer to user, password or database") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot connect: {error}") from None
        except BaseException:
            connection.close()
            raise
        return connection


@dataclass(frozen=True, slots=True)
class RedisServers:
    """The meaning of a URL: one server, Sentinels that know where `service` is, or nodes of a cluster."""

    servers: tuple[RedisServer, ...]
    service: str = ""
    cluster: bool = False
    tls: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """redis-py's options for connections to Sentinels."""

    async def open(self, timeout: float) -> RedisConnection:  # noqa: ASYNC109 (of each later command)
        """Open a connection to the server, or to the current master of the service. Raises StoreError."""
        if not self.service:
            return await self.servers[0].open(timeout)
        host, port = await self._ask_sentinels()
        return await replace(self.servers[0], host=host, port=port).open(timeout)

    async def _ask_sentinels(self) -> tuple[str, int]:
        """Return where the service is, according to the first Sentinel that answers. Raises StoreError."""
        hosts = [(server.host, server.port) for server in self.servers]
        limits = {"socket_timeout": _SENTINEL_LIMIT, "socket_connect_timeout": _SENTINEL_LIMIT}
        sentinel_client = Sentinel(hosts, sentinel_kwargs={**limits, **self.tls, "retry": Retry(NoBackoff(), 0)})  # type: ignore[no-untyped-call]  # has none
        try:
            host, port = await sentinel_client.discover_master(self.service)
        except (RedisError, OSError):
            # redis-py's own message shows its connections with all their options
            raise StoreError(f"no Sentinel that answers knows the service {self.service!a}") from None
        finally:
            for sentinel in sentinel_client.sentinels:
                await sentinel.aclose()
        return str(host), int(port)


class UrlMistake(ValueError):
    """A URL cannot be used; the text quotes nothing of it."""


# No at sign in these texts: a url is cut up to the last one (core/redaction.py).
_NOT_ENCODED = (
    "user and password end at the last at sign, and have to be percent-encoded: / is %2F, ? is %3F, # is %23, "
    ": is %3A, the at sign %40, % itself %25"
)


def parse_redis_url(url: str) -> RedisServers:
    """Parse `url`. Raises UrlMistake with what is wrong."""
    login, at, _ = url.partition("://")[2].rpartition("@")
    if re.search(r"[/?#@\[\]\\]|%(?![0-9A-Fa-f]{2})|[^!-~]", login) or not url.isprintable():
        raise UrlMistake(_NOT_ENCODED)
    try:
        return _parse(url)
    except UrlMistake:
        raise
    except (ValueError, TypeError, OSError):  # redis-py's and urllib's
        where = "after the last at sign" if at else "in it"
        raise UrlMistake(
            f"something {where} is not a host, a port, or an option with a value that it can have"
        ) from None


def _parse(url: str) -> RedisServers:
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    login, at, hosts = parts.netloc.rpartition("@")
    service, path = "", parts.path
    if kind == "sentinel":
        service, _, db = path.strip("/").partition("/")
        path = f"/{db}"
    if scheme != "unix" and path.strip("/") and not (path.strip("/").isascii() and path.strip("/").isdigit()):
        raise UrlMistake("after the host comes /DB, a number, or /SERVICE/DB with a Sentinel")
    if (kind == "sentinel" and not service) or ("," in hosts and not kind):
        raise UrlMistake("several hosts are for a cluster, or for Sentinels, which need /SERVICE after the last")
    if scheme == "unix" and (hosts or not path.strip("/")):
        raise UrlMistake("a Unix socket is written unix:///path/to/socket")
    host_ports = [_with_port(host, kind) for host in hosts.split(",")] if scheme != "unix" else [""]
    pools = [_pool_for(urlunsplit((scheme, login + at + host_port, path, parts.query, ""))) for host_port in host_ports]
    servers = tuple(_server(pool) for pool in pools)
    if kind == "cluster" and servers[0].db:
        raise UrlMistake("a cluster has only database 0")
    tls = {name: value for name, value in pools[0].connection_kwargs.items() if name.startswith("ssl_")}
    return RedisServers(servers, unquote(service), kind == "cluster", {"ssl": True, **tls} if servers[0].tls else {})


def _with_port(host_port: str, kind: str) -> str:
    """Return `HOST[:PORT]`, with the default port of Sentinels added, which redis-py does not know."""
    host, colon, port = host_port.rpartition(":") if not host_port.endswith("]") else (host_port, "", "")
    if not (host if colon else host_port).strip("[]") or (
        colon and not (port.isascii() and 0 < int(port or 0) < 65536)
    ):
        raise UrlMistake("a host is not HOST:PORT")
    return host_port if colon or kind != "sentinel" else f"{host_port}:{_SENTINEL_PORT}"


def _pool_for(url: str) -> ConnectionPool:
    """Have redis-py parse the URL of one server. Raises ValueError and TypeError."""
    return ConnectionPool.from_url(url)


def _server(pool: ConnectionPool) -> RedisServer:
    """Return the server that a pool would connect to.

    Raises TypeError for unknown options, UrlMistake for unusable files.
    """
    connection = pool.connection_class(**pool.connection_kwargs)
    try:
        tls = connection.ssl_context.get() if isinstance(connection, SSLConnection) else None
    except OSError as error:
        why = error.strerror or "not a certificate or a key"
        raise UrlMistake(f"a file that it names for TLS cannot be used: {why}") from None
    return RedisServer(
        host=getattr(connection, "host", ""),
        port=int(getattr(connection, "port", 0)),
        path=getattr(connection, "path", ""),
        db=int(connection.db),
        username=connection.username or "",
        password=connection.password or "",
        tls=tls,
    )
