-- Those of the publications $1 that there are.
SELECT pubname::text AS name,
       puballtables AS all_tables,
       pubinsert AND pubupdate AND pubdelete AND pubtruncate AS complete,
       pubviaroot AS via_root,
       -- Before Postgres 18 generated columns never reach the stream.
       to_jsonb(p) ? 'pubgencols' AS may_carry_generated,
       current_setting('server_version_num')::int AS server_version
FROM pg_publication p
WHERE pubname = ANY ($1::text[])
