#!lua flags=allow-oom
-- Drops an entry if the very text that was found wrong still stands there: whatever else stands there came later.
-- KEYS: the entry. ARGV: the text. Returns 1 if it was dropped.
if redis.pcall('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
