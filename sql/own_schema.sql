-- walcache's own objects, and what the role $1 (by oid) may do with them. Looked up in the catalog, since to_regclass
-- needs rights of its own.
SELECT n.oid IS NOT NULL AS schema_exists,
       m.oid IS NOT NULL AS migrations_exist,
       coalesce(has_table_privilege(current_user, m.oid, 'SELECT') AND has_schema_privilege(current_user, n.oid, 'USAGE'),
           false) AS migrations_readable,
       coalesce(has_schema_privilege($1::oid, n.oid, 'USAGE')
           AND has_table_privilege($1::oid, m.oid, 'SELECT')
           AND has_sequence_privilege($1::oid, s.oid, 'USAGE'), false) AS granted
FROM (SELECT) AS one
LEFT JOIN pg_namespace n ON n.nspname = 'walcache'
LEFT JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = 'migrations' AND m.relkind = 'r'
LEFT JOIN pg_class s ON s.relnamespace = n.oid AND s.relname = 'epoch' AND s.relkind = 'S'
