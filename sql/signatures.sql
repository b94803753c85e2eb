-- For each of the tables $1.$2, in order: one number that stands for everything in the catalog that decides what the
-- rows of that name read as, whether role $3 (by oid) may read them, and whether their changes come through the
-- publications $4. It differs after whatever ALTER, DROP or GRANT does about that, also where another one undoes it
-- again: rows of the catalog that were written anew have another xmin. So it is more than what is looked up in full, and
-- cheaper: one query for all tables.
SELECT hashtextextended(concat_ws('|',
           n.oid, n.xmin, has_schema_privilege($3::oid, n.oid, 'USAGE'),
           c.oid, c.xmin, c.relkind, role.facts,
           columns.facts, keys.facts, tree.facts, types.facts, published.facts), 0) AS signature
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (schema, name, ord)
LEFT JOIN pg_namespace n ON n.nspname = wanted.schema
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
-- Row security is lifted for some roles.
LEFT JOIN LATERAL (
    SELECT concat_ws(',', r.rolsuper, r.rolbypassrls, pg_has_role(r.oid, c.relowner, 'USAGE')) AS facts
    FROM pg_roles r WHERE r.oid = $3::oid
) AS role ON true
LEFT JOIN LATERAL (
    SELECT string_agg(concat_ws(',', a.attnum, a.xmin, has_column_privilege($3::oid, c.oid, a.attnum, 'SELECT')), ';'
               ORDER BY a.attnum) AS facts,
           array_agg(a.atttypid) FILTER (WHERE a.atttypid >= 16384) AS types
    FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0
) AS columns ON true
-- A key that was dropped and made again may have had several rows for one value in between.
LEFT JOIN LATERAL (
    SELECT string_agg(concat_ws(',', i.indexrelid, i.xmin), ';' ORDER BY i.indexrelid) AS facts
    FROM pg_index i
    WHERE i.indrelid = c.oid AND i.indisunique
) AS keys ON true
-- Rows come and go with partitions. TRUNCATE of one is not in the stream where its root is published: it shows in its
-- file, as does a time as an unlogged table.
LEFT JOIN LATERAL (
    WITH RECURSIVE part (oid, facts) AS (
        SELECT i.inhrelid, concat_ws(',', i.inhrelid, i.inhparent, i.xmin, i.inhdetachpending)
        FROM pg_inherits i WHERE i.inhparent = c.oid
        UNION ALL
        SELECT i.inhrelid, concat_ws(',', i.inhrelid, i.inhparent, i.xmin, i.inhdetachpending)
        FROM part JOIN pg_inherits i ON i.inhparent = part.oid
    )
    SELECT string_agg(concat_ws(',', part.facts, p.relkind, p.relpersistence, p.relfilenode, p.relreplident,
               (SELECT string_agg(i.indexrelid || ' ' || i.xmin, ' ' ORDER BY i.indexrelid)
                FROM pg_index i WHERE i.indrelid = p.oid AND (i.indisprimary OR i.indisreplident))), ';' ORDER BY part.oid)
               AS facts
    FROM part JOIN pg_class p ON p.oid = part.oid
) AS tree ON true
-- What types that somebody made are made of; most tables have none of them.
LEFT JOIN LATERAL (
    WITH RECURSIVE reachable (oid) AS (
        SELECT unnest(columns.types)
        UNION
        SELECT made.oid
        FROM reachable
        JOIN pg_type t ON t.oid = reachable.oid
        CROSS JOIN LATERAL (
            VALUES (t.typbasetype), (t.typelem)
            UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0
            UNION ALL SELECT g.rngsubtype FROM pg_range g WHERE t.oid IN (g.rngtypid, g.rngmultitypid)
        ) AS made (oid)
        WHERE made.oid >= 16384
    )
    SELECT string_agg(concat_ws(',', t.oid, t.xmin, m.xmin,
               (SELECT string_agg(a.attnum || ' ' || a.xmin, ' ' ORDER BY a.attnum)
                FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0),
               (SELECT string_agg(e.oid || ' ' || e.xmin, ' ' ORDER BY e.oid) FROM pg_enum e WHERE e.enumtypid = t.oid),
               -- And the function: it may be replaced while the cast stays.
               (SELECT string_agg(concat_ws(' ', k.oid, k.xmin, f.xmin), ' ' ORDER BY k.oid)
                FROM pg_cast k LEFT JOIN pg_proc f ON f.oid = k.castfunc WHERE k.castsource = t.oid)),
               ';' ORDER BY t.oid) AS facts
    FROM reachable JOIN pg_type t ON t.oid = reachable.oid JOIN pg_namespace m ON m.oid = t.typnamespace
    WHERE columns.types IS NOT NULL
) AS types ON true
-- Changes of a time outside of the publication were not in the stream.
LEFT JOIN LATERAL (
    SELECT string_agg(fact, ';' ORDER BY fact) AS facts
    FROM (
        SELECT concat_ws(',', 'publication', p.oid, p.xmin) FROM pg_publication p WHERE p.pubname = ANY ($4::text[])
        UNION ALL
        SELECT concat_ws(',', 'table', r.oid, r.xmin)
        FROM pg_publication_rel r
        JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = ANY ($4::text[])
        WHERE r.prrelid = c.oid OR r.prrelid IN (SELECT a.relid FROM pg_partition_ancestors(c.oid) AS a)
        -- {schemas}
    ) AS said (fact)
) AS published ON true
ORDER BY wanted.ord
