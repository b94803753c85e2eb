-- Looks entries up, and takes a lease where there is none.
-- KEYS: the fence, then the entries. ARGV: the lease's text, its life in ms, the entity's generation.
-- Returns the high-water mark (false if L2 has no fence and must not be trusted), then for each key:
-- the stored entry or foreign lease, or false where this lease now stands.
local hw = redis.call('HGET', KEYS[1], 'hw')
local found = { hw }
if not hw then
  return found
end
local lease, life, generation = ARGV[1], ARGV[2], ARGV[3]
for i = 2, #KEYS do
  -- Whatever is neither a lease nor an entry of this generation counts as absent; also what is no string at all, for
  -- which GET gives an error, a table.
  local stored = redis.pcall('GET', KEYS[i])
  if type(stored) == 'string' and (string.sub(stored, 1, 9) == '{"lease":'
      or (string.sub(stored, 1, 7) == '{"lo":"' and string.sub(stored, 55, 70) >= generation)) then
    found[i] = stored
  else
    redis.call('SET', KEYS[i], lease, 'PX', life)
    found[i] = false
  end
end
return found
