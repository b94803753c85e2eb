-- What a refusal for want of rights is about, by its message ($1), which ends with the name of what is refused whatever its
-- language: relations that the role $2 may not read, and schemas that it may not use. Where several have that name, those
-- that the statement ($3) names with their schema, or would find without. A schema has no name within it.
SELECT r.rolname::text AS role, n.nspname::text AS schema, c.relname::text AS name
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_roles r ON r.oid = $2::oid
WHERE right($1::text, length(c.relname) + 1) = ' ' || c.relname
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND NOT has_table_privilege(r.oid, c.oid, 'SELECT')
  AND (pg_table_is_visible(c.oid) OR strpos($3::text, n.nspname) > 0)
UNION ALL
SELECT r.rolname::text, n.nspname::text, NULL
FROM pg_namespace n
JOIN pg_roles r ON r.oid = $2::oid
WHERE right($1::text, length(n.nspname) + 1) = ' ' || n.nspname
  AND n.nspname NOT LIKE 'pg\_%'
  AND NOT has_schema_privilege(r.oid, n.oid, 'USAGE')
ORDER BY 2, 3
