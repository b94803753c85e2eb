-- By which schemas the publications $1 publish the tables $2 (by oid), or what they are partitions of. Differs once a schema
-- has left a publication and come back. Only since Postgres 15.
SELECT t.oid AS oid,
       p.pubname::text AS publication,
       c.oid = t.oid AS is_own,
       n.oid::text || ' ' || n.xmin::text AS membership
FROM unnest($2::oid[]) AS t (oid)
JOIN pg_class c ON c.oid = t.oid OR c.oid IN (SELECT a.relid FROM pg_partition_ancestors(t.oid) a)
JOIN pg_publication_namespace n ON n.pnnspid = c.relnamespace
JOIN pg_publication p ON p.oid = n.pnpubid
WHERE p.pubname = ANY ($1::text[])
ORDER BY 1, 4
