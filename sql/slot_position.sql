-- Where slot $1 stands, whether the server has removed log that it needed, and whether it is one that plugin $2 writes for
-- this database.
SELECT confirmed_flush_lsn::text AS confirmed,
       coalesce(wal_status = 'lost', false) AS lost,
       CASE
           WHEN slot_type <> 'logical' THEN 'is a ' || slot_type || ' slot'
           WHEN database <> current_database() THEN 'belongs to database "' || database || '"'
           WHEN plugin <> $2::text THEN 'decodes with "' || plugin || '", not "' || $2::text || '"'
       END AS foreign_to_us
FROM pg_replication_slots
WHERE slot_name = $1
