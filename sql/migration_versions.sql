-- The migrations that were applied.
SELECT version FROM walcache.migrations ORDER BY version
