-- Replaces entries that were claimed for renewal, where the very same still stand. Any event that they did not certainly
-- contain has dropped or replaced them, so then the new value, which was read after the claim, lacks none.
-- KEYS: the fence, then for each entry its key and that of the mark of its renewal. ARGV: what is taken off an entry's due
-- time to get its life in ms, the texts' hi, then for each entry the head that was claimed and the new text (empty: it is
-- dropped). Returns for each entry 1 if it was replaced or dropped, 0 if another stands there, or none.
local base = tonumber(ARGV[1])
local replaced = {}
local any = false
for i = 2, #KEYS, 2 do
  local n = i / 2
  local head, text = ARGV[2 * n + 1], ARGV[2 * n + 2]
  redis.call('DEL', KEYS[i + 1])
  replaced[n] = 0
  if redis.pcall('GETRANGE', KEYS[i], 0, 107) == head then
    if text == '' then
      redis.call('DEL', KEYS[i])
    else
      redis.call('SET', KEYS[i], text, 'PX', string.format('%.0f', tonumber(string.sub(text, 84, 96)) - base))
      any = true
    end
    replaced[n] = 1
  end
end
if any then
  -- As a fill: see publish.lua.
  local filled = redis.call('HGET', KEYS[1], 'filled')
  if not filled or filled < ARGV[2] then
    redis.call('HSET', KEYS[1], 'filled', ARGV[2])
  end
end
return replaced
