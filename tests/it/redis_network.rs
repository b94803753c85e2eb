//! Faults 16 and 19, between the daemon and Redis: silence in both directions or in one, resets, ends in the middle of
//! a reply, garbage, and answers around the limit of what `l2.response_timeout` allows.
//!
//! The bound within which silence is noticed: each heartbeat writes L2, so `source.heartbeat_interval` (here 300 ms) and
//! `l2.response_timeout` (here 500 ms).

use std::time::{Duration, Instant};

use walcache::sandbox::PostgresOptions;
use walcache::sandbox::RedisOptions;

use crate::harness::{Daemon, Proxy, Shop, WAYS, Way, current_lsn, eventually, eventually_within, version};

/// The bound above, on a busy machine; a connection is tried again every 3 s at least.
const NOTICED: Duration = Duration::from_secs(12);
/// `l2.response_timeout` here.
const RESPONSE: Duration = Duration::from_millis(500);

async fn through_proxy(name: &str) -> (Shop, Proxy) {
    let mut shop = Shop::with(name, PostgresOptions::new(), RedisOptions::new()).await;
    let proxy = Proxy::start(shop.stage.redis.port()).await;
    let url = shop.stage.redis.url_at(proxy.port(), shop.stage.redis_database);
    shop.config = shop
        .config
        .set("l2", "url", url)
        .set("l2", "response_timeout", format!("{}ms", RESPONSE.as_millis()))
        .set("l2", "connect_timeout", "1s");
    (shop, proxy)
}

/// How often the readers' connection was given up.
fn bypasses(daemon: &Daemon) -> usize {
    daemon.log().matches("L2 is bypassed: its connection broke").count()
}

/// Silence, with and without a load; reads go on from L1 and Postgres.
async fn silent(name: &str, silence: impl Fn(&Proxy)) {
    let (shop, proxy) = through_proxy(name).await;
    let daemon = shop.daemon().await;
    for under_load in [true, false] {
        let load = under_load.then(|| shop.load(&daemon, 81));
        if let Some(load) = &load {
            load.reads(100).await;
            load.writes(30).await;
        }
        let began = Instant::now();
        silence(&proxy);
        daemon.until_trusted(false).await;
        assert!(began.elapsed() < NOTICED, "noticed after {:?} only", began.elapsed());
        if let Some(load) = &load {
            load.writes(30).await;
            load.reads(30).await;
        }
        proxy.heal();
        daemon.until_trusted(true).await;
        if let Some(load) = load {
            load.writes(20).await;
            load.reads(20).await;
            let done = load.stop().await;
            assert_eq!(done.failed_reads, 0, "{done:?}");
        }
        let compared = shop.equals_postgres(&daemon).await;
        assert!(compared.entries > 0, "{compared:?}");
    }
}

/// 19: a black hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole() {
    silent("redis_hole", Proxy::black_hole).await;
}

/// 19: half open; what we write is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_towards_redis() {
    silent("redis_half_to", |proxy| proxy.halve(Way::ToServer)).await;
}

/// 19: half open; what we write is done, and no reply says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_from_redis() {
    silent("redis_half_from", |proxy| proxy.halve(Way::ToClient)).await;
}

/// 19: nobody listens any more, and connections are reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused() {
    silent("redis_refused", |proxy| {
        proxy.refuse();
        proxy.cut();
    })
    .await;
}

/// 19: resets, ends in order, torn messages and garbage, both ways, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_torn_garbled_and_closed_under_load() {
    let (shop, proxy) = through_proxy("redis_torn").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 82);
    let mut faults: Vec<(String, Box<dyn Fn()>)> =
        vec![("a reset".into(), Box::new(|| proxy.cut())), ("an end".into(), Box::new(|| proxy.close()))];
    let proxy = &proxy;
    for way in WAYS {
        faults.push((format!("a torn message {way:?}"), Box::new(move || proxy.tear(way))));
        faults.push((format!("garbage {way:?}"), Box::new(move || proxy.garble(way))));
    }
    for (what, fault) in &faults {
        load.writes(20).await;
        load.reads(50).await;
        let before = bypasses(&daemon);
        fault();
        eventually_within(NOTICED, &format!("notice {what}"), || async {
            if bypasses(&daemon) > before { Ok(()) } else { Err("nothing in the log") }
        })
        .await;
        daemon.until_trusted(true).await;
    }
    load.reads(50).await;
    shop.ends_well(load, &daemon).await;
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

