# SPDX-License-Identifier: GPL-3.0-or-later
"""State in a Redis (or Valkey) that all relays share: one round trip for each call, one script for all hits of it.

A script runs alone and to its end, so hits are exact however many relays count, and all or none: every script writes
first what may be refused (memory full, read-only replica), and Redis refuses only the first write of a script.

Times are those of the relays (keep their clocks in step; a window is off by as much as they are). So a value carries
its expiry in front (`1700000000.000 value`); Redis' own expiry only frees the memory. `born` and `secret` have none,
so that the volatile-* policies of a full Redis do not evict them; do not use allkeys-*.

A greylist entry (a 52-byte key, a value of 20 bytes) takes about 220 bytes of Redis' memory, a limit with one event
and its token about 370.
"""

import time
from collections.abc import Sequence
from hashlib import sha1
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from gatekeeper.store import Clock, Hit, Lease, StoreError
from gatekeeper.stores.origin import FOREVER, Origin
from gatekeeper.stores.window import Place, place, spread

PREFIX = "gatekeeper:"
CONNECTIONS = 16
"""At most, for each process; who finds none free waits, within the store's time limit."""

_SET_ABSENT = """
local kept = redis.call('GET', KEYS[1])
if kept and tonumber(string.match(kept, '^%S+')) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
# For each hit two keys (sums, token) and seven arguments: amount, slot, first, last, time to live in ms, 1 with a
# token, the most that the sum may be. What is left of the keys is read.
_ASK = """
local sums, hits = {}, #ARGV / 7
local pending, added, fits = {}, {}, true
for i = 1, hits do
  local name, token = KEYS[2 * i - 1], KEYS[2 * i]
  local amount, slot, first, last, ttl, once, most = unpack(ARGV, 7 * i - 6, 7 * i)
  first, last = tonumber(first), tonumber(last)
  local counts = amount ~= '0'
  if counts and once == '1' then
    local seen = tonumber(redis.call('GET', token))
    counts = not added[token] and not (seen and first <= seen and seen <= last)
    added[token] = true
  end
  if counts then added[name] = (added[name] or 0) + tonumber(amount) end
  local sum, all, old = added[name] or 0, redis.call('HGETALL', name), {}
  for j = 1, #all, 2 do
    local at = tonumber(all[j])
    if first <= at and at <= last then
      sum = sum + tonumber(all[j + 1])
    elseif at < first then
      old[#old + 1] = all[j]
    end
  end
  if counts then pending[#pending + 1] = {name, once == '1' and token, slot, amount, ttl, old} end
  if most ~= '' and sum > tonumber(most) then fits = false end
  sums[i] = sum
end
if fits then
  for _, hit in ipairs(pending) do
    local name, token, slot, amount, ttl, old = unpack(hit)
    if token then redis.call('SET', token, slot, 'PX', ttl) end
    redis.call('HINCRBY', name, slot, amount)
    redis.call('PEXPIRE', name, ttl)
    if #old > 0 then redis.call('HDEL', name, unpack(old)) end
  end
end
if #KEYS == 2 * hits then return {sums, {}} end
return {sums, redis.call('MGET', unpack(KEYS, 2 * hits + 1))}
"""
_UNHIT = """
for i = 1, #KEYS / 2 do
  local name, token = KEYS[2 * i - 1], KEYS[2 * i]
  local left, once = tonumber(ARGV[7 * i - 6]), ARGV[7 * i - 1]
  local slots = {}
  if once == '1' then
    local seen = redis.call('GET', token)
    if seen then
      slots[1] = seen
      redis.call('DEL', token)
    end
  else
    slots = redis.call('HKEYS', name)
    table.sort(slots, function(a, b) return tonumber(a) > tonumber(b) end)
  end
  for _, slot in ipairs(slots) do
    local amount = tonumber(redis.call('HGET', name, slot)) or 0
    if left >= amount then
      redis.call('HDEL', name, slot)
    elseif left > 0 then
      redis.call('HINCRBY', name, slot, -left)
    end
    left = left - amount
  end
end
"""

# A sorted set for each key: holders by when their lease ends. Arguments: now, then, time to live in ms, and for each
# key the holder and the most that there may be.
_LEASE = """
local now, ends, ttl = ARGV[1], ARGV[2], ARGV[3]
local counts, fits = {}, true
for i, key in ipairs(KEYS) do
  local holder, most = ARGV[2 * i + 2], ARGV[2 * i + 3]
  local count = redis.call('ZCOUNT', key, '(' .. now, '+inf')
  local mine = tonumber(redis.call('ZSCORE', key, holder))
  if not mine or mine <= tonumber(now) then count = count + 1 end
  if most ~= '' and count > tonumber(most) then fits = false end
  counts[i] = count
end
if fits then
  for i, key in ipairs(KEYS) do
    redis.call('ZADD', key, ends, ARGV[2 * i + 2])
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    redis.call('PEXPIRE', key, ttl)
  end
end
return counts
"""
_RELEASE = """
for i, key in ipairs(KEYS) do redis.call('ZREM', key, ARGV[i]) end
"""


class RedisStore:
    """See store.Store. `url` is redis://, rediss://, unix:// or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB.

    Connects at the first use. `timeout` is in seconds. Raises ValueError for a url that cannot be used.
    """

    def __init__(self, url: str, clock: Clock = time.time, timeout: float = 0.1) -> None:
        self._clock = clock
        self._client = _client(url, timeout)
        self._origin = Origin(self, clock)

    async def ask(self, hits: Sequence[Hit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        if not hits and not gets:
            return [], []
        keys, arguments = self._places(hits)
        sums, values = await self._script(_ASK, [*keys, *(PREFIX + key for key in gets)], arguments)
        return [int(total) for total in sums], [self._value(kept) for kept in values]

    async def get(self, key: str) -> bytes | None:
        return self._value(await self._call("GET", PREFIX + key))

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        now = self._clock()
        kept = f"{now + ttl:.3f} ".encode() + value
        ms = str(_ms(ttl)) if ttl < FOREVER else ""
        if absent:
            return bool(await self._script(_SET_ABSENT, [PREFIX + key], [f"{now:.3f}", kept, ms]))
        await self._call("SET", PREFIX + key, kept, *(("PX", ms) if ms else ()))
        return True

    async def delete(self, key: str) -> None:
        await self._call("DEL", PREFIX + key)

    async def hit(self, hits: Sequence[Hit]) -> list[int]:
        return (await self.ask(hits, ()))[0]

    async def unhit(self, hits: Sequence[Hit]) -> None:
        if hits:
            await self._script(_UNHIT, *self._places(hits))

    async def spread(self, hit: Hit) -> list[tuple[float, int]]:
        now = self._clock()
        sums = await self._call("HGETALL", PREFIX + place(hit, now).name)
        return spread(hit, now, {int(slot): int(amount) for slot, amount in sums.items()})

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        now = self._clock()
        arguments: list[str | bytes | int] = [f"{now:.3f}", f"{now + ttl:.3f}", _ms(ttl)]
        for lease in leases:
            arguments += [lease.holder, "" if lease.most is None else lease.most]
        taken = await self._script(_LEASE, [PREFIX + lease.key for lease in leases], arguments) if leases else []
        return [int(count) for count in taken]

    async def release(self, leases: Sequence[Lease]) -> None:
        if leases:
            await self._script(_RELEASE, [PREFIX + lease.key for lease in leases], [lease.holder for lease in leases])

    async def born(self) -> float:
        return await self._origin.born()

    async def secret(self) -> bytes:
        return await self._origin.secret()

    async def close(self) -> None:
        await self._client.aclose()

    def _value(self, kept: bytes | None) -> bytes | None:
        if kept is None:
            return None
        expires, _, value = kept.partition(b" ")
        return bytes(value) if float(expires) > self._clock() else None

    def _places(self, hits: Sequence[Hit]) -> tuple[list[str], list[str | bytes | int]]:
        now = self._clock()
        keys: list[str] = []
        arguments: list[str | bytes | int] = []
        for hit in hits:
            at = place(hit, now)
            keys += _keys(at)
            most = "" if hit.most is None else hit.most
            arguments += [at.amount, at.slot, at.first, at.last, _ms(at.ttl), 1 if at.token else 0, most]
        return keys, arguments

    async def _script(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        try:
            return await self._call("EVALSHA", _SHA[script], len(keys), *keys, *arguments)
        except NoScriptError:  # a new, restarted or emptied server
            return await self._call("EVAL", script, len(keys), *keys, *arguments)

    async def _call(self, *words: str | bytes | int) -> Any:
        """One command. Raises StoreError; then all connections are made anew, to what may be another server."""
        try:
            return await self._client.execute_command(*words)  # type: ignore[no-untyped-call]  # has none
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            await self._client.connection_pool.disconnect(inuse_connections=False)
            raise StoreError(str(error) or type(error).__name__) from None


_SHA = {
    script: sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (_SET_ABSENT, _ASK, _UNHIT, _LEASE, _RELEASE)
}


def _keys(at: Place) -> tuple[str, str]:
    # Without a token the second key is not used, but every hit has two.
    return PREFIX + at.name, PREFIX + (at.token or at.name)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _client(url: str, timeout: float) -> "redis.asyncio.Redis":
    """Not connected yet. No retries: a `hit` whose answer was lost would count twice."""
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": None,  # the time limit is GuardedStore's, for a call and for a probe
        "socket_timeout": None,
        "protocol": 2,
    }
    if url.startswith("redis+sentinel:"):
        return _sentinel(url, options)
    pool: Any = redis.asyncio.BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, timeout=timeout, **options
    )
    pool.connection_class(**pool.connection_kwargs)  # raises now what an unknown option would raise at the first use
    return redis.asyncio.Redis.from_pool(pool)


def _sentinel(url: str, options: dict[str, Any]) -> "redis.asyncio.Redis":
    parts = urlsplit(url)
    hosts = [_host(text) for text in parts.netloc.rpartition("@")[2].split(",")]
    sentinel_options = dict(options)
    service, _, db = parts.path.strip("/").partition("/")
    if not service or (db and not db.isdigit()):
        raise ValueError("a Sentinel is written redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB")
    options |= {"db": int(db or 0), "username": parts.username or None, "password": parts.password}
    sentinel: Any = Sentinel(hosts, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]  # has none
    client: redis.asyncio.Redis = sentinel.master_for(service, **options)
    return client


def _host(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, "26379"
    if not host.strip("[]") or not port.isdigit():
        raise ValueError(f"{text!a} is not HOST:PORT")
    return host.strip("[]"), int(port)
