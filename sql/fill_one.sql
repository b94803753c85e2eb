-- Reads the one row of a query as an object, and where the log stood, as sql/fill_many.sql does.
-- {query}: the query. Whether there are more is told by a second row.
SELECT v.value, v.rows, pg_current_wal_insert_lsn()::text AS hi
FROM (
    SELECT string_agg(row_to_json(walcache_row.*)::text, ',') AS value, count(*) AS rows
    FROM (SELECT * FROM (
{query}
    ) AS walcache_rows LIMIT 2) AS walcache_row
) AS v
