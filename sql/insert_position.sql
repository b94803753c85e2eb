-- The end of what was inserted into the log: nothing that is visible was committed beyond.
SELECT pg_current_wal_insert_lsn()::text
