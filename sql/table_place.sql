-- The names of table $1.$2 and of the tables that it is a partition of; none, if there is no such table.
SELECT n.nspname::text AS schema, c.relname::text AS name
FROM pg_class t
JOIN pg_namespace tn ON tn.oid = t.relnamespace
CROSS JOIN LATERAL (SELECT t.oid UNION SELECT relid::oid FROM pg_partition_ancestors(t.oid)) AS one (oid)
JOIN pg_class c ON c.oid = one.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE tn.nspname = $1 AND t.relname = $2
