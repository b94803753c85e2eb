-- The schemas of publications, for sql/signatures.sql; Postgres 14 has no such thing.
UNION ALL
SELECT concat_ws(',', 'schema', s.oid, s.xmin)
FROM pg_publication_namespace s
JOIN pg_publication p ON p.oid = s.pnpubid AND p.pubname = ANY ($4::text[])
WHERE s.pnnspid = n.oid
   OR s.pnnspid IN (SELECT k.relnamespace FROM pg_partition_ancestors(c.oid) AS a JOIN pg_class k ON k.oid = a.relid)
