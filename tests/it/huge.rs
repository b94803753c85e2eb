//! Transactions that are applied in pieces.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Daemon, Raw, Shop, current_lsn, eventually, servable, version};

/// Rows of the huge transactions.
const HUGE: usize = 600;
/// How long two hundred thousand rows may take without optimization, beside other tests.
const LONG: Duration = Duration::from_secs(60);

async fn shop(name: &str) -> Shop {
    let mut shop = Shop::new(name).await;
    shop.config = shop
        .config
        .set("apply", "max_transaction_bytes", "64KiB")
        .set("apply", "max_batch_bytes", "64KiB")
        .set("apply", "script_keys", 16);
    shop.stage.execute(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series(0, {}) i", HUGE - 1)).await;
    shop
}

/// Updates every row several times, in one transaction; only the last version is a multiple of 100.
fn transaction(round: usize) -> String {
    let steps = (1..=8).map(|step| {
        let version = if step == 8 { round * 100 } else { round * 100 - 50 + step };
        format!("UPDATE counters SET version = {version}, note = repeat('x', 200);")
    });
    format!("BEGIN; {} COMMIT", steps.collect::<String>())
}

/// Reads over HTTP and in Redis until stopped; nothing uncommitted may be seen.
async fn watch(shop: Arc<Shop>, daemon_http: crate::harness::Http, stop: CancellationToken) -> usize {
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let mut reads = 0;
    let mut newest = vec![0; HUGE];
    while !stop.is_cancelled() {
        let id = reads * 7 % HUGE;
        reads += 1;
        let path = format!("/v1/counter/{id}");
        if let Ok(response) = daemon_http.send(hyper::Method::GET, &path, &[], bytes::Bytes::new()).await
            && response.status == 200
        {
            let found = version(&response.json()).unwrap();
            assert_eq!(found % 100, 0, "never committed: {found} {:?}", response.headers);
            assert!(found >= newest[id] - 100, "{found} after {}", newest[id]);
            newest[id] = found.max(newest[id]);
        }
        let stored = raw.look(&format!("counter:{id}")).await.unwrap().unwrap();
        if let Some(entry) = servable(&stored, "counter") {
            let found = entry.version().unwrap();
            assert_eq!(found % 100, 0, "never committed, and not marked: {stored:?}");
        }
    }
    reads
}

async fn warm(daemon: &Daemon) {
    let http = daemon.http();
    for chunk in (0..HUGE).collect::<Vec<_>>().chunks(100) {
        let keys: Vec<String> = chunk.iter().map(ToString::to_string).collect();
        let body = serde_json::json!({ "keys": keys });
        http.post("/v1/counter/batch", &body, &[]).await.expect(200);
    }
}

async fn all_are(shop: &Shop, wanted: i64) -> usize {
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let mut fresh = 0;
    for id in 0..HUGE {
        let stored = raw.look(&format!("counter:{id}")).await.unwrap().unwrap();
        let Some(text) = format!("{stored:?}").find(&format!("\\\"version\\\":{wanted},")) else { continue };
        assert!(text > 0);
        fresh += 1;
    }
    fresh
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_uncommitted_is_seen() {
    let shop = Arc::new(shop("huge").await);
    let daemon = shop.daemon().await;
    let sql = shop.sql().await;
    let stop = CancellationToken::new();
    let watchers: Vec<_> = (0..2).map(|_| tokio::spawn(watch(shop.clone(), daemon.http(), stop.clone()))).collect();
    for round in 1..=3 {
        warm(&daemon).await;
        sql.batch_execute(&transaction(round)).await.unwrap();
        let end = current_lsn(&sql).await;
        sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        daemon.wait_applied(end).await;
        assert_eq!(all_are(&shop, round as i64 * 100).await, HUGE, "every entry was there, and is refreshed");
    }
    stop.cancel();
    for watcher in watchers {
        assert!(watcher.await.unwrap() > 50);
    }
    shop.equals_postgres(&daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle() {
    let shop = Arc::new(shop("huge_kill").await);
    let mut daemon = shop.daemon().await;
    let sql = shop.sql().await;
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let mut in_the_middle = 0;
    for round in 1..=3 {
        warm(&daemon).await;
        let writer = shop.sql().await;
        writer.batch_execute(&transaction(round)).await.unwrap();
        // As soon as the first piece is there.
        eventually("see a piece", || async {
            let stored = raw_text(&shop, 0).await;
            if stored.contains("\"s\":1") || stored.contains(&format!("\"version\":{},", round * 100)) {
                Ok(())
            } else {
                Err(stored)
            }
        })
        .await;
        daemon.kill().await;
        if all_are(&shop, round as i64 * 100).await < HUGE {
            in_the_middle += 1;
        }
        for id in 0..HUGE {
            let stored = raw.look(&format!("counter:{id}")).await.unwrap().unwrap();
            let found = servable(&stored, "counter").and_then(|e| e.version()).unwrap_or(0);
            assert_eq!(found % 100, 0, "{stored:?}");
        }
        daemon = Daemon::start(&shop.config).await;
        let stop = CancellationToken::new();
        let watcher = tokio::spawn(watch(shop.clone(), daemon.http(), stop.clone()));
        daemon.wait_ready().await;
        let end = current_lsn(&sql).await;
        sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        daemon.wait_applied(end).await;
        stop.cancel();
        watcher.await.unwrap();
        shop.equals_postgres(&daemon).await;
    }
    assert!(in_the_middle > 0, "no kill was in the middle");
}

async fn raw_text(shop: &Shop, id: usize) -> String {
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    match raw.run(&["GET", &format!("counter:{id}")]).await.unwrap() {
        redis::Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_thousand_rows_in_bounded_memory() {
    let postgres = PostgresOptions::new().setting("wal_sender_timeout", "2s");
    let mut shop = Shop::with("huge_rows", postgres, RedisOptions::new()).await;
    shop.config = shop.config.set("source", "status_interval", "500ms");
    let daemon = shop.daemon().await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters SELECT i, 1, repeat('y', 200) FROM generate_series(0, 199999) i")
        .await
        .unwrap();
    warm(&daemon).await;
    let end = current_lsn(&sql).await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    daemon.wait_applied_within(LONG, end).await;
    sql.batch_execute("UPDATE counters SET version = 2").await.unwrap();
    let end = current_lsn(&sql).await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    daemon.wait_applied_within(LONG, end).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid().unwrap())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 200 * 1024, "peak memory {kib} KiB");
    let metrics = daemon.admin().get("/metrics").await.text();
    let reconnects = metrics.lines().find_map(|l| l.strip_prefix("walcache_replication_reconnects_total "));
    assert!(matches!(reconnects, None | Some("0")), "{reconnects:?}");
    shop.equals_postgres(&daemon).await;
}
