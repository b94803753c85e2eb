-- The columns of table $1 (by oid), domains looked through, and whether the role $2 (by oid) may read each.
SELECT a.attname::text AS name,
       a.atttypid AS type_oid,
       a.attnotnull AS not_null,
       a.attgenerated <> '' AS generated,
       has_column_privilege($2::oid, a.attrelid, a.attnum, 'SELECT') AS readable,
       coalesce(l.collisdeterministic, true) AS deterministic,
       base.oid AS base_oid,
       base.modifier AS base_modifier,
       t.typtype::text AS base_kind,
       quote_ident(n.nspname) || '.' || quote_ident(t.typname) AS base_name,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels
FROM pg_attribute a
{base_type}
LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
