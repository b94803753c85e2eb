-- A page of the keys to warm, in their order, from the last key of the page before on.
-- {source}: a SELECT of the key's columns; {names}: names for them; {columns}: their texts; {after}: they come after the
-- parameters, the texts of a key, in the order of {order}. Comparison and order both take the collations that the
-- columns have: no COLLATE here. The casts are those of fill.sql.
SELECT {columns}
FROM ({source}
) AS t({names})
WHERE {after}
ORDER BY {order}
LIMIT {limit}
