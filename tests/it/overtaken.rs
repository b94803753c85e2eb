//! Fault 23: a fill that is overtaken by an event on its key is not published.

use walcache::lsn::Lsn;

use crate::harness::{Daemon, Http, Raw, Shop, current_lsn, servable, slow_reads, until_a_read_waits, version};

/// The value of a metric's sample, by the beginning of its line.
async fn sample(daemon: &Daemon, line: &str) -> f64 {
    let text = daemon.admin().get("/metrics").await.text();
    let found = text.lines().filter_map(|l| l.strip_prefix(line)).find_map(|rest| rest.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {line} in:\n{text}"))
}

async fn read(http: Http, path: &'static str) -> Option<i64> {
    let response = http.get(path).await;
    if response.status == 200 { version(&response.json()) } else { None }
}

async fn overtaken(name: &str, event: &str, expected: Option<i64>) {
    let mut shop = Shop::new(name).await;
    // The fill is held until the event is applied.
    shop.config = shop.config.set("source", "fill_timeout", "30s").set("l2", "lease_ttl", "30s");
    slow_reads(&shop).await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 10), (2, 20)").await.unwrap();
    let daemon = shop.daemon().await;

    sql.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    let early = tokio::spawn(read(daemon.http(), "/v1/counter/1"));
    until_a_read_waits(&sql).await;
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let leased = format!("{:?}", raw.look("counter:1").await.unwrap());
    assert!(leased.contains("lease"), "{leased}");

    let writer = shop.sql().await;
    writer.batch_execute(event).await.unwrap();
    let end = current_lsn(&writer).await;
    writer.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    daemon.wait_applied(end).await;
    let voided = raw.look("counter:1").await.unwrap().unwrap();
    assert!(!format!("{voided:?}").contains("\"{\\\"lease"), "{voided:?}");
    if let Some(entry) = servable(&voided, "counter") {
        // The newest image may have taken the lease's place.
        assert_eq!(entry.version(), expected, "{voided:?}");
    }

    // Somebody who reads now must not be given the flight's old value, though the flight still flies.
    let late = tokio::spawn(read(daemon.http(), "/v1/counter/1"));
    sql.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    // It was asked before the event: either value is honest.
    let early = early.await.unwrap();
    assert!(early == Some(10) || early == expected, "{early:?}");
    assert_eq!(late.await.unwrap(), expected, "a read that began after the event was applied");

    assert!(sample(&daemon, "walcache_fills_total{entity=\"counter\",result=\"voided\"}").await >= 1.0);
    for _ in 0..3 {
        let stored = raw.look("counter:1").await.unwrap().unwrap();
        if let Some(entry) = servable(&stored, "counter") {
            assert_eq!(entry.version(), expected, "{stored:?}");
            assert!(entry.lo >= Lsn::ZERO);
        }
        assert_eq!(read(daemon.http(), "/v1/counter/1").await, expected);
    }
    shop.equals_postgres(&daemon).await;
}

/// 23.
#[tokio::test]
async fn by_an_update() {
    overtaken("overtaken_update", "UPDATE counters SET version = 11 WHERE id = 1", Some(11)).await;
}

/// 23.
#[tokio::test]
async fn by_a_delete() {
    overtaken("overtaken_delete", "DELETE FROM counters WHERE id = 1", None).await;
}

/// 23 and 8.
#[tokio::test]
async fn by_a_change_of_the_key() {
    overtaken("overtaken_key", "UPDATE counters SET id = 99 WHERE id = 1", None).await;
}

/// 23 and 6.
#[tokio::test]
async fn by_a_truncate() {
    // TRUNCATE waits for the fill's lock on the table, so nothing can be in between: it must only end well.
    let shop = Shop::new("overtaken_truncate").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 3);
    for _ in 0..5 {
        load.reads(30).await;
        // No history knows of it: so it is rolled back after it had its lock; what is committed touches another row.
        sql.batch_execute("BEGIN; TRUNCATE counters; ROLLBACK").await.unwrap();
    }
    load.stop().await;
    for round in 0..5 {
        let fill =
            format!("INSERT INTO counters SELECT i, {round} FROM generate_series(0, 63) i ON CONFLICT DO NOTHING");
        sql.batch_execute(&fill).await.unwrap();
        let http = daemon.http();
        let reads: Vec<_> = (0..8)
            .map(|i| {
                let http = http.clone();
                tokio::spawn(async move {
                    for id in 0..8 {
                        http.get(&format!("/v1/counter/{}", id * 8 + i)).await;
                    }
                })
            })
            .collect();
        sql.batch_execute("TRUNCATE counters").await.unwrap();
        for read in reads {
            read.await.unwrap();
        }
        shop.equals_postgres(&daemon).await;
    }
}
