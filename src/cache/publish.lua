-- Publishes fills whose lease still stands.
-- KEYS: the fence, then the entries. ARGV: the lease's text, the entries' life in ms, the texts' hi, then the texts.
-- Returns for each key 1 if it was published, 0 if the lease was voided by an event, expired or evicted.
local lease, life = ARGV[1], ARGV[2]
local published = {}
local any = false
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) == lease then
    redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', life)
    published[i - 1] = 1
    any = true
  else
    published[i - 1] = 0
  end
end
if any then
  -- Events beyond this are in no entry yet: they need not look (see apply.lua).
  local filled = redis.call('HGET', KEYS[1], 'filled')
  if not filled or filled < ARGV[3] then
    redis.call('HSET', KEYS[1], 'filled', ARGV[3])
  end
end
return published
