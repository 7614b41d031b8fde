# SPDX-License-Identifier: GPL-3.0-or-later
"""Open the store that a URL names: the one module that knows which URL means which back end."""

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gatekeeper.core import redaction
from gatekeeper.stores.circuit_breaker import CircuitBreaker
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.readonly import ReadOnlyStore
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import Clock, Store

if TYPE_CHECKING:
    from gatekeeper.stores.redis.store import RedisStore

_ALLOWED = (
    "sqlite:/absolute/path, memory:, redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///path/to/socket?db=0, "
    "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB or redis+cluster://HOST:PORT,HOST:PORT"
)


async def open_store(
    url: str,
    clock: Clock = time.time,
    timeout: float = 0.1,  # noqa: ASYNC109 (of each later call, not of this one)
    *,
    read_only: bool = False,
) -> CircuitBreaker:
    """Open the store at `url` and try it. Raises ValueError, with what is allowed, for a URL that cannot be used.

    A store that does not answer is not an error: it is logged, its calls raise StoreError, and it comes back by itself.
    With `read_only` nothing is created or changed, and writes are answered as if they had happened.
    """
    store = CircuitBreaker(_back_end(url, clock, timeout, read_only), name=describe(url))
    await store.start()
    return store


def check_url(url: str) -> None:
    """Raise ValueError, with what is allowed, for a URL that cannot be used. Opens nothing."""
    _back_end(url, time.time, 0.1, True)


def describe(url: str) -> str:
    """Return `url` without the secrets in it, for logs and errors."""
    return redaction.url_without_secrets(url)


def preload(url: str) -> None:
    """Import now what the store at `url` needs later, for workers that drop their privileges."""
    if url.partition(":")[0] in redaction.STORE_SCHEMES:
        importlib.import_module("gatekeeper.stores.redis.cluster")  # which imports all that Redis needs
        "localhost".encode("idna")  # what resolving a host name imports


def sqlite_path(url: str) -> Path | None:
    """Return the path of the file if `url` names an SQLite store, else None."""
    scheme, _, rest = url.partition(":")
    return Path("/" + rest.lstrip("/")) if scheme == "sqlite" and rest.startswith("/") else None


def _back_end(url: str, clock: Clock, timeout: float, read_only: bool) -> Store:
    scheme, _, rest = url.partition(":")
    store: Store
    if scheme == "memory" and not rest:
        return MemoryStore(clock)
    path = sqlite_path(url)
    if path is not None:
        if read_only:
            store = MemoryStore(clock) if _is_missing(path) else SqliteStore(path, clock, timeout, read_only=True)
            return ReadOnlyStore(store, clock)
        return SqliteStore(path, clock, timeout)
    if scheme in redaction.STORE_SCHEMES:
        # Imported here: TLS and the reply parser are some megabytes that the default does not need.
        from gatekeeper.stores.redis.servers import UrlMistake

        try:
            store = redis_store(url, clock, timeout)
        except UrlMistake as error:
            raise ValueError(f"{redaction.url_scheme(url)} cannot be used: {error}; allowed are {_ALLOWED}") from None
        return ReadOnlyStore(store, clock) if read_only else store
    # Whatever it is, a password may be in it.
    raise ValueError(f"{redaction.url_scheme(url) or 'what it says'} is not a store; allowed are {_ALLOWED}")


def redis_store(url: str, clock: Clock = time.time, timeout: float = 0.1) -> "RedisStore":
    """Return the store in Redis at `url` (for its syntax see stores/redis/servers.py), not connected yet.

    Raises ValueError.
    """
    # Imported here: TLS and the reply parser are some megabytes that the default does not need.
    from gatekeeper.stores.redis.link import ServerLink
    from gatekeeper.stores.redis.servers import parse_redis_url
    from gatekeeper.stores.redis.store import RedisStore

    servers = parse_redis_url(url)
    if servers.cluster:
        from gatekeeper.stores.redis.cluster import ClusterStore

        return ClusterStore(servers, clock, timeout)
    return RedisStore(ServerLink(servers.open, timeout), clock)


def _is_missing(path: Path) -> bool:
    """Return True if there is no such file. One that we may not look for may exist: opening it reports the error."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
