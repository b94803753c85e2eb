-- What the server and the role $1 are and may do. The role's oid is 0 where it does not exist: that is PUBLIC to the
-- has_*_privilege functions.
SELECT current_setting('server_version_num')::int AS version,
       pg_is_in_recovery() AS in_recovery,
       current_setting('wal_level') AS wal_level,
       current_setting('server_encoding') AS encoding,
       current_database()::text AS database,
       current_user::text AS session_role,
       current_setting('max_replication_slots')::int AS slots_max,
       (SELECT count(*) FROM pg_replication_slots)::int AS slots_used,
       current_setting('max_wal_senders')::int AS senders_max,
       (SELECT count(*) FROM pg_stat_replication)::int AS senders_used,
       coalesce(r.oid, 0::oid) AS role_oid,
       coalesce(r.rolcanlogin, false) AS can_login,
       coalesce(r.rolsuper OR r.rolreplication
           -- On Amazon RDS and Aurora replication is a membership.
           OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication' AND pg_has_role(r.oid, m.oid, 'MEMBER')),
           false) AS can_replicate
FROM (SELECT) AS one
LEFT JOIN pg_roles r ON r.rolname = $1
