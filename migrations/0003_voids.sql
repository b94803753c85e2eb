-- More of what an application calls: invalidating entries that it does not name one by one. As those of before, each is part
-- of the transaction that calls it.

-- SELECT walcache.invalidate_tag('tenant:7')
CREATE FUNCTION walcache.invalidate_tag(VARIADIC tags text[]) RETURNS pg_catalog.pg_lsn
LANGUAGE sql VOLATILE PARALLEL UNSAFE
AS $$
    SELECT pg_catalog.pg_logical_emit_message(true, 'walcache', pg_catalog.jsonb_build_object('invalidate',
        pg_catalog.jsonb_build_object('tags', pg_catalog.to_jsonb(tags)))::pg_catalog.text)
$$;

-- SELECT walcache.invalidate_pattern('customer_orders:42,*')
CREATE FUNCTION walcache.invalidate_pattern(VARIADIC patterns text[]) RETURNS pg_catalog.pg_lsn
LANGUAGE sql VOLATILE PARALLEL UNSAFE
AS $$
    SELECT pg_catalog.pg_logical_emit_message(true, 'walcache', pg_catalog.jsonb_build_object('invalidate',
        pg_catalog.jsonb_build_object('patterns', pg_catalog.to_jsonb(patterns)))::pg_catalog.text)
$$;
