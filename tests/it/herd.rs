//! Fault 22: a thousand readers miss the same key at once.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use walcache::sandbox::free_port;

use crate::harness::{Daemon, Raw, Shop, counted_reads, eventually, until_received, waiting_reads};

const READERS: usize = 1000;

async fn shop(name: &str) -> Shop {
    let mut shop = Shop::new(name).await;
    counted_reads(&shop).await;
    // The watermark stands still where a test wants that.
    shop.config = shop
        .config
        // Its reads would be counted.
        .set("audit", "rate", 0)
        // A thousand requests take a while to be sent and read.
        .set("source", "fill_timeout", "60s")
        .set("l2", "lease_ttl", "60s")
        .set("source", "heartbeat_interval", "1h")
        .set("source", "dead_after", "2h")
        .set("freshness", "stale_after", "2h")
        .set("freshness", "max_staleness", "3h");
    shop
}

/// Rows that daemons have read so far.
async fn rows_read(sql: &Client) -> i64 {
    sql.query_one("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM row_reads", &[]).await.unwrap().get(0)
}

/// Sends the same request over a connection each, and waits until the daemon has read all of them.
async fn send(daemon: &Daemon, readers: usize, path: &str) -> Vec<TcpStream> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut streams = Vec::with_capacity(readers);
    for _ in 0..readers {
        streams.push(TcpStream::connect(daemon.http_address()).await.unwrap());
    }
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    streams
}

/// All answers, as texts.
async fn answers(streams: Vec<TcpStream>) -> Vec<String> {
    let mut reads = JoinSet::new();
    for mut stream in streams {
        reads.spawn(async move {
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        });
    }
    reads.join_all().await
}

#[track_caller]
fn all_have(answers: &[String], wanted: &str) {
    let wrong = answers.iter().find(|text| !text.starts_with("HTTP/1.1 200 ") || !text.contains(wanted));
    assert!(wrong.is_none(), "{}", wrong.unwrap());
}

/// Tries with one row after the other until the watermark stood still meanwhile: readers that begin after it has moved
/// may not be given what was read before, so they are allowed a read of their own.
async fn undisturbed(daemon: &Daemon, attempt: impl AsyncFn(usize)) {
    let applied = async || daemon.status().await["applied_lsn"].clone();
    for row in 0..10 {
        let before = applied().await;
        attempt(row).await;
        if applied().await == before {
            return;
        }
    }
    panic!("the watermark never stands still");
}

/// 22: one SELECT; everybody else waits for it and is given its result.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_share_one_select() {
    let shop = shop("herd").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    for row in 0..10 {
        shop.put(&sql, row, 7).await;
    }
    let holder = shop.sql().await;
    let last = std::sync::atomic::AtomicI64::new(0);
    undisturbed(&daemon, async |row| {
        let before = rows_read(&sql).await;
        holder.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
        let streams = send(&daemon, READERS, &format!("/v1/counter/{row}")).await;
        until_received(daemon.http_address(), READERS).await;
        eventually("have a read wait", || async { if waiting_reads(&sql).await > 0 { Ok(()) } else { Err("none") } })
            .await;
        holder.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
        let answers = answers(streams).await;
        assert_eq!(answers.len(), READERS);
        all_have(&answers, "\"version\":7");
        last.store(rows_read(&sql).await - before, std::sync::atomic::Ordering::Relaxed);
    })
    .await;
    assert_eq!(last.into_inner(), 1, "SELECTs for {READERS} readers");
}

/// 22: the same while the log moves on with every moment: a handful of reads at the most, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_while_others_write() {
    let mut shop = shop("herd_busy").await;
    // Whoever comes when the watermark has moved on cannot share the flight, but waits for what that stores.
    shop.config = shop.config.set("l2", "lease_wait", "20s");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let end = shop.put(&sql, 1, 7).await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    // An event that comes late would void the fill, and drop the entry.
    daemon.wait_applied(end).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let writer = tokio::spawn({
        let (sql, stop) = (shop.sql().await, stop.clone());
        async move {
            let mut writes = 0;
            while !stop.is_cancelled() {
                sql.batch_execute(
                    "INSERT INTO counters VALUES (60, 1) ON CONFLICT (id) DO UPDATE SET version = counters.version + 1",
                )
                .await
                .unwrap();
                writes += 1;
            }
            writes
        }
    });
    eventually("be written", || async {
        let query = "SELECT coalesce(max(version), 0) FROM counters WHERE id = 60";
        let writes: i64 = sql.query_one(query, &[]).await.unwrap().get(0);
        if writes > 10 { Ok(writes) } else { Err(writes) }
    })
    .await;
    let before = rows_read(&sql).await;
    let answers = answers(send(&daemon, READERS, "/v1/counter/1").await).await;
    stop.cancel();
    assert!(writer.await.unwrap() > 10);
    all_have(&answers, "\"version\":7");
    let reads = rows_read(&sql).await - before;
    assert!((1..=3).contains(&reads), "{reads} SELECTs for {READERS} readers");
    shop.equals_postgres(&daemon).await;
}

