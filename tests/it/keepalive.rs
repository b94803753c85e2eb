//! Fault 20: applying takes longer than the server waits for a sign of life. (The gate that takes long: see `gate`.)

use std::time::{Duration, Instant};

use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Shop, current_lsn, eventually};

/// The server's patience.
const PATIENCE: Duration = Duration::from_secs(3);

/// 20: Redis takes several times `wal_sender_timeout` to answer, which it may; the walsender stays the same, and
/// nothing is confirmed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_outlasts_the_servers_patience() {
    let patience = format!("{}ms", PATIENCE.as_millis());
    let postgres = PostgresOptions::new().setting("wal_sender_timeout", &patience);
    let mut shop = Shop::with("keepalive", postgres, RedisOptions::new()).await;
    shop.config = shop.config.set("l2", "response_timeout", "60s").set("source", "dead_after", "15s").set(
        "apply",
        "max_batch_events",
        8,
    );
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let walsender = async || {
        let query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
        sql.query_one(query, &[&shop.stage.name]).await.unwrap().get::<_, Option<i32>>(0)
    };
    let pid = walsender().await;
    assert!(pid.is_some());
    shop.stage.redis.pause().await.unwrap();
    let before = current_lsn(&sql).await;
    let until = Instant::now() + 3 * PATIENCE;
    // More than one batch: the stream itself has to wait, too.
    let mut row = 0;
    eventually("outlast wal_sender_timeout", || {
        row = (row + 1) % 64;
        let put = shop.put(&sql, row, 1);
        async {
            put.await;
            if Instant::now() >= until { Ok(()) } else { Err("not yet") }
        }
    })
    .await;
    let status = daemon.status().await;
    assert_eq!(status["replication"]["connected"], true, "{status}");
    assert!(status["lag_seconds"].as_f64().unwrap() >= 5.0, "{status}");
    assert!(shop.confirmed().await <= before, "nothing was applied since {before}");
    shop.stage.redis.resume().unwrap();
    shop.equals_postgres(&daemon).await;
    assert_eq!(walsender().await, pid, "{}", daemon.log());
    let reconnects = daemon.metric("walcache_replication_reconnects_total").await;
    assert!(matches!(reconnects, None | Some(0.0)), "{reconnects:?}");
}
