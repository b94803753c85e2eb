#!lua flags=no-writes
-- Reads what stands at keys, as far as a number of bytes goes: for people, who may ask for more than fits into memory.
-- KEYS: the entries. ARGV: 1 how many bytes to give at most, 2 how many a text may have that is given alone.
-- Returns for each the text; false where nothing stands, or no string; 1 where it would be more than may be given.
local left, alone = tonumber(ARGV[1]), tonumber(ARGV[2])
local found = {}
local none = true
for i = 1, #KEYS do
  found[i] = false
  -- An error, which is a table, where it is no string.
  local length = redis.pcall('STRLEN', KEYS[i])
  if type(length) == 'number' and length > 0 then
    if length <= left or none and length <= alone then
      left, none = left - length, false
      found[i] = redis.call('GET', KEYS[i])
    else
      found[i] = 1
    end
  end
end
return found
