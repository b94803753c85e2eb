-- The tables under whose names the rows of table $1 (by oid) are streamed where nothing goes by roots: itself first, then
-- its partitions of every level, with their columns.
-- (pg_partition_tree() would wait for whoever has locked a partition.)
WITH RECURSIVE tree (oid, level) AS (
    SELECT $1::oid, 0
    UNION ALL
    SELECT i.inhrelid, tree.level + 1
    FROM tree
    JOIN pg_class parent ON parent.oid = tree.oid AND parent.relkind = 'p'
    JOIN pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
)
SELECT c.oid AS oid,
       n.nspname::text AS schema,
       c.relname::text AS name,
       -- Changes with the name, the schema's name and the replica identity, and with their coming back.
       c.xmin || ' ' || n.xmin AS version,
       column_names,
       type_oids,
       positions,
       out_of_line,
       computed
FROM tree
JOIN pg_class c ON c.oid = tree.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') AS column_names,
           coalesce(array_agg(a.atttypid ORDER BY a.attnum), '{}') AS type_oids,
           coalesce(array_agg(a.attnum ORDER BY a.attnum), '{}') AS positions,
           -- Also where that is not allowed any more: what is there stays.
           coalesce(array_agg(a.attlen = -1 ORDER BY a.attnum), '{}') AS out_of_line,
           coalesce(array_agg(a.attgenerated = 'v' ORDER BY a.attnum), '{}') AS computed
    FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) AS columns
ORDER BY tree.level, n.nspname, c.relname
