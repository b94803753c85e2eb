-- The keys that a rule's lookup gives, as text; no more than {limit} rows, of which some may be NULL.
SELECT {columns}
  FROM (
{lookup}
) AS found ({names})
 LIMIT {limit}
