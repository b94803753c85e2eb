-- The last of the next $1 epochs or generations: where the sequence stands behind what was once drawn from it, as after
-- a failover to a standby that had not received its last record.
SELECT max(nextval('walcache.epoch')) FROM generate_series(1, $1::bigint)
