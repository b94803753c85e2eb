-- Looks entries up, and takes a lease where there is none.
-- KEYS: the fence, then the entries. ARGV: the lease's text, its life in ms, the entity's generation, the time by which what
-- was due counts as over (as it is written in entries), then what the lo of each entry must be at least; no more of these
-- where it may be any.
-- Returns the high-water mark (false if L2 has no fence and must not be trusted), then for each key:
-- the stored entry or foreign lease, or false where this lease now stands.
local hw = redis.call('HGET', KEYS[1], 'hw')
local found = { hw }
if not hw then
  return found
end
local lease, life, generation, over = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
-- Whatever is neither a lease nor an entry of this generation whose life goes on, and which is not voided, counts as absent;
-- also what is no string at all, for which GET gives an error, a table.
local function stands(stored, floor)
  if type(stored) ~= 'string' then
    return false
  end
  if string.sub(stored, 1, 9) == '{"lease":' then
    return true
  end
  local due = string.sub(stored, 84, 96)
  return string.sub(stored, 1, 7) == '{"lo":"' and string.sub(stored, 55, 70) >= generation
    and string.sub(stored, 8, 23) >= floor
    and string.sub(stored, 78, 83) == ',"x":"' and (due > over or due == '0000000000000')
end
for i = 2, #KEYS do
  local stored = redis.pcall('GET', KEYS[i])
  if stands(stored, ARGV[i + 3] or '') then
    found[i] = stored
  else
    redis.call('SET', KEYS[i], lease, 'PX', life)
    found[i] = false
  end
end
return found
