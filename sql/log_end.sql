-- The end of the flushed log.
SELECT pg_current_wal_flush_lsn()::text
