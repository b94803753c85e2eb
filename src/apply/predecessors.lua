#!lua flags=allow-oom
-- Looks up what stands at the keys of changes that do not tell the whole row.
-- KEYS: the fence, then the entries. ARGV: 1 the epoch, 2 what must be done at least, 3 how many bytes to give at most.
-- Returns for each key the text, or false where nothing stands, or no string, or more than may be given.
local fence = redis.call('HMGET', KEYS[1], 'epoch', 'done')
if fence[1] and fence[1] > ARGV[1] then
  return redis.error_reply('FENCED another epoch stands')
end
if fence[1] ~= ARGV[1] or not fence[2] or fence[2] < ARGV[2] then
  return redis.error_reply('WENTBACK what is done is missing or less than what was acknowledged')
end
local left = tonumber(ARGV[3])
local found = {}
for i = 2, #KEYS do
  found[i - 1] = false
  -- An error, which is a table, where it is no string.
  local length = redis.pcall('STRLEN', KEYS[i])
  if type(length) == 'number' and length > 0 and length <= left then
    left = left - length
    found[i - 1] = redis.call('GET', KEYS[i])
  end
end
return found
