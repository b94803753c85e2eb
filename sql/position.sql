-- For the lag in bytes: the end of the flushed log, and where slot $1 holds it back.
SELECT pg_current_wal_flush_lsn()::text AS flushed,
       (SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1) AS retained
