-- What relations are that a plan reads, by schema ($1) and name ($2), in order: each with the tables that it is a partition
-- of, the topmost last, and whether any of these has row-level security.
SELECT wanted.schema, wanted.name, c.relkind::text AS kind,
       c.reltuples::float8 AS estimate,
       above.schemas, above.names, above.root, above.row_security,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (schema, name, ord)
JOIN pg_namespace n ON n.nspname = wanted.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
CROSS JOIN LATERAL (
    WITH RECURSIVE tree (oid, level) AS (
        SELECT c.oid, 0
        UNION ALL
        SELECT i.inhparent, tree.level + 1
        FROM tree JOIN pg_class p ON p.oid = tree.oid AND p.relispartition JOIN pg_inherits i ON i.inhrelid = tree.oid
    )
    SELECT array_agg(m.nspname::text ORDER BY tree.level) AS schemas,
           array_agg(k.relname::text ORDER BY tree.level) AS names,
           (array_agg(k.oid ORDER BY tree.level DESC))[1] AS root,
           bool_or(k.relrowsecurity) AS row_security
    FROM tree JOIN pg_class k ON k.oid = tree.oid JOIN pg_namespace m ON m.oid = k.relnamespace
) AS above
ORDER BY wanted.ord
