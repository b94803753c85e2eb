//! Redis is away for longer than is tolerated (16, 17), or there is none.

use walcache::failpoint::KILLS;
use walcache::lsn::Lsn;
use walcache::sandbox::{PostgresOptions, RedisOptions, Restart, free_port};

use crate::harness::{Config, Daemon, Raw, Shop, Stage, current_lsn, eventually, version};

/// A shop whose daemon waits this long for Redis.
async fn shop(name: &str, key: &str, bound: &str) -> Shop {
    let mut shop = Shop::with(name, PostgresOptions::new(), RedisOptions::new().append_only()).await;
    shop.config = shop.config.set("l2", key, bound).set("freshness", "stale_after", "60s");
    shop
}

/// Writes go on, and are served from L1; the slot lets the log go; and what Redis still has is void when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_bound_it_goes_on_without_redis() {
    let shop = shop("outage", "max_backlog_age", "1s").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    shop.cached(&sql, &daemon, 1).await;
    let before = daemon.generation().await;
    let load = shop.load(&daemon, 61);
    load.reads(100).await;
    shop.stage.redis.kill().await.unwrap();
    load.writes(50).await;
    let gone = current_lsn(&sql).await;
    shop.until_confirmed(gone).await;
    load.reads(100).await;
    let status = daemon.status().await;
    assert_eq!(
        (&status["l2"]["trusted"], &status["l2"]["going_on_without"]),
        (&false.into(), &true.into()),
        "{status}"
    );
    assert!(status["l2"]["failing_seconds"].as_f64().unwrap() >= 1.0, "{status}");
    assert!(daemon.admin().get("/metrics").await.text().contains("walcache_l2_trusted 0"));
    // What it fills now is kept, served, and replaced in L1 alone.
    eventually("answer from L1", || async {
        let response = http.get("/v1/counter/1").await;
        if response.header("x-cache") == "HIT-L1" { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    daemon.until_trusted(true).await;
    assert!(daemon.generation().await > before, "Redis missed changes");
    load.writes(20).await;
    load.reads(100).await;
    shop.ends_well(load, &daemon).await;
}

/// The bound in bytes of log counts as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_log_ends_the_wait() {
    let mut shop = shop("outage_bytes", "max_backlog_age", "1h").await;
    shop.config = shop.config.set("l2", "max_backlog", "256KiB");
    let sql = shop.sql().await;
    shop.put(&sql, 1, 1).await;
    let daemon = shop.daemon().await;
    shop.stage.redis.kill().await.unwrap();
    let first = shop.put(&sql, 1, 2).await;
    eventually("fail to write to Redis", || async {
        let status = daemon.status().await;
        if status["l2"]["failing_seconds"].is_number() { Ok(()) } else { Err(status["l2"].to_string()) }
    })
    .await;
    assert!(shop.confirmed().await < first, "within the bound nothing is confirmed that Redis has not taken");
    // A transaction that is not published, of more bytes than the bound.
    sql.batch_execute("CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)").await.unwrap();
    let end = current_lsn(&sql).await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    shop.until_confirmed(end).await;
    assert_eq!(version(&daemon.http().get("/v1/counter/1").await.expect(200).json()), Some(2));
}

/// That Redis is distrusted outlives the process: the slot has confirmed more than Redis has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_goes_on_without_redis() {
    let shop = shop("outage_killed", "max_backlog_age", "100ms").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    shop.cached(&sql, &daemon, 1).await;
    let before = daemon.generation().await;
    shop.stage.redis.kill().await.unwrap();
    for id in 0..10 {
        shop.put(&sql, id, 2).await;
    }
    sql.batch_execute("DELETE FROM counters WHERE id = 10").await.unwrap();
    shop.until_confirmed(current_lsn(&sql).await).await;
    daemon.kill().await;
    // As it was: with entries that bear the old versions.
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    assert!(!raw.keys("counter").await.is_empty());
    let daemon = shop.daemon().await;
    assert!(daemon.generation().await > before);
    shop.equals_postgres(&daemon).await;
}

