-- When the server's statistics began, in microseconds: recovery after a crash starts them anew.
SELECT coalesce((extract(epoch FROM stats_reset) * 1000000)::bigint, 0) FROM pg_stat_bgwriter
