-- How slot $1 stands: how much log it keeps the server from removing, and how much more may be written before the server
-- removes what it needs (null: no limit, or it is lost). Why it was invalidated is told from Postgres 17 on; before, the
-- view has no such column, which to_jsonb forgives.
SELECT wal_status,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn)::bigint AS retained,
       safe_wal_size AS safe,
       to_jsonb(s) ->> 'invalidation_reason' AS invalidated
FROM pg_replication_slots s
WHERE slot_name = $1
