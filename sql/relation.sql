-- The table $1.$2 as the stream announces it: under the name of the partitioned table that it belongs to, if it does; its
-- columns, and which of them old rows tell, as its rows' replica identity has it (of partitions, of the first).
WITH named AS (
    SELECT coalesce(pg_partition_root(c.oid), c.oid)::oid AS oid
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
),
leaf AS (
    SELECT coalesce((SELECT t.relid FROM pg_partition_tree(named.oid) t WHERE t.isleaf ORDER BY t.relid LIMIT 1), named.oid)::oid AS oid
    FROM named
)
SELECT c.oid AS oid,
       n.nspname::text AS schema,
       c.relname::text AS name,
       l.relreplident::text AS identity,
       a.attname::text AS column_name,
       a.atttypid AS type_oid,
       a.atttypmod AS modifier,
       l.relreplident = 'f' OR EXISTS (
           SELECT FROM pg_index i JOIN pg_attribute k
             ON k.attrelid = i.indrelid AND k.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
           WHERE i.indrelid = l.oid AND k.attname = a.attname AND i.indimmediate
             AND ((l.relreplident = 'd' AND i.indisprimary) OR (l.relreplident = 'i' AND i.indisreplident))) AS in_identity,
       EXISTS (
           SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey::int2[])) AS in_key
FROM named
CROSS JOIN leaf
JOIN pg_class c ON c.oid = named.oid
JOIN pg_class l ON l.oid = leaf.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum
