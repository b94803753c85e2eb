-- The relations that this transaction has locked, and so those that a statement reads that was parsed and planned in it: its
-- plan leaves out those that it takes to have no rows, or none that matter. Neither indexes nor system catalogs.
SELECT n.nspname, c.relname
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid()
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND c.oid >= 16384 AND c.relkind NOT IN ('i', 'I', 'v', 't')
