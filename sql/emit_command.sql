-- Says something to walcache, as an application would: a message in the log.
SELECT pg_logical_emit_message(true, 'walcache', $1::text)::text AS lsn
