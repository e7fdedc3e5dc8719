"""The one script that Valkey (or Redis) runs for a request, and how it is spoken to.

It counts as memory.py does, with the server's own time.  All keys have one hash tag, so that a cluster keeps them on
one shard: a request is charged on its key, its team, its user and its model at once, and the model's meter is
everybody's.  Every key has a time to live, so that nothing stays of what nobody uses.

What is kept of a meter:

- a rate: a hash of `l`, its level in units times MINUTE, and `a`, the millisecond at which that was so;
- places: a sorted set of leases, scored by the millisecond at which each ends unless its holder renews it;
- a budget: a hash of `s`, what is spent, `v`, what is reserved, `r`, the server's run in which `s` was held against the
  ledger last, `x`, the millisecond before which no lease ends, and for each lease `<amount>:<end>`.
"""

from __future__ import annotations

from gateway.domain.limits import Meter, Unit

#: What all keys begin with.
TAG = "{lora-gateway}:1:"
#: Milliseconds that a lease lasts unless it is renewed.
LEASE = 9_000
MEMBERS = TAG + "members"

#: What the script calls the units.
CODES = {
    Unit.REQUESTS: "q",
    Unit.TOKENS: "t",
    Unit.CONCURRENT: "c",
    Unit.TOKEN_BUDGET: "b",
    Unit.MONEY_BUDGET: "b",
}

#: The first number of an answer.
DENIED, GRANTED, UNKNOWN = 0, 1, 2