/// 19: garbage over the readers' connection alone, while nothing is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_readers_connection_is_garbled() {
    let (mut shop, proxy) = through_proxy("redis_readers").await;
    shop.config = shop
        .config
        .set("l1", "enabled", false)
        .set("source", "heartbeat_interval", "1h")
        .set("source", "dead_after", "2h")
        .set("source", "status_interval", "1h")
        .set("freshness", "stale_after", "2h")
        .set("freshness", "max_staleness", "3h");
    let sql = shop.sql().await;
    for row in 0..20 {
        shop.put(&sql, row, 1).await;
    }
    let daemon = Daemon::start(&shop.config).await;
    daemon.until_trusted(true).await;
    let http = daemon.http();
    // The first heartbeat has come back once hits are served.
    sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    daemon.wait_ready().await;
    for row in 0..20 {
        http.get(&format!("/v1/counter/{row}")).await.expect(200);
    }
    for way in WAYS {
        eventually("answer from L2", || async {
            let response = http.get("/v1/counter/1").await.expect(200);
            if response.header("x-cache") == "HIT-L2" { Ok(()) } else { Err(format!("{:?}", response.headers)) }
        })
        .await;
        proxy.garble(way);
        let response = http.get("/v1/counter/1").await.expect(200);
        assert_eq!(version(&response.json()), Some(1));
        eventually_within(NOTICED, "answer from L2 again", || async {
            for row in 0..20 {
                let response = http.get(&format!("/v1/counter/{row}")).await.expect(200);
                assert_eq!(response.json()["id"], row, "{:?}", response.headers);
                if response.header("x-cache") != "HIT-L2" {
                    return Err(format!("{:?}", response.headers));
                }
            }
            Ok(())
        })
        .await;
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

/// 19: silence at any step of connecting, and of the first commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_at_each_step_of_connecting() {
    let (shop, proxy) = through_proxy("redis_steps").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    for step in [0, 1, 2, 4] {
        let before = bypasses(&daemon);
        proxy.mute_after(step);
        proxy.cut();
        eventually("notice the cut", || async {
            if bypasses(&daemon) > before { Ok(()) } else { Err("nothing in the log") }
        })
        .await;
        let end = shop.put(&sql, 1, 2 + step as i64).await;
        let headers = [("x-min-lsn", &*end.to_string())];
        let response = daemon.http().get_with("/v1/counter/1", &headers).await.expect(200);
        assert_eq!(version(&response.json()), Some(2 + step as i64));
        let healed = Instant::now();
        proxy.heal();
        daemon.wait_applied(end).await;
        daemon.until_trusted(true).await;
        let took = healed.elapsed();
        assert!(took < NOTICED, "step {step}: trusted again after {took:?}");
    }
    shop.equals_postgres(&daemon).await;
}

/// 16: answers that take a little less than they may: everything goes on, only slower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_just_within_the_limit() {
    let (mut shop, proxy) = through_proxy("redis_slow").await;
    // With some room for a busy machine.
    shop.config = shop.config.set("l2", "response_timeout", "8s").set("l2", "connect_timeout", "16s");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    shop.put(&sql, 1, 1).await;
    http.get("/v1/counter/1").await.expect(200);
    let before = bypasses(&daemon);
    // Each way.
    proxy.delay(Duration::from_millis(400));
    let end = shop.put(&sql, 1, 2).await;
    let headers = [("x-min-lsn", &*end.to_string()), ("prefer", "wait=10000")];
    let response = http.get_with("/v1/counter/1", &headers).await.expect(200);
    assert_eq!(version(&response.json()), Some(2), "{:?}", response.headers);
    // Many misses at a time wait for the same few round trips.
    let began = Instant::now();
    let keys: Vec<usize> = (100..300).collect();
    http.post("/v1/counter/batch", &serde_json::json!({ "keys": keys }), &[]).await.expect(200);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(bypasses(&daemon), before, "it answers in time: {}", daemon.log());
    assert_eq!(daemon.status().await["l2"]["trusted"], true);
    proxy.heal();
    shop.equals_postgres(&daemon).await;
}

/// 16: answers that take a little longer than they may: L2 is bypassed, reads go to L1 and, over few connections, to
/// Postgres; nothing is confirmed that was not applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_just_beyond_the_limit() {
    let (mut shop, proxy) = through_proxy("redis_late").await;
    shop.config = shop.config.set("source", "pool_size", 3);
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 83);
    load.reads(100).await;
    load.writes(30).await;
    proxy.delay(RESPONSE / 2 + Duration::from_millis(50));
    daemon.until_trusted(false).await;
    // What was under way when the delay began may have been applied, and then be confirmed, until now.
    let applied =
        async || daemon.status().await["applied_lsn"].as_str().unwrap().parse::<walcache::lsn::Lsn>().unwrap();
    let (mut connections, mut at_work) = (0, 0);
    for _ in 0..5 {
        load.writes(20).await;
        load.reads(20).await;
        let at = current_lsn(&sql).await;
        let confirmed = shop.confirmed().await;
        assert!(confirmed <= applied().await, "{confirmed} is confirmed and was not applied; the log ends at {at}");
        // Of connections that were given up, some may still be ending.
        let fills = "SELECT count(*), count(*) FILTER (WHERE state = 'active') FROM pg_stat_activity
            WHERE application_name = 'walcache' AND query LIKE '%row_to_json%'";
        let row = sql.query_one(fills, &[]).await.unwrap();
        connections = connections.max(row.get::<_, i64>(0));
        at_work = at_work.max(row.get::<_, i64>(1));
    }
    assert!(connections >= 1 && at_work <= 3, "{connections} connections for fills, {at_work} at work");
    proxy.heal();
    daemon.until_trusted(true).await;
    let done = load.stop().await;
    assert_eq!(done.failed_reads, 0, "{done:?}");
    shop.equals_postgres(&daemon).await;
}
