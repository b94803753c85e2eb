#!/bin/sh
# Captures what a real Postgres sends: writes pgoutput/*.txt and types/*.txt in this directory anew.
#
# Needs a private server with wal_level = logical, where it drops and makes the database `capture`, and PGHOST, PGPORT
# and PGUSER (a superuser) in the environment. Afterwards the decode tests, run with REWRITE=1, write the expected
# events behind the captured messages: review the difference.
set -eu
cd "$(dirname "$0")"
mkdir -p pgoutput types
export PGTZ=UTC PGCLIENTENCODING=UTF8 PGOPTIONS='-c client_min_messages=warning -c DateStyle=ISO -c IntervalStyle=postgres -c bytea_output=hex'
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 -d capture "$@"; }
take() {
    sql -c "SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('capture', NULL, NULL,
        'proto_version', '1', 'publication_names', 'capture', 'messages', 'true')"
}
# scenario NAME PREPARATION SQL: captures what the SQL sends.
scenario() {
    sql -c "$2" >/dev/null
    take >/dev/null
    printf '%s\n' "$3" | sql >/dev/null
    { printf '%s\n' "$3" | sed 's/^/# /'; take; echo ----; echo; } >"pgoutput/$1.txt"
}

psql -X -q -d postgres -c "SELECT pg_drop_replication_slot('capture') FROM pg_replication_slots WHERE slot_name = 'capture'" \
    -c 'DROP DATABASE IF EXISTS capture' -c "CREATE DATABASE capture ENCODING 'UTF8' TEMPLATE template0" >/dev/null
sql -c 'CREATE PUBLICATION capture FOR ALL TABLES' -c "SELECT pg_create_logical_replication_slot('capture', 'pgoutput')" >/dev/null

scenario row_changes "CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(10, 2))" \
"INSERT INTO item VALUES (1, 'one', 1.50), (2, NULL, NULL);
UPDATE item SET name = 'Eins' WHERE id = 1;
UPDATE item SET id = 3 WHERE id = 2;
DELETE FROM item WHERE id = 1;"

scenario identities "CREATE TABLE whole (id int PRIMARY KEY, name text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
CREATE TABLE bare (id int)" \
"INSERT INTO whole VALUES (1, 'a');
UPDATE whole SET name = NULL;
DELETE FROM whole;
INSERT INTO by_index VALUES (1, 'a');
UPDATE by_index SET id = 2;
UPDATE by_index SET code = 'b';
DELETE FROM by_index;
INSERT INTO bare VALUES (1);"

scenario unchanged_toast "CREATE TABLE document (id int PRIMARY KEY, title text, body text);
ALTER TABLE document ALTER body SET STORAGE EXTERNAL;
INSERT INTO document VALUES (1, 'a', repeat('x', 3000))" \
"UPDATE document SET title = 'b';
UPDATE document SET body = 'short';"

scenario truncate "CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE other (id int PRIMARY KEY)" \
"TRUNCATE parent CASCADE;
TRUNCATE parent, child, other RESTART IDENTITY;"

scenario logical_messages "CREATE TABLE beside (id int PRIMARY KEY)" \
"SELECT pg_logical_emit_message(false, 'walcache', '');
BEGIN;
SELECT pg_logical_emit_message(true, 'walcache', 'within');
INSERT INTO beside VALUES (1);
COMMIT;"

scenario shape_changes "CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE person (id int PRIMARY KEY, name text)" \
"BEGIN;
INSERT INTO person VALUES (1, 'a');
ALTER TABLE person ADD mood mood DEFAULT 'ok', ALTER name TYPE varchar(40);
INSERT INTO person VALUES (2, 'b', 'sad');
ALTER TABLE person DROP name;
UPDATE person SET mood = NULL WHERE id = 1;
COMMIT;"

scenario origin "SELECT pg_replication_origin_create('elsewhere')
    WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = 'elsewhere');
CREATE TABLE copied (id int PRIMARY KEY)" \
"SELECT pg_replication_origin_session_setup('elsewhere');
BEGIN;
SELECT pg_replication_origin_xact_setup('16/B374D848', '2001-02-03 04:05:06+00');
INSERT INTO copied VALUES (1);
COMMIT;"
sql -c "SELECT pg_replication_origin_drop('elsewhere')" >/dev/null

scenario names "CREATE SCHEMA \"a \"\"b\"\" ünï\";
CREATE TABLE \"a \"\"b\"\" ünï\".\"sélect\" (\"the, id\" int PRIMARY KEY, \"\"\"\" \"char\");
CREATE TABLE no_columns ()" \
"INSERT INTO \"a \"\"b\"\" ünï\".\"sélect\" VALUES (1, 'x');
INSERT INTO no_columns DEFAULT VALUES;"

# Every type: the stream, the facts of its types, and row_to_json as the oracle: id, column, and the value's JSON text
# as a JSON string.
sql -1 -f types.sql
take >types/stream.txt
oids="SELECT array_agg(DISTINCT atttypid) FROM pg_attribute WHERE attnum > 0 AND attrelid IN ('types.types'::regclass, 'types.types_refetched'::regclass)"
sed "s/\$1::oid\[\]/($oids)/" ../../sql/type_facts.sql | sql -F' ' >types/facts.txt
# Column by column, as json_each refuses what the type json may hold.
cat <<'SQL' | sql -F"$(printf '\t')" >types/json.txt
SELECT format('SELECT id, %L, to_json(substr(j.row, 6, length(j.row) - 6)) FROM types.types AS t,
    LATERAL (SELECT row_to_json(r)::text FROM (SELECT t.%I AS v) AS r) AS j (row) ORDER BY id', attname, attname)
FROM pg_attribute WHERE attrelid = 'types.types'::regclass AND attnum > 0 ORDER BY attnum \gexec
SQL
sql -c "SELECT pg_drop_replication_slot('capture')" >/dev/null
psql -X -q -d postgres -c 'DROP DATABASE capture'
