-- The facts that decide how types read in JSON, for the types $1 and all that they are made of: the base types of
-- domains, the element types of arrays, the attributes of composites and the subtypes of ranges. What counts as an array
-- is what get_element_type() says, as in row_to_json; a cast counts as in its json_categorize_type(): by function, and
-- only for types that are not built in.
WITH RECURSIVE reachable (oid) AS (
    SELECT unnest($1::oid[])
    UNION
    SELECT part.oid
    FROM reachable
    JOIN pg_catalog.pg_type t ON t.oid = reachable.oid
    CROSS JOIN LATERAL (
        VALUES (t.typbasetype), (t.typelem)
        UNION ALL
        SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
    ) AS part (oid)
    WHERE part.oid <> 0
)
SELECT
    t.oid,
    pg_catalog.format_type(t.oid, NULL) AS name,
    t.typtype,
    t.typbasetype AS base,
    CASE t.typsubscript
        WHEN 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN t.typelem
        ELSE 0::pg_catalog.oid
    END AS element,
    t.typdelim AS delimiter,
    c.castfunc IS NOT NULL AS has_json_cast,
    coalesce(composite.names, '{}') AS attribute_names,
    coalesce(composite.types, '{}') AS attribute_types,
    -- Differs when values of the type read otherwise though no row was changed: by ALTER TYPE on a composite or an enum,
    -- by CREATE OR REPLACE of a function that prints values or casts them to json.
    ROW(
        p.oid, p.xmin, cast_by.oid, cast_by.xmin, composite.version,
        ARRAY(
            SELECT e.enumlabel::pg_catalog.text FROM pg_catalog.pg_enum e
            WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder
        ),
        -- regclass and its like, and aclitem, read as the names of other objects.
        CASE WHEN t.oid IN (24, 1033, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191) THEN (
            SELECT sum(pg_catalog.hashtextextended(concat_ws(' ', n.nspname, named.oid, named.name), 0))
            FROM (
                SELECT oid, relname, relnamespace FROM pg_catalog.pg_class
                UNION ALL SELECT oid, typname, typnamespace FROM pg_catalog.pg_type
                UNION ALL SELECT oid, proname, pronamespace FROM pg_catalog.pg_proc
                UNION ALL SELECT oid, oprname, oprnamespace FROM pg_catalog.pg_operator
                UNION ALL SELECT oid, cfgname, cfgnamespace FROM pg_catalog.pg_ts_config
                UNION ALL SELECT oid, dictname, dictnamespace FROM pg_catalog.pg_ts_dict
                UNION ALL SELECT oid, collname, collnamespace FROM pg_catalog.pg_collation
                UNION ALL SELECT oid, nspname, oid FROM pg_catalog.pg_namespace
                UNION ALL SELECT oid, rolname, 0 FROM pg_catalog.pg_roles
            ) AS named (oid, name, schema)
            LEFT JOIN pg_catalog.pg_namespace n ON n.oid = named.schema
            -- Other sessions' temporary tables come and go.
            WHERE n.nspname IS NULL OR n.nspname !~ '^pg_(toast|temp)'
        ) END
    )::pg_catalog.text AS version
FROM reachable
JOIN pg_catalog.pg_type t ON t.oid = reachable.oid
LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput
LEFT JOIN pg_catalog.pg_cast c
    ON c.castsource = t.oid AND c.casttarget = 'pg_catalog.json'::pg_catalog.regtype AND c.castmethod = 'f'
    AND t.oid >= 16384
LEFT JOIN pg_catalog.pg_proc cast_by ON cast_by.oid = c.castfunc
LEFT JOIN LATERAL (
    SELECT pg_catalog.array_agg(a.attname::pg_catalog.text ORDER BY a.attnum) AS names,
           pg_catalog.array_agg(a.atttypid ORDER BY a.attnum) AS types,
           -- Numbers tell an attribute from one of the same name that was dropped.
           pg_catalog.array_agg(concat_ws(' ', a.attnum, a.atttypmod, a.attname) ORDER BY a.attnum) AS version
    FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
) AS composite ON true
ORDER BY t.oid
