#!lua flags=allow-oom
-- Applies the newest image of each of many keys, of entities for which 5, 6, 8 and 10 are the same.
-- KEYS: the fence, then the entries.
-- ARGV: 1 epoch, 2 what must be done at least, 3 the high-water mark to set, 4 the one that stood when this leader took
-- over, 5 what is taken off a text's due time to get its life in ms, 6 '1' to write absent entries too, 7 what is done once
-- this has run (empty: more of the batch is to follow), 8 the generation of all the texts, 9 the least of their LSNs, 10 what
-- becomes of the lives of entries that are replaced (see below), then the entries' texts.
-- Each text carries its own LSN c as lo = hi. Returns how many entries may have been written.
local fence = redis.call('HMGET', KEYS[1], 'epoch', 'done', 'filled')
if fence[1] and fence[1] > ARGV[1] then
  return redis.error_reply('FENCED another epoch stands')
end
-- No epoch or an older one: a server that was emptied, or came back as it once was.
if fence[1] ~= ARGV[1] or not fence[2] or fence[2] < ARGV[2] then
  return redis.error_reply('WENTBACK what is done is missing or less than what was acknowledged')
end
-- The life of an entry goes on ('expiry'): what nobody reads ends in time, however often it changes. With 'due' it also
-- stays due when it was, or is so sooner. With 'own' each text has a life of its own.
local call, sub = redis.call, string.sub
local takeover, base, populate, generation, least = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1', ARGV[8], ARGV[9]
local lives = ARGV[10]
local function life(text)
  return string.format('%.0f', tonumber(sub(text, 84, 96)) - base)
end
if least > takeover and (not fence[3] or least > fence[3]) and not populate and lives ~= 'due' then
  -- The common case: these changes are new, and no fill can have seen them. So whatever stands at their keys is older,
  -- and a lease that is replaced by the newest image is voided, too. Looking would cost a third more.
  for i = 2, #KEYS do
    if lives == 'own' then
      call('SET', KEYS[i], ARGV[i + 9], 'XX', 'PX', life(ARGV[i + 9]))
    else
      call('SET', KEYS[i], ARGV[i + 9], 'XX', 'KEEPTTL')
    end
  end
  call('HSET', KEYS[1], 'hw', ARGV[3])
  if ARGV[7] ~= '' then
    call('HSET', KEYS[1], 'done', ARGV[7])
  end
  return #KEYS - 1
end
local written = 0
-- The text has taken the old one's place.
local function replaced(key, text, old)
  written = written + 1
  if lives == 'own' then
    call('PEXPIRE', key, life(text))
  elseif lives == 'due' and sub(old, 78, 83) == ',"x":"' then
    local due = sub(old, 84, 96)
    if due < sub(text, 84, 96) and due ~= '0000000000000' then
      call('SET', key, sub(text, 1, 83) .. due .. sub(text, 97), 'KEEPTTL')
    end
  end
end
for i = 2, #KEYS do
  local key, text = KEYS[i], ARGV[i + 9]
  -- One call where the entry is there and older; what it replaced is looked at afterwards.
  local old = redis.pcall('SET', key, text, 'XX', 'GET', 'KEEPTTL')
  if type(old) == 'table' then
    -- Not a string, so not ours (WRONGTYPE); or it cannot be written. A miss is always right.
    call('DEL', key)
  elseif not old then
    if populate and sub(text, 8, 23) > takeover then
      call('SET', key, text, 'PX', life(text))
      written = written + 1
    end
  elseif sub(old, 1, 7) ~= '{"lo":"' then
    -- A lease, which the event voids.
    call('DEL', key)
  else
    local c, hi = sub(text, 8, 23), sub(old, 32, 47)
    if sub(old, 55, 70) < generation then
      -- Of an older generation, so as good as absent. A replayed event must not bring back what was since dropped.
      if c > takeover then
        replaced(key, text, old)
      else
        call('DEL', key)
      end
    elseif c > hi then
      replaced(key, text, old)
    else
      local lo = sub(old, 8, 23)
      if c > lo then
        -- It may or may not be in there.
        call('DEL', key)
      elseif c == lo and sub(text, 77, 77) == '1' then
        -- A later piece of the same transaction; in a replay it cannot be told from an earlier one.
        if c > takeover then
          replaced(key, text, old)
        else
          call('DEL', key)
        end
      else
        call('SET', key, old, 'KEEPTTL')
      end
    end
  end
end
call('HSET', KEYS[1], 'hw', ARGV[3])
if ARGV[7] ~= '' then
  call('HSET', KEYS[1], 'done', ARGV[7])
end
return written
