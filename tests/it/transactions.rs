//! Faults 12 and 13: transactions of every kind: prepared, with savepoints, thousands of tiny ones, one that is open for
//! long.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walcache::lsn::Lsn;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Daemon, Hidden, Http, Raw, Shop, current_lsn, eventually, version};

/// How long ten thousand transactions may take without optimization, beside other tests.
const LONG: Duration = Duration::from_secs(60);

async fn prepared_shop(name: &str) -> Shop {
    let postgres = Hidden::postgres().setting("max_prepared_transactions", "10");
    Shop::with(name, postgres, RedisOptions::new()).await
}

async fn entry(shop: &Shop, id: usize) -> redis::Value {
    Raw::connect(&shop.stage).await.unwrap().run(&["GET", &format!("counter:{id}")]).await.unwrap()
}

async fn read(http: &Http, id: usize) -> Option<i64> {
    let response = http.get(&format!("/v1/counter/{id}")).await;
    (response.status == 200).then(|| version(&response.json())).flatten()
}

/// 13: a prepared transaction shows when it is committed, whoever does that and whatever happened in between; one that is
/// rolled back never does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transactions_show_when_they_are_committed() {
    let mut shop = prepared_shop("prepared").await;
    // The second of them goes in pieces.
    shop.config = shop.config.set("apply", "max_transaction_bytes", "4KiB").set("apply", "max_batch_bytes", "4KiB");
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters SELECT i, 1 FROM generate_series(0, 63) i").await.unwrap();
    let mut daemon = shop.daemon().await;
    for id in 0..64 {
        assert_eq!(read(&daemon.http(), id).await, Some(1));
    }
    let before = [entry(&shop, 1).await, entry(&shop, 2).await, entry(&shop, 3).await];
    let prepare = async |name: &str, work: &str| {
        let sql = shop.sql().await;
        sql.batch_execute(&format!("BEGIN; {work}; PREPARE TRANSACTION '{name}'")).await.unwrap();
    };
    prepare("small", "UPDATE counters SET version = 2 WHERE id = 1; SELECT walcache.invalidate('counter', '2')").await;
    prepare("undone", "UPDATE counters SET version = -1 WHERE id = 3; SELECT walcache.invalidate('counter', '4')")
        .await;
    let many = "UPDATE counters SET version = -2, note = repeat('x', 100) WHERE id >= 8;
        SAVEPOINT s; UPDATE counters SET version = -3 WHERE id >= 8; ROLLBACK TO s;
        UPDATE counters SET version = 3 WHERE id >= 8; SELECT walcache.warm('counter', '99')";
    prepare("many", many).await;
    // Others go on, and the watermark with them.
    sql.batch_execute("UPDATE counters SET version = 5 WHERE id = 0").await.unwrap();
    daemon.wait_applied(current_lsn(&sql).await).await;
    assert_eq!(
        [entry(&shop, 1).await, entry(&shop, 2).await, entry(&shop, 3).await],
        before,
        "prepared, not committed"
    );
    // A crash in between.
    daemon.kill().await;
    daemon = shop.daemon().await;
    assert_eq!((read(&daemon.http(), 0).await, read(&daemon.http(), 1).await), (Some(5), Some(1)));
    // Ended by another session than began it.
    sql.batch_execute("ROLLBACK PREPARED 'undone'").await.unwrap();
    sql.batch_execute("COMMIT PREPARED 'small'").await.unwrap();
    daemon.wait_applied(current_lsn(&sql).await).await;
    assert_eq!(read(&daemon.http(), 1).await, Some(2));
    assert_eq!(entry(&shop, 2).await, redis::Value::Nil, "the invalidation came with the commit");
    assert_eq!(entry(&shop, 3).await, before[2], "rolled back: not a byte was touched");
    // Killed with the commit on its way, in whatever piece.
    sql.batch_execute("COMMIT PREPARED 'many'").await.unwrap();
    let end = current_lsn(&sql).await;
    daemon.kill().await;
    daemon = shop.daemon().await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await.unwrap();
    daemon.wait_applied(end).await;
    for id in 8..64 {
        assert_eq!(read(&daemon.http(), id).await, Some(3), "{id}");
    }
    shop.equals_postgres(&daemon).await;
}

