-- Publishes fills whose lease still stands.
-- KEYS: the fence, then the entries. ARGV: the lease's text, what is taken off an entry's due time to get its life in ms
-- (now, less how long it may be served past that), the texts' hi, then the texts.
-- Returns for each key 1 if it was published, 0 if the lease was voided by an event, expired or evicted.
local lease, base = ARGV[1], tonumber(ARGV[2])
local published = {}
local any = false
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) == lease then
    local text = ARGV[i + 2]
    redis.call('SET', KEYS[i], text, 'PX', string.format('%.0f', tonumber(string.sub(text, 84, 96)) - base))
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
