-- Which transactions a new snapshot does not see: xmin:xmax:in progress.
SELECT pg_current_snapshot()::text
