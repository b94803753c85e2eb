-- The keys that a rule's lookup gives, as text; no more than {limit}.
SELECT {columns}
  FROM (
{lookup}
) AS found ({names})
 LIMIT {limit}
