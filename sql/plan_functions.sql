-- The functions that a plan may call, by name ($1): whether what they give changes by itself, and whether they may read
-- tables that the plan does not show.
SELECT DISTINCT p.proname::text AS name,
       p.provolatile = 'v' AS volatile,
       p.oid >= 16384 AND p.provolatile <> 'i' AND l.lanname NOT IN ('c', 'internal') AS hides_tables
FROM pg_proc p
JOIN pg_language l ON l.oid = p.prolang
WHERE p.proname = ANY ($1::text[])
ORDER BY 1