SCRIPT = """\
local MINUTE, DEBT, LEASE, DAY = 60000, 3600000, 9000, 86400000
local op, now, lease, run = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

local function ceil(a, b) return -math.floor(-a / b) end

local function whole(n) return string.format('%.0f', n) end

local function level_of(key, limit)
  local kept = redis.call('HMGET', key, 'l', 'a')
  if not kept[1] then return 0 end
  local gone = now - tonumber(kept[2])
  if gone >= DEBT then return 0 end
  return math.max(0, tonumber(kept[1]) - gone * limit)
end

local function fill(key, limit, level)
  redis.call('HSET', key, 'l', whole(level), 'a', whole(now))
  redis.call('PEXPIRE', key, whole(ceil(level, limit) + MINUTE))
end

local function places(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
  return redis.call('ZCARD', key)
end

local function occupy(key, who)
  redis.call('ZADD', key, whole(now + LEASE), who)
  redis.call('PEXPIRE', key, 2 * LEASE)
end

-- What is spent and what is reserved; nothing where the ledger must be asked first.
local function purse(key, seed)
  local kept = redis.call('HMGET', key, 's', 'v', 'r', 'x')
  local spent, reserved, sure = tonumber(kept[1] or 0), tonumber(kept[2] or 0), tonumber(kept[4] or 0)
  if not kept[1] or kept[3] ~= run then
    if not seed then return nil end
    spent = math.max(spent, seed)
    redis.call('HSET', key, 's', whole(spent), 'v', whole(reserved), 'r', run, 'x', whole(sure))
    redis.call('PEXPIRE', key, 40 * DAY)
  end
  if reserved > 0 and now >= sure then
    local fields, soonest = redis.call('HGETALL', key), now + LEASE
    for i = 1, #fields, 2 do
      local amount, ends = string.match(fields[i + 1], '^(%d+):(%d+)$')
      if amount then
        if tonumber(ends) <= now then
          reserved = reserved - tonumber(amount)
          redis.call('HDEL', key, fields[i])
        else
          soonest = math.min(soonest, tonumber(ends))
        end
      end
    end
    reserved = math.max(0, reserved)
    redis.call('HSET', key, 'v', whole(reserved), 'x', whole(soonest))
  end
  return spent, reserved
end

-- The lease reserves so much from now on, whatever it did before; or, with `more`, so much more.
local function reserve(key, who, amount, more)
  local before = tonumber(string.match(redis.call('HGET', key, who) or '', '^(%d+)') or 0)
  local after = more and before + amount or amount
  local reserved = tonumber(redis.call('HGET', key, 'v') or 0)
  local together = math.max(0, reserved + after - before)
  redis.call('HSET', key, who, whole(after) .. ':' .. whole(now + LEASE), 'v', whole(together))
  if reserved <= 0 then redis.call('HSET', key, 'x', whole(now + LEASE)) end
  redis.call('PEXPIRE', key, 40 * DAY)
end

local function unreserve(key, who)
  local amount = tonumber(string.match(redis.call('HGET', key, who) or '', '^(%d+)') or 0)
  if amount > 0 then redis.call('HINCRBY', key, 'v', whole(-amount)) end
  redis.call('HDEL', key, who)
end

if op == 'acquire' then
  local levels, purses, denied, unknown = {}, {}, nil, {2}
  local function deny(i, remaining, retry, reset, spent)
    if not denied or (denied[4] >= 0 and (retry < 0 or retry > denied[4])) then
      denied = {0, i, remaining, retry, reset, spent}
    end
  end
  for i, key in ipairs(KEYS) do
    local at = 1 + 4 * i
    local unit, limit, amount, seed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    levels[i] = 0
    if unit == 'q' or unit == 't' then
      amount = math.min(amount, limit)
      local before = level_of(key, limit)
      local level = before + amount * MINUTE
      levels[i] = level
      if level > limit * MINUTE or limit < 1 then
        local per = math.max(1, limit)
        deny(i, math.max(0, math.floor((limit * MINUTE - before) / MINUTE)), ceil(level - limit * MINUTE, per),
             ceil(before, per), 0)
      end
    elseif unit == 'c' then
      if places(key) >= limit then deny(i, 0, 1000, 0, 0) end
    else
      local spent, reserved = purse(key, seed)
      if not spent then
        unknown[#unknown + 1] = i
      elseif amount > limit - spent - reserved then
        deny(i, math.max(0, limit - spent - reserved), -1, 0, spent)
      end
    end
  end
  if #unknown > 1 then return unknown end
  if denied then return denied end
  local answer = {1, now}
  for i, key in ipairs(KEYS) do
    local at = 1 + 4 * i
    local unit, limit, amount = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    if unit == 'q' or unit == 't' then
      fill(key, limit, levels[i])
    elseif unit == 'c' then
      occupy(key, lease)
    else
      reserve(key, lease, amount, true)
    end
    answer[2 + i] = levels[i]
  end
  return answer
end

if op == 'top_up' then
  local unknown = {2}
  for i, key in ipairs(KEYS) do
    local at = 2 + 3 * i
    local limit, amount, seed = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local spent, reserved = purse(key, seed)
    if not spent then
      unknown[#unknown + 1] = i
    elseif amount > limit - spent - reserved then
      return {0, i, math.max(0, limit - spent - reserved), -1, 0, spent}
    end
  end
  if #unknown > 1 then return unknown end
  for i, key in ipairs(KEYS) do reserve(key, lease, tonumber(ARGV[3 + 3 * i]), true) end
  return {1, now}
end

if op == 'release' then
  for i, key in ipairs(KEYS) do
    local at = 5 * i
    local unit, limit, amount = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local mark, since = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    if unit == 't' then
      local level, change = level_of(key, limit), amount * MINUTE
      if change < 0 then
        change = math.max(change, -math.max(0, mark - math.min(now - since, DEBT) * limit))
      end
      if change ~= 0 then fill(key, limit, math.min(math.max(0, level + change), limit * DEBT)) end
    elseif unit == 'c' then
      redis.call('ZREM', key, lease)
    elseif redis.call('EXISTS', key) == 1 then
      unreserve(key, lease)
      redis.call('HINCRBY', key, 's', whole(amount))
    end
  end
  return {1, now}
end

-- The holder is alive, and these leases are its.
if op == 'hold' then
  for i = 6, #ARGV, 2 do
    if ARGV[5] == 'c' then
      occupy(KEYS[1], ARGV[i])
    elseif redis.call('EXISTS', KEYS[1]) == 1 then
      reserve(KEYS[1], ARGV[i], tonumber(ARGV[i + 1]), false)
    end
  end
  return {1, now}
end

-- These leases are over, and it was not told when they were.
if op == 'drop' then
  for i = 6, #ARGV do
    if ARGV[5] == 'c' then redis.call('ZREM', KEYS[1], ARGV[i]) else unreserve(KEYS[1], ARGV[i]) end
  end
  return {1, now}
end

-- It may have been told what was spent, or not: the ledger knows.
if op == 'doubt' then
  redis.call('HDEL', KEYS[1], 'r')
  return {1, now}
end

-- What was used while nobody could be told.
if op == 'owe' then
  local unit, limit, amount = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
  if unit == 'b' then
    if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HINCRBY', KEYS[1], 's', whole(amount)) end
  else
    local level = level_of(KEYS[1], limit)
    fill(KEYS[1], limit, math.max(level, math.min(level + amount, limit * MINUTE)))  -- it may be said twice
  end
  return {1, now}
end

if op == 'leave' then
  redis.call('ZREM', KEYS[1], lease)
  return {1, now}
end

-- A process is there; how many are.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(now))
redis.call('ZADD', KEYS[1], whole(now + LEASE), lease)
redis.call('PEXPIRE', KEYS[1], 2 * LEASE)
return {1, redis.call('ZCARD', KEYS[1])}
"""


def key_of(meter: Meter) -> str:
    """Where a meter is kept."""
    return TAG + meter.name
