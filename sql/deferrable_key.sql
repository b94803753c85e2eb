-- The deferrable primary key of table $1 (by oid), if it has one.
SELECT c.conname::text AS name,
       ARRAY(SELECT a.attname::text
             FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, position)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
             ORDER BY k.position) AS columns
FROM pg_constraint c
WHERE c.conrelid = $1 AND c.contype = 'p' AND c.condeferrable
