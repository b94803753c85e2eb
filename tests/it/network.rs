//! Fault 19, between the daemon and Postgres: silence in both directions or in one, resets, ends in the middle of a
//! message, garbage, delay, and single connections that hang while the others are well.
//!
//! The bound within which each is noticed: `source.dead_after` (here 2 s) after the last sign of life, and a mark of the
//! position every `status_interval`.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Daemon, Proxy, Shop, WAYS, Way, eventually, eventually_within};

/// `dead_after`, what a mark may take before that counts, and a busy machine. (What nothing noticed would last for good.)
const NOTICED: Duration = Duration::from_secs(15);

async fn through_proxy(name: &str) -> (Shop, Proxy) {
    // The server holds the slot for a client that is gone until it notices that, too.
    let postgres = PostgresOptions::new().setting("wal_sender_timeout", "2s");
    let mut shop = Shop::with(name, postgres, RedisOptions::new()).await;
    let proxy = Proxy::start(shop.stage.postgres.port()).await;
    let url = shop.stage.postgres.url_at(proxy.port(), &shop.stage.name);
    shop.config = shop
        .config
        .set("source", "url", url)
        .set("source", "dead_after", "2s")
        .set("source", "fill_timeout", "1s")
        .set("source", "connect_timeout", "1s");
    (shop, proxy)
}

async fn until_connected(daemon: &Daemon, wanted: bool) {
    eventually(&format!("be connected: {wanted}"), || async {
        let status = daemon.status().await;
        if status["replication"]["connected"] == wanted { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// How often the stream was lost.
async fn losses(daemon: &Daemon) -> u64 {
    let text = daemon.admin().get("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix("walcache_replication_reconnects_total "));
    line.map_or(0, |count| count.parse().unwrap())
}

async fn until_lost_again(daemon: &Daemon, before: u64, what: &str) {
    eventually_within(NOTICED, &format!("notice {what}"), || async {
        let now = losses(daemon).await;
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Connections that are swallowed stay open: only silence tells.
async fn silent(name: &str, under_load: bool, silence: impl Fn(&Proxy)) {
    let (shop, proxy) = through_proxy(name).await;
    let daemon = shop.daemon().await;
    let load = under_load.then(|| shop.load(&daemon, 31));
    if let Some(load) = &load {
        load.reads(50).await;
        load.writes(50).await;
    }
    let began = Instant::now();
    silence(&proxy);
    until_connected(&daemon, false).await;
    assert!(began.elapsed() < NOTICED, "noticed after {:?} only", began.elapsed());
    proxy.heal();
    until_connected(&daemon, true).await;
    if let Some(load) = load {
        load.writes(20).await;
        load.stop().await;
    }
    shop.equals_postgres(&daemon).await;
}

/// 19: a black hole, and nothing to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_while_idle() {
    silent("net_idle", false, Proxy::black_hole).await;
}

/// 19: a black hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_under_load() {
    silent("net_load", true, Proxy::black_hole).await;
}

/// 19: half open; what the server sends still arrives, what we say is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_towards_postgres() {
    silent("net_half_to", true, |proxy| proxy.halve(Way::ToServer)).await;
}

/// 19: half open; what we say arrives, nothing comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_from_postgres() {
    silent("net_half_from", true, |proxy| proxy.halve(Way::ToClient)).await;
}

/// 19: every connection ends in the middle of a message, or carries garbage, or is closed in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_garbled_and_closed_under_load() {
    let (shop, proxy) = through_proxy("net_torn").await;
    let daemon = shop.daemon().await;
    let pid = daemon.pid();
    let load = shop.load(&daemon, 35);
    let mut faults: Vec<(String, Box<dyn Fn()>)> = vec![("an end".into(), Box::new(|| proxy.close()))];
    let proxy = &proxy;
    for way in WAYS {
        faults.push((format!("a torn message {way:?}"), Box::new(move || proxy.tear(way))));
        faults.push((format!("garbage {way:?}"), Box::new(move || proxy.garble(way))));
    }
    for (what, fault) in &faults {
        load.writes(20).await;
        load.reads(20).await;
        let before = losses(&daemon).await;
        fault();
        until_lost_again(&daemon, before, what).await;
        until_connected(&daemon, true).await;
    }
    load.writes(20).await;
    load.stop().await;
    shop.equals_postgres(&daemon).await;
    assert_eq!(daemon.pid(), pid, "the daemon did not exit");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

/// 19: one process of the server hangs, and all others answer: the stream's, the gate's, or the one that marks positions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_connection_hangs() {
    let (shop, _proxy) = through_proxy("net_single").await;
    let daemon = shop.daemon().await;
    let sql = shop.sql().await;
    let mut version = 0;
    for session in [
        "query LIKE 'START_REPLICATION%'",
        "query LIKE '%pg_current_snapshot%'",
        "query LIKE '-- The end of the flushed log%'",
    ] {
        let query = format!(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'walcache' AND pid <> pg_backend_pid() AND {session}"
        );
        let pid = eventually(session, || async {
            // What a session has asked last: the gate asks only when something was written.
            shop.put(&sql, 1, 1).await;
            // Those of a connection that was given up may still be ending.
            let rows = sql.query(&query, &[]).await.unwrap();
            if let [row] = &rows[..] { Ok(row.get::<_, i32>(0)) } else { Err(format!("{} such sessions", rows.len())) }
        })
        .await;
        let pid = Pid::from_raw(pid).unwrap();
        let before = losses(&daemon).await;
        kill_process(pid, Signal::STOP).unwrap();
        version += 1;
        for row in 0..8 {
            shop.put(&sql, row, version).await;
        }
        until_lost_again(&daemon, before, session).await;
        // It may still hold the slot.
        kill_process(pid, Signal::CONT).unwrap();
        until_connected(&daemon, true).await;
        shop.equals_postgres(&daemon).await;
    }
}

/// 19: silence at any step of connecting: each connection is given so many messages of the server, and then no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_at_each_step_of_connecting() {
    let (shop, proxy) = through_proxy("net_steps").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let attempts = async || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walcache'";
        sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0)
    };
    for step in [2, 5, 6, 7] {
        proxy.mute_after(step);
        proxy.cut();
        until_connected(&daemon, false).await;
        eventually("have the old connections ended, and try again", || async {
            // At the first steps, no session begins.
            if attempts().await > 0 || step < 4 { Ok(()) } else { Err("no attempt") }
        })
        .await;
        proxy.heal();
        let healed = Instant::now();
        let end = shop.put(&sql, 1, step as i64).await;
        sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        daemon.wait_applied(end).await;
        let took = healed.elapsed();
        // Of all that is asked on the way, the number of an epoch is waited for the longest: 10 s.
        println!("silent after {step} messages: goes on after {took:?}");
        assert!(took < NOTICED + Duration::from_secs(10), "step {step}: goes on after {took:?}");
    }
    shop.equals_postgres(&daemon).await;
}

