#!lua flags=allow-oom
-- Takes the fence over for a new epoch, before anything is written under it.
-- KEYS: the fence. ARGV: the epoch. Returns the fence as it stood; refused where this epoch or a higher one stands.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch and epoch >= ARGV[1] then
  return redis.error_reply('FENCED epoch ' .. epoch .. ' stands')
end
local before = redis.call('HGETALL', KEYS[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
return before
