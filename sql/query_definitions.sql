-- What stands for the views and functions that the queries $1 may use: those whose names are in their texts, and whatever these
-- are made of. A view says that by its dependencies, a function by its text, too. More than are used is right as well. And for
-- the schemas in which names are looked for.
WITH RECURSIVE named (class, oid, name, facts, body) AS (
    SELECT 'pg_class'::regclass::oid, c.oid, lower(c.relname::text), concat_ws(' ', c.oid, c.xmin, r.xmin), ''
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_rewrite r ON r.ev_class = c.oid
    WHERE c.oid >= 16384 AND c.relkind IN ('v', 'm') AND n.nspname !~ '^pg_(toast|temp)'
    UNION ALL
    SELECT 'pg_proc'::regclass::oid, p.oid, lower(p.proname::text), concat_ws(' ', p.oid, p.xmin), lower(p.prosrc)
    FROM pg_proc p
    JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE p.oid >= 16384 AND n.nspname !~ '^pg_(toast|temp)'
),
used (class, oid, name, facts, body) AS (
    SELECT named.* FROM named
    WHERE EXISTS (SELECT FROM unnest($1::text[]) AS t (text) WHERE strpos(lower(t.text), named.name) > 0)
    UNION
    SELECT named.*
    FROM used
    JOIN named ON strpos(used.body, named.name) > 0 OR EXISTS (
        SELECT FROM pg_depend d
        LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        WHERE d.refclassid = named.class AND d.refobjid = named.oid
          AND ((d.classid = used.class AND d.objid = used.oid) OR (used.class = 'pg_class'::regclass AND r.ev_class = used.oid))
    )
)
SELECT concat_ws('|', current_setting('search_path'),
    (SELECT string_agg(facts, ';' ORDER BY class, oid) FROM used)) AS facts
