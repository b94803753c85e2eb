-- The replication slot $1, if there is one. What later versions tell of it is null on earlier ones.
SELECT slot_type::text AS slot_type,
       plugin::text AS plugin,
       database::text AS database,
       active_pid,
       temporary,
       wal_status,
       to_jsonb(s) ->> 'invalidation_reason' AS invalidated,
       (to_jsonb(s) ->> 'failover')::bool AS failover
FROM pg_replication_slots s
WHERE slot_name = $1
