-- What the stream will say of old rows of table $1 (by oid): for a partitioned table, of each partition, since there
-- the rows live.
WITH leaf (oid) AS (
    SELECT relid::oid FROM pg_partition_tree($1::oid::regclass) WHERE isleaf
    UNION
    SELECT $1::oid WHERE NOT EXISTS (SELECT FROM pg_partition_tree($1::oid::regclass))
)
SELECT c.oid AS oid,
       n.nspname::text AS schema,
       c.relname::text AS name,
       c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       c.relreplident::text AS identity,
       ARRAY(SELECT a.attname::text
             FROM pg_index i
             JOIN pg_attribute a
               ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
             WHERE i.indrelid = c.oid
               AND ((c.relreplident = 'd' AND i.indisprimary) OR (c.relreplident = 'i' AND i.indisreplident))) AS columns
FROM leaf
JOIN pg_class c ON c.oid = leaf.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY n.nspname, c.relname
