#!/bin/sh
# Captures what a real Postgres sends: writes pgoutput/*.txt, types/*.txt and wal2json/*.txt in this directory anew.
#
# Needs a private server with wal_level = logical, where it drops and makes the database `capture`, and PGHOST, PGPORT
# and PGUSER (a superuser) in the environment, and wal2json 2.5. Afterwards the decode tests, run with REWRITE=1, write the expected
# events behind the captured messages: review the difference.
set -eu
cd "$(dirname "$0")"
mkdir -p pgoutput types
export PGTZ=UTC PGCLIENTENCODING=UTF8 PGOPTIONS='-c client_min_messages=warning -c DateStyle=ISO -c IntervalStyle=postgres -c bytea_output=hex'
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 -d capture "$@"; }
take_pgoutput() {
    sql -c "SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('capture', NULL, NULL,
        'proto_version', '1', 'publication_names', 'capture', 'messages', 'true')"
}
take_wal2json() {
    sql -c "SELECT data FROM pg_logical_slot_get_changes('capture', NULL, NULL, 'format-version', '2', 'include-xids', 'true',
        'include-timestamp', 'true', 'include-lsn', 'true', 'include-types', 'false', 'include-type-oids', 'true',
        'include-column-positions', 'true', 'add-msg-prefixes', 'walcache')" 2>/dev/null
}
# scenario PLUGIN NAME PREPARATION SQL: captures what the SQL sends.
scenario() {
    sql -c "$3" >/dev/null
    "take_$1" >/dev/null
    printf '%s\n' "$4" | sql >/dev/null
    { printf '%s\n' "$4" | sed 's/^/# /'; "take_$1"; echo ----; echo; } >"$1/$2.txt"
}

# What both plugins are shown.
items="CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(10, 2))"
identities="CREATE TABLE whole (id int PRIMARY KEY, name text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
CREATE TABLE bare (id int)"
documents="CREATE TABLE document (id int PRIMARY KEY, title text, body text);
ALTER TABLE document ALTER body SET STORAGE EXTERNAL;
INSERT INTO document VALUES (1, 'a', repeat('x', 3000))"
parents="CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE other (id int PRIMARY KEY)"
beside="CREATE TABLE beside (id int PRIMARY KEY)"
people="CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE person (id int PRIMARY KEY, name text)"

psql -X -q -d postgres -c "SELECT pg_drop_replication_slot('capture') FROM pg_replication_slots WHERE slot_name = 'capture'" \
    -c 'DROP DATABASE IF EXISTS capture' -c "CREATE DATABASE capture ENCODING 'UTF8' TEMPLATE template0" >/dev/null
sql -c 'CREATE PUBLICATION capture FOR ALL TABLES' -c "SELECT pg_create_logical_replication_slot('capture', 'pgoutput')" >/dev/null

scenario pgoutput row_changes "$items" \
"INSERT INTO item VALUES (1, 'one', 1.50), (2, NULL, NULL);
UPDATE item SET name = 'Eins' WHERE id = 1;
UPDATE item SET id = 3 WHERE id = 2;
DELETE FROM item WHERE id = 1;"

scenario pgoutput identities "$identities" \
"INSERT INTO whole VALUES (1, 'a');
UPDATE whole SET name = NULL;
DELETE FROM whole;
INSERT INTO by_index VALUES (1, 'a');
UPDATE by_index SET id = 2;
UPDATE by_index SET code = 'b';
DELETE FROM by_index;
INSERT INTO bare VALUES (1);"

scenario pgoutput unchanged_toast "$documents" \
"UPDATE document SET title = 'b';
UPDATE document SET body = 'short';"

scenario pgoutput truncate "$parents" \
"TRUNCATE parent CASCADE;
TRUNCATE parent, child, other RESTART IDENTITY;"

scenario pgoutput logical_messages "$beside" \
"SELECT pg_logical_emit_message(false, 'walcache', '');
BEGIN;
SELECT pg_logical_emit_message(true, 'walcache', 'within');
INSERT INTO beside VALUES (1);
COMMIT;"

scenario pgoutput shape_changes "$people" \
"BEGIN;
INSERT INTO person VALUES (1, 'a');
ALTER TABLE person ADD mood mood DEFAULT 'ok', ALTER name TYPE varchar(40);
INSERT INTO person VALUES (2, 'b', 'sad');
ALTER TABLE person DROP name;
UPDATE person SET mood = NULL WHERE id = 1;
COMMIT;"

scenario pgoutput origin "SELECT pg_replication_origin_create('elsewhere')
    WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = 'elsewhere');
CREATE TABLE copied (id int PRIMARY KEY)" \
"SELECT pg_replication_origin_session_setup('elsewhere');
BEGIN;
SELECT pg_replication_origin_xact_setup('16/B374D848', '2001-02-03 04:05:06+00');
INSERT INTO copied VALUES (1);
COMMIT;"
sql -c "SELECT pg_replication_origin_drop('elsewhere')" >/dev/null

scenario pgoutput names "CREATE SCHEMA \"a \"\"b\"\" ünï\";
CREATE TABLE \"a \"\"b\"\" ünï\".\"sélect\" (\"the, id\" int PRIMARY KEY, \"\"\"\" \"char\");
CREATE TABLE no_columns ()" \
"INSERT INTO \"a \"\"b\"\" ünï\".\"sélect\" VALUES (1, 'x');
INSERT INTO no_columns DEFAULT VALUES;"

