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
       -- Without a modifier, domains looked through: a cast to varchar(3) would cut values off, one to numeric(10,2) round them.
       quote_ident(tn.nspname) || '.' || quote_ident(t.typname) AS base_type,
       l.relreplident = 'f' OR EXISTS (
           SELECT FROM pg_index i JOIN pg_attribute k
             ON k.attrelid = i.indrelid AND k.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
           WHERE i.indrelid = l.oid AND k.attname = a.attname AND i.indimmediate
             AND ((l.relreplident = 'd' AND i.indisprimary) OR (l.relreplident = 'i' AND i.indisreplident))) AS in_identity,
       (SELECT array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum)
        FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS key_position
FROM named
CROSS JOIN leaf
JOIN pg_class c ON c.oid = named.oid
JOIN pg_class l ON l.oid = leaf.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
CROSS JOIN LATERAL (
    WITH RECURSIVE chain (oid, depth) AS (
        SELECT a.atttypid, 0
        UNION ALL
        SELECT d.typbasetype, chain.depth + 1 FROM chain JOIN pg_type d ON d.oid = chain.oid WHERE d.typtype = 'd'
    )
    SELECT chain.oid FROM chain ORDER BY chain.depth DESC LIMIT 1
) AS base
JOIN pg_type t ON t.oid = base.oid
JOIN pg_namespace tn ON tn.oid = t.typnamespace
ORDER BY a.attnum
