#!lua flags=no-writes
-- What stands at one entry's key, and the fence at the same moment: for people, who may read what readers must not.
-- KEYS: the fence, the entry. ARGV: the entity's name.
-- Returns the fence's fields, the text (false if there is no string), its remaining life in ms, its type.
local fence = redis.call('HMGET', KEYS[1], 'epoch', 'hw', 'done', 'gen', 'gen:' .. ARGV[1])
local text = redis.pcall('GET', KEYS[2])
if type(text) ~= 'string' then
  text = false
end
return { fence, text, redis.call('PTTL', KEYS[2]), redis.call('TYPE', KEYS[2]).ok }
