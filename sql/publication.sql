-- The publication $1, if there is one.
SELECT puballtables AS all_tables,
       pubinsert AND pubupdate AND pubdelete AND pubtruncate AS complete,
       pubviaroot AS via_root,
       -- Before Postgres 18 generated columns never reach the stream.
       to_jsonb(p) ? 'pubgencols' AS may_carry_generated
FROM pg_publication p
WHERE pubname = $1
