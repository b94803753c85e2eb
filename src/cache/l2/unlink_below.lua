#!lua flags=allow-oom
-- Removes what has not seen everything up to a floor: entries of a lower lo, and leases. Dropping more than that is never
-- wrong, so nothing is fenced here.
-- KEYS: the entries. ARGV: the floor of each. Returns how many were removed.
local removed = 0
for i = 1, #KEYS do
  -- An error, which is a table, where it is no string.
  local head = redis.pcall('GETRANGE', KEYS[i], 0, 22)
  if type(head) == 'string' and (string.sub(head, 1, 9) == '{"lease":'
      or (string.sub(head, 1, 7) == '{"lo":"' and string.sub(head, 8, 23) < ARGV[i])) then
    removed = removed + redis.call('UNLINK', KEYS[i])
  end
end
return removed