/// Within the bound the log makes up for the outage: nothing that is cached is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn within_the_bound_nothing_is_lost() {
    let shop = shop("outage_short", "max_backlog_age", "1h").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    shop.cached(&sql, &daemon, 1).await;
    let before = daemon.generation().await;
    shop.stage.redis.kill().await.unwrap();
    for id in 0..10 {
        shop.put(&sql, id, 2).await;
    }
    eventually("notice", || async {
        let status = daemon.status().await;
        if status["l2"]["failing_seconds"].is_number() { Ok(()) } else { Err(status["l2"].to_string()) }
    })
    .await;
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    daemon.until_trusted(true).await;
    let compared = shop.equals_postgres(&daemon).await;
    assert!(compared.entries >= 20, "{compared:?}");
    assert_eq!(daemon.generation().await, before);
    assert_eq!(daemon.status().await["l2"]["going_on_without"], false);
}

/// Another daemon with the same configuration.
fn beside(config: &Config) -> Config {
    let free = || format!("127.0.0.1:{}", free_port());
    config.clone().set("http", "listen", free()).set("admin", "listen", free())
}

async fn until_stopped(daemon: &Daemon) {
    eventually("stop at the failpoint", || async {
        if daemon.log().contains("stopping this process") { Ok(()) } else { Err("not yet") }
    })
    .await;
}

/// A successor reads where the slot stands, and only then the leader goes on without Redis, confirms, and is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_had_read_the_slot_before() {
    let shop = shop("outage_successor", "max_backlog_age", "100ms").await;
    let sql = shop.sql().await;
    let leader = shop.daemon().await;
    for id in 0..20 {
        shop.put(&sql, id, 1).await;
        leader.http().get(&format!("/v1/counter/{id}")).await.expect(200);
    }
    let successor = Daemon::start_with(&beside(&shop.config), &[(KILLS, "slot-read=stop@1")]).await;
    until_stopped(&successor).await;
    shop.stage.redis.kill().await.unwrap();
    for id in 0..10 {
        shop.put(&sql, id, 2).await;
    }
    shop.until_confirmed(current_lsn(&sql).await).await;
    leader.kill().await;
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    shop.confirmed_when_free().await;
    successor.resume();
    successor.wait_ready().await;
    shop.equals_postgres(&successor).await;
}

