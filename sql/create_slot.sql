-- Creates slot $1 with output plugin $2, and says from where it streams. Waits for transactions that run.
SELECT lsn::text FROM pg_create_logical_replication_slot($1, $2)
