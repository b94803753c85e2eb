-- Reads the rows of many keys in one snapshot, and where the log stood: nothing committed after `hi` is in them.
-- {keys}: the parameters as typed arrays; {names}: names for their elements; {columns}: the value's columns;
-- A name with a star is never a column's. {table}: the table, or those of its rows that are published; {condition}: the join. The first row carries `hi`; then comes a row for each key that exists.
SELECT NULL::bigint AS ord, NULL::text AS value, pg_current_wal_insert_lsn()::text AS hi
UNION ALL
SELECT k.ord, (SELECT row_to_json(walcache_row.*)::text FROM (SELECT {columns}) AS walcache_row), NULL
FROM unnest({keys}) WITH ORDINALITY AS k({names}, ord)
JOIN {table} AS t ON {condition}
