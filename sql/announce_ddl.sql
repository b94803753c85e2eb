-- Event triggers that announce changes of the schema in the log, in the transaction that makes them. Whoever follows the
-- log then knows exactly between which changes of rows they lie.
--
-- The function runs as whoever makes the change, also as a superuser: so it belongs to whoever may make event triggers,
-- and finds nothing but what Postgres itself brings.
CREATE OR REPLACE FUNCTION walcache.announce_ddl() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $announce$
BEGIN
    -- Temporary tables are nobody else's; some applications make them all day.
    IF tg_event = 'sql_drop' THEN
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_event_trigger_dropped_objects() AS o
            WHERE NOT o.is_temporary
              AND o.object_type IN ('table', 'table column', 'view', 'materialized view', 'foreign table', 'index', 'type',
                  'composite type', 'domain', 'schema', 'cast', 'publication', 'publication relation',
                  'publication namespace', 'extension')
        ) THEN
            RETURN;
        END IF;
    ELSIF NOT EXISTS (
        SELECT FROM pg_catalog.pg_event_trigger_ddl_commands() AS c WHERE c.schema_name IS DISTINCT FROM 'pg_temp'
    ) THEN
        RETURN;
    END IF;
    PERFORM pg_catalog.pg_logical_emit_message(true, 'walcache.ddl', tg_tag);
EXCEPTION WHEN OTHERS THEN
    -- Whatever goes wrong here is no reason for the statement itself to fail. It is noticed all the same, if later.
    NULL;
END
$announce$;
COMMENT ON FUNCTION walcache.announce_ddl() IS 'walcache: tells of schema changes in the log';
DROP EVENT TRIGGER IF EXISTS walcache_ddl;
DROP EVENT TRIGGER IF EXISTS walcache_drop;
CREATE EVENT TRIGGER walcache_ddl ON ddl_command_end
WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE INDEX', 'ALTER INDEX', 'CREATE VIEW',
    'ALTER VIEW', 'CREATE MATERIALIZED VIEW', 'ALTER MATERIALIZED VIEW', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE',
    'IMPORT FOREIGN SCHEMA', 'CREATE SCHEMA', 'ALTER SCHEMA', 'ALTER TYPE', 'ALTER DOMAIN', 'CREATE CAST',
    'CREATE EXTENSION', 'ALTER EXTENSION', 'CREATE PUBLICATION', 'ALTER PUBLICATION', 'GRANT', 'REVOKE')
EXECUTE FUNCTION walcache.announce_ddl();
CREATE EVENT TRIGGER walcache_drop ON sql_drop
EXECUTE FUNCTION walcache.announce_ddl();
-- Whatever session_replication_role says.
ALTER EVENT TRIGGER walcache_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER walcache_drop ENABLE ALWAYS;
