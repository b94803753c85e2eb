-- What an application calls to say what no row change shows. Each writes a message into the log, as part of the
-- transaction that calls it: it takes effect when that commits, and is gone when that rolls back. Whoever may connect
-- can write such messages anyway, so these are for everybody; keys are spelled as in URLs.

GRANT USAGE ON SCHEMA walcache TO PUBLIC;

-- SELECT walcache.invalidate('product', '42', '43')
CREATE FUNCTION walcache.invalidate(entity text, VARIADIC keys text[]) RETURNS pg_catalog.pg_lsn
LANGUAGE sql VOLATILE PARALLEL UNSAFE
AS $$
    SELECT pg_catalog.pg_logical_emit_message(true, 'walcache', pg_catalog.jsonb_build_object('invalidate',
        pg_catalog.jsonb_build_object('entity', entity, 'keys', pg_catalog.to_jsonb(keys)))::pg_catalog.text)
$$;

-- SELECT walcache.invalidate_all('product')
CREATE FUNCTION walcache.invalidate_all(entity text) RETURNS pg_catalog.pg_lsn
LANGUAGE sql VOLATILE PARALLEL UNSAFE
AS $$
    SELECT pg_catalog.pg_logical_emit_message(true, 'walcache', pg_catalog.jsonb_build_object('invalidate',
        pg_catalog.jsonb_build_object('entity', entity))::pg_catalog.text)
$$;

-- SELECT walcache.warm('product', '42', '43')
CREATE FUNCTION walcache.warm(entity text, VARIADIC keys text[]) RETURNS pg_catalog.pg_lsn
LANGUAGE sql VOLATILE PARALLEL UNSAFE
AS $$
    SELECT pg_catalog.pg_logical_emit_message(true, 'walcache', pg_catalog.jsonb_build_object('warm',
        pg_catalog.jsonb_build_object('entity', entity, 'keys', pg_catalog.to_jsonb(keys)))::pg_catalog.text)
$$;
