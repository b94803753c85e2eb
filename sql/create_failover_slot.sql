-- As create_slot.sql, from Postgres 17 on: a slot that standbys keep in step, so that it is there after a promotion.
SELECT lsn::text FROM pg_create_logical_replication_slot($1, $2, failover => true)
