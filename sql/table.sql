-- The relation $1.$2, and what the role $3 (by oid) may do with it.
SELECT c.oid AS oid,
       c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       has_schema_privilege($3::oid, n.oid, 'USAGE') AS schema_usage,
       c.relrowsecurity AS row_security,
       -- It binds everyone but superusers, BYPASSRLS and, unless forced, the owner.
       c.relrowsecurity AND NOT EXISTS (
           SELECT FROM pg_roles r
           WHERE r.oid = $3
             AND (r.rolsuper OR r.rolbypassrls OR (pg_has_role(r.oid, c.relowner, 'USAGE') AND NOT c.relforcerowsecurity))
       ) AS hides_rows,
       -- Inheritance by hand, not partitions.
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
       -- Changes when the table, or what it is a partition of, leaves one of the publications $4 and comes back, and when
       -- one of them is altered or made anew: changes in between were not in the stream.
       ARRAY(
           SELECT r.oid::text FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
           WHERE p.pubname = ANY ($4::text[])
             AND (r.prrelid = c.oid OR r.prrelid IN (SELECT a.relid FROM pg_partition_ancestors(c.oid) a))
           UNION ALL
           SELECT 'publication ' || p.oid || ' ' || p.xmin FROM pg_publication p WHERE p.pubname = ANY ($4::text[])
           ORDER BY 1
       ) AS published_as,
       -- A walsender of those versions goes on sending a detached partition's changes as those of the table that it was in.
       current_setting('server_version_num')::int < 150000 AS remembers_partitions,
       ARRAY(SELECT a.relid::oid FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid) AS ancestors
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
