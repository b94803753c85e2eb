-- Reads all rows of a query as an array of objects, and where the log stood: nothing committed after `hi` is in it.
-- {query}: the query. An aggregate takes the rows in the order of a sorted subquery. `hi` is taken when all rows have been
-- read: functions in the query may look at what was committed meanwhile.
SELECT v.value, v.rows, pg_current_wal_insert_lsn()::text AS hi
FROM (
    SELECT '[' || coalesce(string_agg(row_to_json(walcache_row.*)::text, ','), '') || ']' AS value, count(*) AS rows
    FROM (
{query}
    ) AS walcache_row
) AS v
