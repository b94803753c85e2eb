-- The event triggers that announce schema changes, as they stand: one row for each.
SELECT t.evtevent::text AS event,
       t.evtenabled <> 'D' AND coalesce(current_setting('event_triggers', true), 'on') = 'on' AS enabled,
       p.prosrc AS body
FROM pg_event_trigger t
JOIN pg_proc p ON p.oid = t.evtfoid
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = 'walcache' AND p.proname = 'announce_ddl'
