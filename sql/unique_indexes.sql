-- The indexes of table $1 (by oid) that make their columns a key: unique at any moment, whole, on plain columns.
SELECT c.relname::text AS name,
       i.indisprimary AS is_primary,
       -- Only then it can be a replica identity.
       NOT EXISTS (SELECT FROM pg_attribute a
                   WHERE a.attrelid = i.indrelid AND NOT a.attnotnull
                     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) AS not_null,
       ARRAY(SELECT a.attname::text
             FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, position)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             ORDER BY k.position) AS columns
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indisprimary DESC, c.relname
