#!lua flags=allow-oom
-- Sets fields of the fence: how far it has come, generations, shapes, the source.
-- KEYS: the fence. ARGV: 1 the epoch, 2 what must be done at least (empty: nothing is known yet), then fields and
-- values; an empty value removes the field.
local fence = redis.call('HMGET', KEYS[1], 'epoch', 'done')
if fence[1] and fence[1] > ARGV[1] then
  return redis.error_reply('FENCED another epoch stands')
end
if fence[1] ~= ARGV[1] or (ARGV[2] ~= '' and (not fence[2] or fence[2] < ARGV[2])) then
  return redis.error_reply('WENTBACK the epoch or what is done is missing or less than what was acknowledged')
end
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return redis.status_reply('OK')
