-- What the stream will say of old rows of table $1 (by oid): for a partitioned table, of each partition, since there
-- the rows live.
-- Not by pg_partition_tree(), which locks partitions: it would wait for whoever alters one.
WITH RECURSIVE tree (oid, kind) AS (
    SELECT r.oid, r.relkind FROM pg_class r WHERE r.oid = $1::oid
    UNION ALL
    SELECT p.oid, p.relkind
    FROM tree
    JOIN pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
    JOIN pg_class p ON p.oid = i.inhrelid
    WHERE tree.kind = 'p'
),
leaf (oid) AS (
    SELECT tree.oid FROM tree WHERE tree.kind <> 'p'
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
             -- A deferrable key is no identity.
             WHERE i.indrelid = c.oid AND i.indimmediate
               AND ((c.relreplident = 'd' AND i.indisprimary) OR (c.relreplident = 'i' AND i.indisreplident))) AS columns
FROM leaf
JOIN pg_class c ON c.oid = leaf.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY n.nspname, c.relname
