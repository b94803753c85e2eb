//! Faults 16, 17 and 18: Redis is emptied, goes back, fails over, is away, does not answer, is full, refuses writes, or
//! holds what others wrote. (The network before it: see `redis_network`; away for long: see `outage`.)

mod lost;

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use walcache::sandbox::{PostgresOptions, Redis, RedisOptions, Restart, free_port};

use std::sync::Arc;

use crate::harness::{Entity, Proxy, Raw, Shop, current_lsn, eventually, servable, version};

/// 16: away.
/// When the daemon has last told its position.
async fn reported(sql: &Client) -> Option<String> {
    let query = "SELECT max(reply_time)::text FROM pg_stat_replication";
    sql.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn away_for_a_while() {
    let mut shop = Shop::new("redis_away").await;
    // However long that takes.
    shop.config = shop.config.set("l2", "max_backlog_age", "10m");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    let load = shop.load(&daemon, 15);
    load.reads(200).await;
    shop.stage.redis.kill().await.unwrap();
    daemon.until_trusted(false).await;
    let gone = current_lsn(&sql).await;
    load.writes(100).await;
    load.reads(20).await;
    // What was applied before may be reported until then.
    for _ in 0..2 {
        let last = reported(&sql).await;
        eventually("have the position reported again", || async {
            let now = reported(&sql).await;
            if now.is_some() && now != last { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }
    let slot = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots";
    let first: String = sql.query_one(slot, &[]).await.unwrap().get(0);
    load.writes(200).await;
    // Slow: those who pass their last LSN back wait for the watermark before they are given what Postgres has.
    load.reads(20).await;
    let then: String = sql.query_one(slot, &[]).await.unwrap().get(0);
    assert_eq!(first, then, "nothing is confirmed while L2 is away");
    assert!(shop.confirmed().await <= gone, "nothing was applied since {gone}");
    let metrics = daemon.admin().get("/metrics").await.text();
    assert!(metrics.contains("walcache_l2_trusted 0"), "{metrics}");
    let began = Instant::now();
    let response = http.get("/v1/counter/1").await;
    assert!(matches!(response.status.as_u16(), 200 | 404), "{response:?}");
    // Far from `source.fill_timeout`.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    shop.stage.redis.start_again(Restart::Empty).await.unwrap();
    daemon.until_trusted(true).await;
    load.reads(50).await;
    shop.ends_well(load, &daemon).await;
}

/// 16: open connections and no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_and_resumed() {
    let mut shop = Shop::new("redis_pause").await;
    shop.config = shop.config.set("l2", "response_timeout", "500ms");
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 16);
    for _ in 0..2 {
        load.reads(100).await;
        shop.stage.redis.pause().await.unwrap();
        daemon.until_trusted(false).await;
        load.writes(50).await;
        load.reads(50).await;
        shop.stage.redis.resume().unwrap();
        daemon.until_trusted(true).await;
        load.writes(20).await;
    }
    let done = load.stop().await;
    assert_eq!(done.failed_reads, 0, "{done:?}");
    shop.equals_postgres(&daemon).await;
}

/// 18: out of memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory() {
    let redis = RedisOptions::new().setting("maxmemory-policy", "noeviction");
    let shop = Shop::with("redis_oom", PostgresOptions::new(), redis).await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 17);
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    load.reads(200).await;
    for _ in 0..3 {
        raw.run(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
        assert!(raw.run(&["SET", "x", "y"]).await.is_err(), "it is full");
        load.writes(60).await;
        load.reads(100).await;
        raw.run(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
        load.writes(20).await;
    }
    shop.ends_well(load, &daemon).await;
}

/// 18: evicting whatever it likes, the fence, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicting_under_load() {
    let redis = RedisOptions::new().setting("maxmemory-policy", "allkeys-random");
    let shop = Shop::with("redis_evict", PostgresOptions::new(), redis).await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 18);
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    for _ in 0..10 {
        load.reads(40).await;
        raw.run(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
        load.writes(10).await;
        raw.run(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    }
    load.writes(20).await;
    load.stop().await;
    shop.equals_postgres(&daemon).await;
}

/// 16, O4 to the byte: a commit that Redis cannot take is not confirmed, however often the position is reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_confirmed_that_redis_has_not_taken() {
    let shop = Shop::new("redis_confirm").await;
    let sql = shop.sql().await;
    let end = shop.put(&sql, 1, 1).await;
    let daemon = shop.daemon().await;
    daemon.http().get("/v1/counter/1").await.expect(200);
    daemon.wait_applied(end).await;
    shop.stage.redis.kill().await.unwrap();
    let before = current_lsn(&sql).await;
    shop.put(&sql, 1, 2).await;
    for _ in 0..10 {
        let last = reported(&sql).await;
        eventually("have the position reported again", || async {
            let now = reported(&sql).await;
            if now.is_some() && now != last { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        let confirmed = shop.confirmed().await;
        assert!(confirmed <= before, "{confirmed} is confirmed, and nothing after {before} was taken");
    }
    shop.stage.redis.start_again(Restart::Empty).await.unwrap();
    daemon.until_trusted(true).await;
    shop.equals_postgres(&daemon).await;
}

/// 18: made a replica of nobody for a while: it answers reads and refuses writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_for_a_while() {
    let shop = Shop::new("redis_readonly").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 24);
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let nobody = free_port().to_string();
    for _ in 0..3 {
        load.reads(100).await;
        raw.run(&["REPLICAOF", "127.0.0.1", &nobody]).await.unwrap();
        let refused = raw.run(&["SET", "x", "y"]).await.unwrap_err();
        assert_eq!(refused.code(), Some("READONLY"));
        load.writes(60).await;
        load.reads(60).await;
        raw.run(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
        daemon.until_trusted(true).await;
        load.writes(20).await;
    }
    shop.ends_well(load, &daemon).await;
}

/// 18: evicting only what expires. The fence does not: it stays, and with it the generation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicting_what_expires_under_load() {
    let redis = RedisOptions::new().setting("maxmemory-policy", "volatile-random");
    let shop = Shop::with("redis_volatile", PostgresOptions::new(), redis).await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 25);
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    for _ in 0..10 {
        load.reads(40).await;
        raw.run(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
        // Everything that can go goes, and then writes are refused.
        assert!(raw.run(&["SET", "x", "y"]).await.is_err());
        load.writes(10).await;
        raw.run(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    }
    load.writes(20).await;
    let done = load.stop().await;
    assert_eq!(done.failed_reads, 0, "{done:?}");
    shop.equals_postgres(&daemon).await;
    // (One of the entity alone, the load may ask for.)
    assert!(!daemon.log().contains("everything cached so far"), "{}", daemon.log());
}

/// 18, to the single write: an entry is there, Redis is full or takes no writes, the row changes. Where it is full, what
/// keeps entries current is written all the same. Where it takes no writes, nobody is told that the entry is current, and
/// nothing is confirmed; as soon as writes are taken, the entry is replaced or gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_that_could_not_be_written_is_not_lost() {
    let nobody = free_port().to_string();
    let full: (&[&str], &[&str], bool) =
        (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], true);
    let read_only: (&[&str], &[&str], bool) =
        (&["REPLICAOF", "127.0.0.1", &nobody], &["REPLICAOF", "NO", "ONE"], false);
    for on_change in ["refresh", "invalidate"] {
        let redis = RedisOptions::new().setting("maxmemory-policy", "noeviction");
        let mut shop = Shop::with(&format!("redis_{on_change}"), PostgresOptions::new(), redis).await;
        // An entity of its own beside the shop's: only its entries are looked at.
        let entity = Entity::new("kept", "public.counters").set("on_change", on_change);
        shop.config = shop.config.entity(entity).set("l1", "enabled", false).set("freshness", "min_lsn_wait", "100ms");
        let sql = shop.sql().await;
        let daemon = shop.daemon().await;
        let http = daemon.http();
        let mut raw = Raw::connect(&shop.stage).await.unwrap();
        let mut value = 0;
        for (breaks, mends, is_applied) in [full, read_only, full] {
            value += 1;
            let end = shop.put(&sql, 1, value).await;
            daemon.wait_applied(end).await;
            let cached = http.get("/v1/kept/1").await.expect(200);
            assert_eq!(version(&cached.json()), Some(value));
            raw.run(breaks).await.unwrap();
            assert!(raw.run(&["SET", "x", "y"]).await.is_err(), "it takes writes");
            let before = current_lsn(&sql).await;
            value += 1;
            let end = shop.put(&sql, 1, value).await;
            sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
            let headers = [("x-min-lsn", &*end.to_string())];
            for _ in 0..3 {
                let response = http.get_with("/v1/kept/1", &headers).await.expect(200);
                assert_eq!(version(&response.json()), Some(value), "{:?}", response.headers);
                let response = http.get("/v1/kept/1").await.expect(200);
                let applied: walcache::lsn::Lsn = response.header("x-applied-lsn").parse().unwrap();
                let found = version(&response.json()).unwrap();
                assert!(found == value || (found == value - 1 && applied < end), "{found}: {:?}", response.headers);
                let confirmed = shop.confirmed().await;
                assert!(
                    is_applied || confirmed <= before,
                    "{confirmed} is confirmed, and nothing after {before} was written"
                );
            }
            if is_applied {
                daemon.wait_applied(end).await;
            }
            raw.run(mends).await.unwrap();
            daemon.wait_applied(end).await;
            if let Some(entry) = servable(&raw.look("kept:1").await.unwrap().unwrap(), "kept") {
                assert_eq!(entry.version(), Some(value), "{on_change}, {breaks:?}: left stale in Redis");
            }
            assert_eq!(version(&http.get("/v1/kept/1").await.expect(200).json()), Some(value));
        }
        shop.equals_postgres(&daemon).await;
    }
}