/// 22: another instance holds the lease and does not publish: readers wait for a moment, and then read once, together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_another_instance_is_waited_for_in_bounds() {
    // Long beside what it takes until the last one has asked.
    const WAIT: Duration = Duration::from_secs(5);
    let mut shop = shop("herd_lease").await;
    shop.config = shop.config.set("l2", "lease_wait", format!("{}s", WAIT.as_secs()));
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    for row in 0..10 {
        let end = shop.put(&sql, row, 7).await;
        // An event that comes late would void the lease.
        daemon.wait_applied(end).await;
    }
    let raw = Raw::connect(&shop.stage).await.unwrap();
    let raw = tokio::sync::Mutex::new(raw);
    let last = std::sync::atomic::AtomicI64::new(0);
    undisturbed(&daemon, async |row| {
        let before = rows_read(&sql).await;
        let (key, lease) = (format!("counter:{row}"), "{\"lease\":\"00000000deadbeef\"}");
        raw.lock().await.run(&["SET", &key, lease, "PX", "60000"]).await.unwrap();
        let began = Instant::now();
        let answers = answers(send(&daemon, 200, &format!("/v1/counter/{row}")).await).await;
        let took = began.elapsed();
        assert!(took >= WAIT && took < Duration::from_secs(25), "{took:?}");
        all_have(&answers, "\"version\":7");
        all_have(&answers, "x-cache: BYPASS");
        let stands = raw.lock().await.run(&["GET", &key]).await.unwrap();
        assert_eq!(stands, redis::Value::BulkString(lease.into()), "somebody else's lease was touched");
        last.store(rows_read(&sql).await - before, std::sync::atomic::Ordering::Relaxed);
    })
    .await;
    assert_eq!(last.into_inner(), 1, "SELECTs for 200 readers");
}

/// 22: another instance holds the lease, and publishes while readers wait: they are given that, and nobody reads Postgres.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_instance_publishes_is_shared() {
    let mut shop = shop("herd_publish").await;
    shop.config = shop.config.set("l2", "lease_wait", "15s");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    shop.put(&sql, 1, 7).await;
    let end = shop.put(&sql, 2, 7).await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    daemon.wait_applied(end).await;
    daemon.http().get("/v1/counter/2").await.expect(200);
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let redis::Value::BulkString(entry) = raw.run(&["GET", "counter:2"]).await.unwrap() else { panic!("no entry") };
    let entry = String::from_utf8(entry).unwrap().replace("\"id\":2", "\"id\":1");
    raw.run(&["SET", "counter:1", "{\"lease\":\"00000000deadbeef\"}", "PX", "60000"]).await.unwrap();
    let before = rows_read(&sql).await;
    let streams = send(&daemon, 200, "/v1/counter/1").await;
    until_received(daemon.http_address(), 200).await;
    raw.run(&["SET", "counter:1", &entry, "PX", "60000"]).await.unwrap();
    let answers = answers(streams).await;
    all_have(&answers, "\"id\":1");
    assert_eq!(rows_read(&sql).await, before, "somebody read Postgres");
}

/// 22, on an instance that waits for the slot, and so can believe no tier: it asks Postgres, over few connections and
/// with few reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_a_follower() {
    let shop = shop("herd_follower").await;
    let sql = shop.sql().await;
    let _leader = shop.daemon().await;
    shop.put(&sql, 1, 7).await;
    let listen = |port: u16| format!("127.0.0.1:{port}");
    let config =
        shop.config.clone().set("http", "listen", listen(free_port())).set("admin", "listen", listen(free_port()));
    let follower = Daemon::start(&config).await;
    let holder = shop.sql().await;
    holder.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    let before = rows_read(&sql).await;
    let streams = send(&follower, READERS, "/v1/counter/1").await;
    until_received(follower.http_address(), READERS).await;
    eventually("have reads wait", || async { if waiting_reads(&sql).await > 0 { Ok(()) } else { Err("none") } }).await;
    let waiting = waiting_reads(&sql).await;
    assert!(waiting <= 4, "{waiting} reads at a time");
    holder.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    let answers = answers(streams).await;
    all_have(&answers, "\"version\":7");
    let reads = rows_read(&sql).await - before;
    assert!((1..=8).contains(&reads), "{reads} SELECTs for {READERS} readers");
}
