-- Makes a slot of plugin $2 for this session only, which loads the plugin.
SELECT pg_create_logical_replication_slot($1, $2, true)
