-- What the names $1 lead to in the schemas that this session looks through, in the order of both: a table that comes to stand
-- before the one that a query has read so far is read from then on.
SELECT word.ord AS name, place.ord AS place, c.oid
FROM unnest($1::text[]) WITH ORDINALITY AS word (name, ord)
JOIN pg_class c ON c.relname = word.name::name
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN unnest(current_schemas(false)) WITH ORDINALITY AS place (schema, ord) ON place.schema = n.nspname
ORDER BY 1, 2
