# SPDX-License-Identifier: GPL-3.0-or-later
"""Lua scripts for Redis. A script runs alone and to its end, so it is exact however many relays call it.

Each begins its writes with one that may be refused (memory full, read-only replica): Redis refuses only the first write
of a script, so everything is written or nothing.
"""

from hashlib import sha1

from gatekeeper.stores.sliding_window import SLOTS

SET_ABSENT = """
local kept = redis.call('GET', KEYS[1])
if kept and tonumber(string.match(kept, '^%S+')) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
# For each hit two keys (sums, token) and six arguments: amount, slot, time to live in ms, 1 with a token, the limit of
# the sum, the last slot that is not in the future. The remaining keys are read. Returns sums, values, and which hits
# were counted.
ASK = """
local sums, hits = {}, #ARGV / 6
local moves, moved = {}, {}
local pending, added, fits = {}, {}, true
for i = 1, hits do
  local name, token = KEYS[2 * i - 1], KEYS[2 * i]
  local amount, slot, ttl, once, most, newest = unpack(ARGV, 6 * i - 5, 6 * i)
  local first, last = tonumber(slot) - SLOTS, tonumber(slot) + SLOTS
  local counts = amount ~= '0'
  if counts and once == '1' then
    local seen = tonumber(redis.call('GET', token))
    counts = not added[token] and not (seen and first <= seen and seen <= last)
    added[token] = true
  end
  if counts then added[name] = (added[name] or 0) + tonumber(amount) end
  local sum, all, old = added[name] or 0, redis.call('HGETALL', name), {}
  local future, ahead = {}, 0
  for j = 1, #all, 2 do
    local at = tonumber(all[j])
    if first <= at and at <= last then
      sum = sum + tonumber(all[j + 1])
    elseif at < first then
      old[#old + 1] = all[j]
    end
    if at > tonumber(newest) then
      future[#future + 1] = all[j]
      if at <= last then ahead = ahead + tonumber(all[j + 1]) end
    end
  end
  if #future > 0 and amount ~= '0' and not moved[name] then
    moves[#moves + 1] = {name, slot, ahead, ttl, future}
    moved[name] = true
  end
  if counts then pending[#pending + 1] = {name, once == '1' and token, slot, amount, ttl, old, i} end
  if most ~= '' and sum > tonumber(most) then fits = false end
  sums[i] = sum
end
for _, move in ipairs(moves) do
  local name, slot, ahead, ttl, future = unpack(move)
  redis.call('HINCRBY', name, slot, ahead)
  redis.call('HDEL', name, unpack(future))
  redis.call('PEXPIRE', name, ttl)
end
local counted = {}
if fits then
  for n, hit in ipairs(pending) do
    local name, token, slot, amount, ttl, old = unpack(hit)
    counted[n] = hit[7] - 1
    if token then redis.call('SET', token, slot, 'PX', ttl) end
    redis.call('HINCRBY', name, slot, amount)
    redis.call('PEXPIRE', name, ttl)
    if #old > 0 then redis.call('HDEL', name, unpack(old)) end
  end
end
if #KEYS == 2 * hits then return {sums, {}, counted} end
return {sums, redis.call('MGET', unpack(KEYS, 2 * hits + 1)), counted}
""".replace("SLOTS", str(SLOTS))
UNHIT = """
for i = 1, #KEYS / 2 do
  local name, token = KEYS[2 * i - 1], KEYS[2 * i]
  local left, once = tonumber(ARGV[6 * i - 5]), ARGV[6 * i - 2]
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

# A sorted set for each key: holders by the end of their lease. Arguments: now, end of the lease, time to live in ms,
# the latest end that can be right (later ones are of a clock that was ahead); for each key the holder and the limit.
LEASE = """
local now, ends, ttl, latest = unpack(ARGV, 1, 4)
local counts, fits = {}, true
for i, key in ipairs(KEYS) do
  local holder, most = ARGV[2 * i + 3], ARGV[2 * i + 4]
  local count = redis.call('ZCOUNT', key, '(' .. now, '+inf')
  local mine = tonumber(redis.call('ZSCORE', key, holder))
  if not mine or mine <= tonumber(now) then count = count + 1 end
  if most ~= '' and count > tonumber(most) then fits = false end
  counts[i] = count
end
for _, key in ipairs(KEYS) do
  for _, late in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. latest, '+inf')) do
    redis.call('ZADD', key, ends, late)
  end
end
if fits then
  for i, key in ipairs(KEYS) do
    redis.call('ZADD', key, ends, ARGV[2 * i + 3])
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    redis.call('PEXPIRE', key, ttl)
  end
end
return counts
"""
RELEASE = """
for i, key in ipairs(KEYS) do redis.call('ZREM', key, ARGV[i]) end
"""
# A hash of rows with their counts; the empty row holds when all of it expires. Arguments: row, now, expiry, time to
# live in ms, and the limit of rows.
TALLY = """
local key, row, now, ends, ttl, most = KEYS[1], unpack(ARGV)
local until_ = redis.call('HGET', key, '')
if until_ and tonumber(until_) <= tonumber(now) then redis.call('DEL', key) end
local rows = math.max(0, redis.call('HLEN', key) - 1)
if redis.call('HEXISTS', key, row) == 0 and rows >= tonumber(most) then return 0 end
redis.call('HSET', key, '', ends)
redis.call('HINCRBY', key, row, 1)
redis.call('PEXPIRE', key, ttl)
return 1
"""

SHA = {
    script: sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (SET_ABSENT, ASK, UNHIT, LEASE, RELEASE, TALLY)
}
"""The digests by which EVALSHA calls them."""