/// 17, 24: Redis comes back with an old dump while the leader is paused; its successor finds that and starts a new
/// generation, of which the former leader has not heard: it must not believe Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_leader_does_not_know_of_the_new_generation() {
    let mut shop = Shop::new("outage_former").await;
    shop.config = shop.config.set("l1", "enabled", false).set("freshness", "stale_after", "60s");
    let sql = shop.sql().await;
    let former = shop.daemon().await;
    shop.cached(&sql, &former, 1).await;
    shop.stage.redis.save().await.unwrap();
    let mut end = current_lsn(&sql).await;
    for id in 0..20 {
        end = shop.put(&sql, id, 2).await;
    }
    former.wait_applied(end).await;
    former.pause().await;
    sql.batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await.unwrap();
    shop.stage.redis.kill().await.unwrap();
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    let successor = Daemon::start(&beside(&shop.config)).await;
    successor.wait_ready().await;
    successor.until_trusted(true).await;
    former.resume();
    let http = former.http();
    // Whether it believes Redis yet or not.
    for _ in 0..5 {
        for id in 0..20 {
            let response = http.get(&format!("/v1/counter/{id}")).await.expect(200);
            let applied: Lsn = response.header("x-applied-lsn").parse().unwrap();
            assert!(applied < end || version(&response.json()) == Some(2), "{response:?}");
        }
    }
    eventually("find the slot held", || async {
        if former.log().contains("another consumer holds the slot") { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert_eq!(former.status().await["l2"]["trusted"], false);
    shop.equals_postgres(&successor).await;
}

/// TRUNCATE during the outage voids what is in L1, and what Redis still has is void when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_truncated_meanwhile() {
    let shop = shop("outage_truncate", "max_backlog_age", "100ms").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    shop.cached(&sql, &daemon, 1).await;
    shop.stage.redis.kill().await.unwrap();
    shop.until_confirmed(shop.put(&sql, 0, 2).await).await;
    eventually("answer from L1", || async {
        let response = http.get("/v1/counter/5").await;
        if response.header("x-cache") == "HIT-L1" { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    daemon.wait_applied(shop.truncate(&sql).await.unwrap()).await;
    for id in 0..20 {
        http.get(&format!("/v1/counter/{id}")).await.expect(404);
    }
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    daemon.until_trusted(true).await;
    shop.equals_postgres(&daemon).await;
}

/// A server that went back behind connections that still stand is noticed with the next batch, without a reconnect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_lost_is_noticed_with_the_next_batch() {
    let shop = shop("outage_lost", "max_backlog_age", "1h").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    shop.cached(&sql, &daemon, 1).await;
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let before = daemon.generation().await;
    // As after a full resynchronisation from a server that missed the last writes.
    raw.run(&["HSET", "~walcache:fence", "done", "0000000000000001"]).await.unwrap();
    shop.put(&sql, 1, 2).await;
    daemon.until_generation_beyond(before).await;
    shop.equals_postgres(&daemon).await;
}

/// Without Redis there are two tiers: the process and Postgres.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_l2() {
    let shop = Shop::new("no_l2").await;
    let mut shop = shop;
    shop.config = shop.config.without("l2").set("freshness", "stale_after", "60s");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    // What is read before its own event was applied is not kept.
    daemon.wait_applied(shop.put(&sql, 1, 1).await).await;
    let cache = |response: &crate::harness::Response| response.header("x-cache").to_owned();
    let first = http.get("/v1/counter/1").await.expect(200);
    assert_eq!(cache(&first), "MISS");
    assert_eq!(cache(&http.get("/v1/counter/1").await.expect(200)), "HIT-L1");
    let end = shop.put(&sql, 1, 2).await;
    let after = http.get_with("/v1/counter/1", &[("x-min-lsn", &end.to_string())]).await.expect(200);
    assert_eq!(version(&after.json()), Some(2));
    daemon.wait_applied(shop.truncate(&sql).await.unwrap()).await;
    http.get("/v1/counter/1").await.expect(404);
    let status = daemon.status().await;
    assert_eq!((&status["l2"]["configured"], &status["l2"]["trusted"]), (&false.into(), &false.into()), "{status}");
    let load = shop.load(&daemon, 62);
    load.writes(100).await;
    load.reads(200).await;
    daemon.kill().await;
    let daemon = shop.daemon().await;
    load.writes(50).await;
    load.reads(100).await;
    let end_stream = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{0}' AND active",
        shop.stage.name
    );
    sql.batch_execute(&end_stream).await.unwrap();
    load.writes(50).await;
    load.stop().await;
    let compared = shop.equals_postgres(&daemon).await;
    assert_eq!(compared.entries, 0, "nothing is in Redis");
    shop.stage.postgres.kill().await.unwrap();
    shop.stage.postgres.start_again().await.unwrap();
    shop.equals_postgres(&daemon).await;
}

/// Neither tier: said at the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_tier() {
    let stage = Stage::shared("no_tier").await;
    let config: Config = stage.config().without("l2").set("l1", "enabled", false);
    let done = crate::harness::cli(&config, &["check", "--offline"], &[]).await;
    assert_eq!(done.status.code(), Some(78), "{done:?}");
    assert!(done.stderr.contains("l1.enabled: there is no [l2] either"), "{done:?}");
}
