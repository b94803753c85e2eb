-- Where slot $1 stands, whether the server has invalidated it (and why: told from Postgres 17 on), whether standbys keep it
-- in step (null before 17), and whether it is one that plugin $2 writes for this database.
SELECT confirmed_flush_lsn::text AS confirmed,
       coalesce(wal_status = 'lost', false) OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL AS lost,
       to_jsonb(s) ->> 'invalidation_reason' AS invalidated,
       (to_jsonb(s) ->> 'failover')::bool AS failover,
       active,
       CASE
           WHEN slot_type <> 'logical' THEN 'is a ' || slot_type || ' slot'
           WHEN database <> current_database() THEN 'belongs to database "' || database || '"'
           WHEN plugin <> $2::text THEN 'decodes with "' || plugin || '", not "' || $2::text || '"'
       END AS foreign_to_us
FROM pg_replication_slots s
WHERE slot_name = $1