/// 13: as any other commit, that of a prepared transaction is streamed before it is visible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_waits_for_the_gate() {
    let shop = prepared_shop("prepared_gate").await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 1)").await.unwrap();
    let daemon = shop.daemon().await;
    let http = daemon.http();
    assert_eq!(read(&http, 1).await, Some(1));
    sql.batch_execute("BEGIN; UPDATE counters SET version = 2 WHERE id = 1; PREPARE TRANSACTION 'p'").await.unwrap();
    let hidden = Hidden::write(&shop, &daemon, &["COMMIT PREPARED 'p'"]).await;
    let hanging = hidden.lsn;
    for _ in 0..20 {
        assert_eq!(read(&http, 1).await, Some(1), "served before it was visible in Postgres");
    }
    let status = daemon.status().await;
    assert!(status["applied_lsn"].as_str().unwrap().parse::<Lsn>().unwrap() < hanging, "{status}");
    hidden.show(&sql).await;
    daemon.wait_applied(hanging).await;
    assert_eq!(read(&http, 1).await, Some(2));
    shop.equals_postgres(&daemon).await;
}

/// 13: of thousands of subtransactions, nested and not, only what committed appears.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_thousands_of_savepoints_only_what_committed_appears() {
    const ROUNDS: usize = 3000;
    let mut shop = Shop::new("savepoints").await;
    shop.config = shop.config.set("apply", "max_transaction_bytes", "64KiB").set("apply", "max_batch_bytes", "64KiB");
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters SELECT i, 0 FROM generate_series(0, 63) i").await.unwrap();
    let daemon = shop.daemon().await;
    let stop = CancellationToken::new();
    let reader = tokio::spawn({
        let (http, stop) = (daemon.http(), stop.clone());
        async move {
            let mut reads = 0;
            while !stop.is_cancelled() {
                let found = read(&http, reads % 64).await;
                assert!(found >= Some(0), "rolled back, or not committed: {found:?}");
                reads += 1;
            }
            reads
        }
    });
    // One transaction: each round is a savepoint within a savepoint. What is rolled back writes negative versions: the
    // inner one in every second round, both in every third.
    let mut text = String::from("BEGIN;");
    let mut wanted = [0_i64; 64];
    for round in 1..=ROUNDS {
        let (id, other) = (round % 64, (round * 7 + 1) % 64);
        let (inner_lost, outer_lost) = (round % 2 == 0, round % 3 == 0);
        let sign = |lost: bool| if lost { -(round as i64) } else { round as i64 };
        let (outer, inner) = (sign(outer_lost), sign(inner_lost || outer_lost));
        let update = |id: usize, version: i64| format!("UPDATE counters SET version = {version} WHERE id = {id};");
        write!(text, "SAVEPOINT a; {} SAVEPOINT b; {}", update(id, outer), update(other, inner)).unwrap();
        text += if inner_lost { "ROLLBACK TO b;" } else { "RELEASE b;" };
        text += if outer_lost { "ROLLBACK TO a; RELEASE a;" } else { "RELEASE a;" };
        if !outer_lost {
            wanted[id] = outer;
            if !inner_lost {
                wanted[other] = inner;
            }
        }
    }
    // As it was committed, but for the last round: that is rolled back by an error.
    text += "SAVEPOINT c; UPDATE counters SET version = -9;";
    sql.batch_execute(&text).await.unwrap();
    sql.batch_execute("INSERT INTO counters VALUES (0, 0)").await.unwrap_err();
    // Still open: nothing of it may be seen yet.
    let aside = shop.sql().await;
    aside.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await.unwrap();
    daemon.wait_applied(current_lsn(&aside).await).await;
    assert_eq!(read(&daemon.http(), 1).await, Some(0));
    let began = Instant::now();
    sql.batch_execute("ROLLBACK TO SAVEPOINT c; COMMIT").await.unwrap();
    daemon.wait_applied_within(LONG, current_lsn(&sql).await).await;
    println!(
        "{} subtransactions: applied after {:?}, peak memory {} MiB",
        2 * ROUNDS + 1,
        began.elapsed(),
        daemon.peak_mib()
    );
    for (id, wanted) in wanted.into_iter().enumerate() {
        assert_eq!(read(&daemon.http(), id).await, Some(wanted), "{id}");
    }
    stop.cancel();
    assert!(reader.await.unwrap() > 0);
    shop.equals_postgres(&daemon).await;
}

