-- The row filter by which a publication has a table, by the oid of that entry. To write it down locks the table from some
-- versions on: it is waited for no longer than {limit} milliseconds. One message, so one transaction.
SET LOCAL lock_timeout = {limit};
SELECT pg_get_expr(r.prqual, r.prrelid) AS row_filter FROM pg_publication_rel r WHERE r.oid = {entry}
