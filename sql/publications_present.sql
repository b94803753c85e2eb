-- How many of the publications $1 there are.
SELECT count(*) FROM pg_publication WHERE pubname = ANY ($1::text[])
