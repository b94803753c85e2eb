-- What types are, domains looked through: $1 their oids, $2 their modifiers, in order.
SELECT base.oid AS base_oid,
       base.modifier AS base_modifier,
       t.typtype::text AS base_kind,
       quote_ident(n.nspname) || '.' || quote_ident(t.typname) AS base_name,
       -- Values of the type itself are compared by the database's collation, which is deterministic.
       coalesce(l.collisdeterministic, true) AS deterministic,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels
FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS wanted (oid, modifier, ord)
{base_type}
JOIN pg_type declared ON declared.oid = wanted.oid
LEFT JOIN pg_collation l ON l.oid = declared.typcollation
ORDER BY wanted.ord
