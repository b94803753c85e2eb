-- The replication slot $1, if there is one.
SELECT slot_type::text AS slot_type,
       plugin::text AS plugin,
       database::text AS database,
       active_pid,
       temporary,
       wal_status
FROM pg_replication_slots
WHERE slot_name = $1
