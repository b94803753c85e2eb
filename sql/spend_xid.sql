-- Takes a transaction id, which is spent when this has ended. Transactions that took theirs before are below the xmax of every
-- later snapshot, so among those in progress while they are. (A snapshot ends at the last id that has ended: it does not
-- name what runs beyond.)
SELECT pg_current_xact_id()::text
