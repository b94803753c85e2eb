-- A message in the log, and its LSN. It comes back through the stream, which proves the connection, lets the slot advance
-- where nothing else happens, and tells how current what was applied is. As a transaction of its own that waits for this
-- server's disk, so that it is on its way within milliseconds: a message without one would wait for the WAL writer. No
-- standby is waited for.
SELECT pg_logical_emit_message(true, 'walcache.heartbeat', '')::text AS lsn,
       set_config('synchronous_commit', 'local', true)
