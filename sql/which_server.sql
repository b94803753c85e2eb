-- Which server this is, all as text: its cluster, its timeline (none on a standby), when it started (in microseconds), and
-- where this connection has reached it. Sent also over the replication connection, as a simple query. The timeline is the
-- one that is written now; that of the last checkpoint may be older.
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS identifier,
       CASE WHEN NOT pg_is_in_recovery()
           THEN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int::text
       END AS timeline,
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text AS started,
       coalesce(host(inet_server_addr()) || ':' || inet_server_port(), 'a Unix socket') AS address
