-- Of tables ($1), those of which lookups may not have found what their round's snapshot sees. An older snapshot finds nothing
-- in a table whose rows were written to another file since (TRUNCATE, an ALTER TABLE that rewrites it), which Postgres
-- documents among the caveats of MVCC; nor in a partition that was detached, or under a name that leads elsewhere. The rows
-- of the catalog are read as the snapshot sees them, but what functions say of it holds now.
WITH RECURSIVE tree (root, oid) AS (
    SELECT wanted.oid, wanted.oid FROM unnest($1::oid[]) AS wanted (oid)
    UNION
    SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT DISTINCT tree.root
FROM tree JOIN pg_class c ON c.oid = tree.oid
WHERE (c.relfilenode <> 0 AND pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode)
   OR (c.relispartition AND pg_partition_root(c.oid) IS DISTINCT FROM pg_partition_root(tree.root))
   OR (c.oid = tree.root
       AND (pg_identify_object('pg_class'::regclass, c.oid, 0)).name IS DISTINCT FROM quote_ident(c.relname))
