-- The tables of the publications $1, under the names that the stream gives them. Row filters and column lists came with
-- Postgres 15; before, the view and the catalog have no such columns, which to_jsonb forgives.
SELECT t.pubname::text AS publication,
       c.oid AS oid,
       to_jsonb(t) ->> 'rowfilter' AS row_filter,
       -- The columns that the filter reads, by their numbers in its tree; '*' for the row as a whole.
       ARRAY(
           SELECT DISTINCT coalesce(a.attname::text, '*')
           FROM regexp_matches(to_jsonb(r) ->> 'prqual', ':varattno (-?\d+)', 'g') AS var
           LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = var[1]::int AND a.attnum > 0
       ) AS filter_columns,
       (SELECT array_agg(name) FROM jsonb_array_elements_text(nullif(to_jsonb(t) -> 'attnames', 'null')) AS name)
           AS columns,
       -- The view names all columns also where there is no list.
       to_jsonb(r) ->> 'prattrs' IS NOT NULL AS has_list
FROM pg_publication_tables t
JOIN pg_publication p ON p.pubname = t.pubname
JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
WHERE t.pubname = ANY ($1::text[])
ORDER BY t.pubname
