-- The tables of publication $1, under the names that the stream gives them. Row filters and column lists came with
-- Postgres 15; before, the view has no such columns, which to_jsonb forgives.
SELECT c.oid AS oid,
       to_jsonb(t) ->> 'rowfilter' AS row_filter,
       (SELECT array_agg(name) FROM jsonb_array_elements_text(nullif(to_jsonb(t) -> 'attnames', 'null')) AS name)
           AS columns
FROM pg_publication_tables t
JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = $1
