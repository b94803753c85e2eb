-- Where slot $1 stands, and whether the server has removed log that it needed.
SELECT confirmed_flush_lsn::text AS confirmed, coalesce(wal_status = 'lost', false) AS lost
FROM pg_replication_slots
WHERE slot_name = $1
