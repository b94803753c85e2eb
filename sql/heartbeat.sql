-- Something to stream where nothing else happens, so that the slot advances. Not part of a transaction.
SELECT pg_logical_emit_message(false, 'walcache.heartbeat', '')
