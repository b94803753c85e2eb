-- What types are, domains looked through: $1 their oids, $2 their modifiers, in order.
SELECT base.oid AS base_oid,
       base.modifier AS base_modifier,
       t.typtype::text AS base_kind,
       quote_ident(n.nspname) || '.' || quote_ident(t.typname) AS base_name,
       -- Values of the type itself are compared by the database's collation, which is deterministic.
       coalesce(l.collisdeterministic, true) AS deterministic,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels
FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS wanted (oid, modifier, ord)
CROSS JOIN LATERAL (
    WITH RECURSIVE chain (oid, modifier, depth) AS (
        SELECT wanted.oid, wanted.modifier, 0
        UNION ALL
        SELECT d.typbasetype, d.typtypmod, chain.depth + 1
        FROM chain JOIN pg_type d ON d.oid = chain.oid
        WHERE d.typtype = 'd'
    )
    SELECT chain.oid, chain.modifier FROM chain ORDER BY chain.depth DESC LIMIT 1
) AS base
JOIN pg_type declared ON declared.oid = wanted.oid
JOIN pg_type t ON t.oid = base.oid
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_collation l ON l.oid = declared.typcollation
ORDER BY wanted.ord