/// 12: ten thousand commits, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tiny_transactions() {
    const COMMITS: i64 = 10_000;
    let shop = Shop::new("tiny").await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters SELECT i, 0 FROM generate_series(0, 63) i").await.unwrap();
    let daemon = Arc::new(shop.daemon().await);
    for id in 0..64 {
        assert_eq!(read(&daemon.http(), id).await, Some(0));
    }
    let stop = CancellationToken::new();
    let reader = tokio::spawn({
        let (http, stop) = (daemon.http(), stop.clone());
        async move {
            let (mut newest, mut seen) = ([0; 64], None);
            while !stop.is_cancelled() {
                for (id, newest) in newest.iter_mut().enumerate() {
                    let headers: Vec<(&str, &str)> = seen.iter().map(|lsn: &String| ("x-min-lsn", &**lsn)).collect();
                    let response = http.get_with(&format!("/v1/counter/{id}"), &headers).await.expect(200);
                    seen = Some(response.header("x-read-lsn").to_owned());
                    let found = version(&response.json()).expect("a version");
                    assert!(found >= *newest, "{found} after {newest}");
                    *newest = found;
                }
            }
        }
    });
    let began = Instant::now();
    let work = format!(
        "DO $$ BEGIN FOR i IN 1..{COMMITS} LOOP UPDATE counters SET version = i WHERE id = i % 64; COMMIT; END LOOP; END $$"
    );
    sql.batch_execute(&work).await.unwrap();
    let written = began.elapsed();
    daemon.wait_applied_within(LONG, current_lsn(&sql).await).await;
    let applied = began.elapsed();
    stop.cancel();
    reader.await.unwrap();
    let transactions = daemon.metric("walcache_replication_transactions_total").await.unwrap();
    assert!(transactions >= COMMITS as f64, "{transactions}");
    let peak = daemon.peak_mib();
    println!("{COMMITS} commits: written in {written:?}, applied after {applied:?}, peak memory {peak} MiB");
    assert!(peak < 100, "peak memory {peak} MiB");
    shop.equals_postgres(&daemon).await;
}

/// 13: while a transaction is open others are applied and confirmed; the log that it pins is visible as a metric, and
/// goes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_open_transaction_pins_log_and_nothing_else() {
    const MIB: f64 = (1 << 20) as f64;
    let postgres = PostgresOptions::new().setting("max_wal_size", "2GB");
    let shop = Shop::with("long_open", postgres, RedisOptions::new()).await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 1), (2, 1)").await.unwrap();
    let mut daemon = shop.daemon().await;
    assert_eq!((read(&daemon.http(), 1).await, read(&daemon.http(), 2).await), (Some(1), Some(1)));
    let open = shop.sql().await;
    open.batch_execute("BEGIN; UPDATE counters SET version = 2 WHERE id = 1").await.unwrap();
    sql.batch_execute("CREATE TABLE filler (t text)").await.unwrap();
    let retained = async |daemon: &Daemon| {
        daemon.metric("walcache_replication_lag_bytes{kind=\"retained\"}").await.unwrap_or_default() / MIB
    };
    for version in 2..=4 {
        sql.batch_execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 20000)").await.unwrap();
        sql.batch_execute(&format!("UPDATE counters SET version = {version} WHERE id = 2; CHECKPOINT")).await.unwrap();
        let end = current_lsn(&sql).await;
        eventually("confirm what others commit", || async {
            let at = shop.confirmed().await;
            if at >= end { Ok(()) } else { Err(format!("{at} of {end}")) }
        })
        .await;
        assert_eq!((read(&daemon.http(), 1).await, read(&daemon.http(), 2).await), (Some(1), Some(version)));
        if version == 3 {
            // Its changes lie before what is confirmed, and are not lost by that.
            daemon.kill().await;
            daemon = shop.daemon().await;
        }
    }
    eventually("show the log that is pinned", || async {
        let pinned = retained(&daemon).await;
        if pinned > 60.0 { Ok(()) } else { Err(format!("{pinned} MiB")) }
    })
    .await;
    eventually("show that nothing else is behind", || async {
        let applied = daemon.metric("walcache_replication_lag_bytes{kind=\"applied\"}").await.unwrap() / MIB;
        println!("log pinned: {:.0} MiB; not applied: {applied:.3} MiB", retained(&daemon).await);
        if applied < 1.0 { Ok(()) } else { Err(format!("{applied} MiB")) }
    })
    .await;
    open.batch_execute("COMMIT").await.unwrap();
    daemon.wait_applied(current_lsn(&sql).await).await;
    assert_eq!(read(&daemon.http(), 1).await, Some(2));
    eventually("let go of the log", || async {
        sql.batch_execute("CHECKPOINT").await.unwrap();
        let pinned = retained(&daemon).await;
        if pinned < 20.0 { Ok(()) } else { Err(format!("{pinned} MiB")) }
    })
    .await;
    shop.equals_postgres(&daemon).await;
}
