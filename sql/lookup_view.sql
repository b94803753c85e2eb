-- The first statement of a round: which transactions its snapshot does not see, and a position that lies after all that it
-- sees, for a commit is in the log before any snapshot sees it.
SELECT pg_current_snapshot()::text AS snapshot, pg_current_wal_insert_lsn()::text AS lsn