/// 19: as above, while the daemon starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_while_it_starts() {
    let (shop, proxy) = through_proxy("net_start").await;
    let sql = shop.sql().await;
    for step in [4, 6, 8] {
        proxy.mute_after(step);
        let daemon = Daemon::spawn(&shop.config, &[]);
        eventually("connect", || async {
            let query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'walcache'";
            if sql.query(query, &[]).await.unwrap().is_empty() { Err("not yet") } else { Ok(()) }
        })
        .await;
        eventually_within(NOTICED, "notice the silence", || async {
            let log = daemon.log();
            if log.contains("the source database is not available; trying again") { Ok(()) } else { Err(log) }
        })
        .await;
        proxy.heal();
        // Of all that is asked on the way, the number of an epoch is waited for the longest: 10 s.
        eventually_within(NOTICED + Duration::from_secs(10), "start after all", || async {
            let log = daemon.log();
            if log.contains("\"streaming\"") { Ok(()) } else { Err(log) }
        })
        .await;
    }
}

/// 19: as above, for the queries of the catalog, which are rare.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_the_catalog_hangs() {
    let (mut shop, _proxy) = through_proxy("net_catalog").await;
    shop.config = shop
        .config
        .set("source", "schema_check_interval", "20ms")
        .set("source", "status_interval", "1s")
        .set("source", "heartbeat_interval", "1s");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let query =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'walcache' AND query LIKE '%hashtextextended%'";
    let pid = eventually("look at the catalog", || async {
        // Those of a connection that was given up may still be ending.
        let rows = sql.query(query, &[]).await.unwrap();
        if let [row] = &rows[..] { Ok(row.get::<_, i32>(0)) } else { Err(format!("{} such sessions", rows.len())) }
    })
    .await;
    let pid = Pid::from_raw(pid).unwrap();
    let before = losses(&daemon).await;
    kill_process(pid, Signal::STOP).unwrap();
    until_lost_again(&daemon, before, "the catalog's silence").await;
    kill_process(pid, Signal::CONT).unwrap();
    until_connected(&daemon, true).await;
    shop.equals_postgres(&daemon).await;
}

/// 19: silence that connections survive, whose data comes later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_that_connections_survive() {
    let (shop, proxy) = through_proxy("net_stall").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 33);
    for _ in 0..2 {
        load.writes(30).await;
        proxy.stall();
        load.writes(30).await;
        until_connected(&daemon, false).await;
        proxy.heal();
        until_connected(&daemon, true).await;
    }
    load.stop().await;
    shop.equals_postgres(&daemon).await;
}

/// 19: resets, one after the other; then a slow network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_under_load() {
    let (shop, proxy) = through_proxy("net_cut").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 34);
    for round in 0..8 {
        load.writes(20 + round * 7).await;
        proxy.cut();
        until_connected(&daemon, true).await;
    }
    proxy.delay(Duration::from_millis(5));
    load.writes(50).await;
    load.reads(20).await;
    load.stop().await;
    shop.equals_postgres(&daemon).await;
}
