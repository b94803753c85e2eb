-- What lies below the domains of the type {oid} with the modifier {modifier}: `base`, its type `t` and its schema `n`.
CROSS JOIN LATERAL (
    WITH RECURSIVE chain (oid, modifier, depth) AS (
        SELECT {oid}, {modifier}, 0
        UNION ALL
        SELECT d.typbasetype, d.typtypmod, chain.depth + 1
        FROM chain JOIN pg_type d ON d.oid = chain.oid
        WHERE d.typtype = 'd'
    )
    SELECT chain.oid, chain.modifier FROM chain ORDER BY chain.depth DESC LIMIT 1
) AS base
JOIN pg_type t ON t.oid = base.oid
JOIN pg_namespace n ON n.oid = t.typnamespace
