-- Claims the renewal of entries that stand: one flight of the fleet at a time renews an entry.
-- KEYS: the fence, then for each entry its key and that of the mark of its renewal. ARGV: the mark's life in ms, the entity's
-- generation, then for each entry when the one was due that is to be renewed.
-- Returns the high-water mark (false if L2 has no fence and must not be trusted), then for each entry: its head if the caller
-- is to renew it; 1 if somebody does; false if there is nothing to renew, no entry of this generation or a newer one.
local hw = redis.call('HGET', KEYS[1], 'hw')
local found = { hw }
if not hw then
  return found
end
local life, generation = ARGV[1], ARGV[2]
for i = 2, #KEYS, 2 do
  local n = i / 2
  found[n + 1] = false
  local head = redis.pcall('GETRANGE', KEYS[i], 0, 107)
  if type(head) == 'string' and #head == 108 and string.sub(head, 1, 7) == '{"lo":"' and string.sub(head, 78, 83) == ',"x":"'
      and string.sub(head, 55, 70) == generation and string.sub(head, 84, 96) <= ARGV[n + 2] then
    if redis.call('SET', KEYS[i + 1], '', 'NX', 'PX', life) then
      found[n + 1] = head
    else
      found[n + 1] = 1
    end
  end
end
return found