# Every type: the stream, the facts of its types, and row_to_json as the oracle: table, id, column, and the value's JSON
# text as a JSON string.
sql -1 -f types.sql
take_pgoutput >types/stream.txt
oids="SELECT array_agg(DISTINCT atttypid) FROM pg_attribute WHERE attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE relname IN ('types', 'types_nested', 'types_refetched'))"
{ echo 'SELECT row_to_json(f) FROM ('; sed "s/\$1::oid\[\]/($oids)/" ../../sql/type_facts.sql; echo ') AS f'; } | sql >types/facts.txt
# Column by column, as json_each refuses what the type json may hold.
cat <<'SQL' | sql -F"$(printf '\t')" >types/json.txt
SELECT format('SELECT %L, id, %L, to_json(substr(j.row, 6, length(j.row) - 6)) FROM types.%I AS t,
    LATERAL (SELECT row_to_json(r)::text FROM (SELECT t.%I AS v) AS r) AS j (row) ORDER BY id', relname, attname, relname, attname)
FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
WHERE attrelid IN ('types.types'::regclass, 'types.types_nested'::regclass) AND attnum > 0 ORDER BY relname, attnum \gexec
SQL
sql -c "SELECT pg_drop_replication_slot('capture')" >/dev/null

# The same and more through wal2json, of which the messages are text.
mkdir -p wal2json
sql -c 'DROP PUBLICATION capture' -c 'DROP SCHEMA public CASCADE' -c 'DROP SCHEMA "a ""b"" ünï" CASCADE' -c 'CREATE SCHEMA public' \
    -c "SELECT pg_create_logical_replication_slot('capture', 'wal2json')" 2>/dev/null >/dev/null

scenario wal2json row_changes "$items" \
"INSERT INTO item VALUES (1, 'one', 1.50), (2, NULL, NULL), (4, 'NaN', 'NaN');
UPDATE item SET name = 'Eins' WHERE id = 1;
UPDATE item SET id = 3 WHERE id = 2;
DELETE FROM item WHERE id = 1;"

scenario wal2json identities "$identities" \
"INSERT INTO whole VALUES (1, 'a');
UPDATE whole SET name = NULL;
DELETE FROM whole;
INSERT INTO by_index VALUES (1, 'a');
UPDATE by_index SET id = 2;
UPDATE by_index SET code = 'b';
DELETE FROM by_index;
INSERT INTO bare VALUES (1);
UPDATE bare SET id = 2;
DELETE FROM bare;"

scenario wal2json unchanged_toast "$documents" \
"UPDATE document SET title = 'b';
ALTER TABLE document REPLICA IDENTITY FULL;
UPDATE document SET title = 'c';
UPDATE document SET body = 'short';"

scenario wal2json truncate "$parents" \
"TRUNCATE parent CASCADE;
TRUNCATE parent, child, other RESTART IDENTITY;"

scenario wal2json logical_messages "$beside" \
"SELECT pg_logical_emit_message(false, 'walcache', '');
BEGIN;
SELECT pg_logical_emit_message(true, 'walcache', E'with\tin');
SELECT pg_logical_emit_message(true, 'other', 'not asked for');
SELECT pg_logical_emit_message(true, 'walcache', '\\x610062'::bytea);
INSERT INTO beside VALUES (1);
COMMIT;"

scenario wal2json shape_changes "$people" \
"BEGIN;
INSERT INTO person VALUES (1, 'a');
ALTER TABLE person ADD mood mood DEFAULT 'ok', ALTER name TYPE varchar(40);
INSERT INTO person VALUES (2, 'b', 'sad');
ALTER TABLE person DROP name;
UPDATE person SET mood = NULL WHERE id = 1;
COMMIT;"

scenario wal2json names "CREATE SCHEMA \"a \"\"b\"\" ünï\";
CREATE TABLE \"a \"\"b\"\" ünï\".\"sélect\" (\"the, id\" int PRIMARY KEY, \"\"\"\" \"char\");
CREATE TABLE no_columns ();
CREATE TABLE stranger (id int PRIMARY KEY)" \
"INSERT INTO \"a \"\"b\"\" ünï\".\"sélect\" VALUES (1, 'x');
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO stranger VALUES (1);"

scenario wal2json kinds "CREATE TABLE kinds (id int PRIMARY KEY, bytes bytea, yes bool, real real, double float8, number numeric,
    tags text[], oid oid, gone text, text text, twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE kinds DROP gone" \
"INSERT INTO kinds VALUES (1, '\\x00ff', true, 1e-5, -0.0, 1.50, '{a,NULL,\"b\\\\c\"}', 4294967295, E'\\t\\u0001\"é');
INSERT INTO kinds VALUES (-2, '\\x', false, 'NaN', '-Infinity', 'Infinity', '{}', 0, '');
INSERT INTO kinds (id) VALUES (3);"

scenario wal2json partitions "CREATE TABLE split (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
CREATE TABLE split_low PARTITION OF split FOR VALUES FROM (0) TO (10);
CREATE TABLE split_high (note text, gone int, id int NOT NULL) PARTITION BY RANGE (id);
ALTER TABLE split_high DROP gone;
CREATE TABLE split_high_one PARTITION OF split_high FOR VALUES FROM (10) TO (20);
ALTER TABLE split ATTACH PARTITION split_high FOR VALUES FROM (10) TO (20)" \
"INSERT INTO split VALUES (1, 'a'), (11, 'b');
UPDATE split SET id = 12 WHERE id = 1;
DELETE FROM split WHERE id = 11;
TRUNCATE split;"
sql -c "SELECT pg_drop_replication_slot('capture')" >/dev/null
psql -X -q -d postgres -c 'DROP DATABASE capture'
