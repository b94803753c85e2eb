-- The facts that decide how types read in JSON, for the types $1 and all that they are made of: the base types of
-- domains and the element types of arrays. What counts as an array is what get_element_type() says, as in row_to_json;
-- a cast counts as in its json_categorize_type(): by function, and only for types that are not built in.
WITH RECURSIVE reachable (oid) AS (
    SELECT unnest($1::oid[])
    UNION
    SELECT part.oid
    FROM reachable
    JOIN pg_catalog.pg_type t ON t.oid = reachable.oid
    CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem)) AS part (oid)
    WHERE part.oid <> 0
)
SELECT
    t.oid,
    t.typtype,
    t.typbasetype AS base,
    CASE t.typsubscript
        WHEN 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN t.typelem
        ELSE 0::pg_catalog.oid
    END AS element,
    t.typdelim AS delimiter,
    t.oid >= 16384 AND EXISTS (
        SELECT FROM pg_catalog.pg_cast c
        WHERE c.castsource = t.oid AND c.casttarget = 'pg_catalog.json'::pg_catalog.regtype AND c.castmethod = 'f'
    ) AS has_json_cast
FROM reachable
JOIN pg_catalog.pg_type t ON t.oid = reachable.oid
ORDER BY t.oid
