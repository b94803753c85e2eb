-- What the publications $1 say of the tables $2 (by oid). Not by pg_publication_tables: from Postgres 16 on that locks every
-- table that is published, so it would wait for whoever alters or rewrites one. Row filters and column lists came with
-- Postgres 15; before, the catalog has no such columns, which to_jsonb forgives.
SELECT p.pubname::text AS publication,
       c.oid AS oid,
       c.relkind = 'p' AS is_partitioned,
       c.relispartition AS is_partition,
       c.relpersistence = 'p' AS is_logged,
       r.oid AS listed,
       EXISTS (
           SELECT FROM pg_partition_ancestors(c.oid) a
           JOIN pg_publication_rel above ON above.prrelid = a.relid AND above.prpubid = p.oid
           WHERE a.relid <> c.oid
       ) AS is_listed_above,
       to_jsonb(r) ->> 'prqual' IS NOT NULL AS has_filter,
       -- The columns that the filter reads, by their numbers in its tree; '*' for the row as a whole.
       ARRAY(
           SELECT DISTINCT coalesce(a.attname::text, '*')
           FROM regexp_matches(to_jsonb(r) ->> 'prqual', ':varattno (-?\d+)', 'g') AS var
           LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = var[1]::int AND a.attnum > 0
       ) AS filter_columns,
       -- Without a list all of them, but for those that are generated; stored ones from Postgres 18 on, where it says so.
       ARRAY(
           SELECT a.attname::text
           FROM pg_attribute a
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             AND CASE WHEN to_jsonb(r) ->> 'prattrs' IS NULL
                      THEN a.attgenerated = '' OR (a.attgenerated = 's' AND to_jsonb(p) ->> 'pubgencols' = 's')
                      ELSE a.attnum::text = ANY (regexp_split_to_array(to_jsonb(r) ->> 'prattrs', '\D+'))
                 END
           ORDER BY a.attnum
       ) AS columns,
       to_jsonb(r) ->> 'prattrs' IS NOT NULL AS has_list
FROM pg_publication p
CROSS JOIN unnest($2::oid[]) AS wanted (oid)
JOIN pg_class c ON c.oid = wanted.oid
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
WHERE p.pubname = ANY ($1::text[])
