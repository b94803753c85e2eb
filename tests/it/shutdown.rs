//! Fault 30: SIGTERM under load, and while Redis or Postgres hang.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use walcache::lsn::Lsn;

use crate::harness::{Daemon, Raw, Shop, counted_reads, current_lsn, eventually, until_a_read_waits};

/// `http.grace` in what follows.
const GRACE: Duration = Duration::from_secs(4);
/// What comes on top of it, on a busy machine: ending connections and the process.
const MARGIN: Duration = Duration::from_secs(12);

/// SIGTERM; the daemon must end well, and in time. Gives the time that it took.
async fn ends_in_time(daemon: &Daemon) -> Duration {
    let began = Instant::now();
    let status = daemon.terminate().await;
    let took = began.elapsed();
    assert!(status.success(), "{status}\n{}", daemon.log());
    assert!(took < GRACE + MARGIN, "it took {took:?}\n{}", daemon.log());
    took
}

/// A request over a connection of its own, which the daemon has not answered yet.
async fn ask(daemon: &Daemon, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.http_address()).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// 30: under load; everything that was applied is also confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_in_order_under_load() {
    let shop = Shop::new("shutdown").await;
    let mut daemon = shop.daemon().await;
    for round in 0..3 {
        let load = shop.load(&daemon, 41 + round);
        load.reads(50).await;
        load.writes(50).await;
        let began = Instant::now();
        let status = daemon.terminate().await;
        assert!(status.success(), "{status}\n{}", daemon.log());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let confirmed = shop.confirmed_when_free().await;
        // Everything that was written to L2 was also confirmed: the next one replays nothing.
        let mut raw = Raw::connect(&shop.stage).await.unwrap();
        let redis::Value::BulkString(done) = raw.run(&["HGET", "~walcache:fence", "done"]).await.unwrap() else {
            panic!("no `done` in the fence");
        };
        let done = Lsn::from_hex16(&done).unwrap();
        // A server that takes too long to end the stream is not waited for, and may not have read the last report.
        let is_told = !daemon.log().contains("the stream ended with an error while stopping");
        assert!(confirmed == done || confirmed < done && !is_told, "confirmed {confirmed}, done {done}");
        shop.contains(confirmed).await;
        load.writes(20).await;
        load.stop().await;
        daemon = shop.daemon().await;
        shop.equals_postgres(&daemon).await;
    }
}

/// 30: a request that has begun when the signal comes is answered; meanwhile nothing new is accepted, and readiness is off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_answered() {
    let shop = Shop::new("shutdown_flight").await;
    shop.put(&shop.sql().await, 1, 1).await;
    let daemon = shop.daemon().await;
    let (address, admin) = (daemon.http_address().to_owned(), daemon.admin());
    let body = "{\"keys\":[1]}";
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server says so itself when it has begun with the request.
    let mut begun = [0; 25];
    stream.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 100 Continue\r\n\r\n");
    let finish = async {
        eventually("the listener is closed", || async {
            match TcpStream::connect(&address).await {
                Ok(_) => Err("still accepts"),
                Err(_) => Ok(()),
            }
        })
        .await;
        let ready = admin.get("/readyz").await;
        assert_eq!(ready.status, 503, "{}", ready.text());
        assert!(ready.text().contains("stopping"), "{}", ready.text());
        assert_eq!(admin.get("/livez").await.status, 200);
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (status, answer) = tokio::join!(daemon.terminate(), finish);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"status\":200"), "{answer}");
    assert!(status.success(), "{status}");
}

/// 30, while Redis hangs: a batch that cannot be finished is given up in time, and was not confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_hangs() {
    let mut shop = Shop::new("shutdown_redis").await;
    // The batch would wait for as long as it may.
    shop.config =
        shop.config.set("l2", "response_timeout", "60s").set("http", "grace", format!("{}s", GRACE.as_secs()));
    let sql = shop.sql().await;
    let mut daemon = shop.daemon().await;
    for id in 0..20 {
        shop.put(&sql, id, 1).await;
    }
    shop.equals_postgres(&daemon).await;
    shop.stage.redis.pause().await.unwrap();
    let before = current_lsn(&sql).await;
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    ends_in_time(&daemon).await;
    let confirmed = shop.confirmed_when_free().await;
    assert!(confirmed <= before, "{confirmed} is confirmed, and nothing after {before} was applied");
    shop.stage.redis.resume().unwrap();
    shop.contains(confirmed).await;
    daemon = shop.daemon().await;
    shop.equals_postgres(&daemon).await;
}

/// 30, while Postgres hangs: who waits for it is told so, and what is cached is still served to whoever has asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_hangs() {
    let mut shop = Shop::new("shutdown_postgres").await;
    shop.config = shop.config.set("source", "fill_timeout", "1s").set("http", "grace", format!("{}s", GRACE.as_secs()));
    let sql = shop.sql().await;
    shop.put(&sql, 1, 1).await;
    let mut daemon = shop.daemon().await;
    daemon.http().warm("/v1/counter/1").await;
    let http = daemon.http_address().to_owned();
    shop.stage.postgres.pause().await.unwrap();
    let miss = ask(&daemon, "/v1/counter/2").await;
    crate::harness::until_received(&http, 1).await;
    let (_, miss) = tokio::join!(ends_in_time(&daemon), answer(miss));
    assert!(miss.starts_with("HTTP/1.1 503 ") && miss.contains("urn:walcache:problem:source-"), "{miss}");
    shop.stage.postgres.resume().unwrap();
    daemon = shop.daemon().await;
    shop.equals_postgres(&daemon).await;
}

/// 30, while a fill is under way: it lands, is published, and is given to whoever waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_fill_is_under_way() {
    let shop = Shop::new("shutdown_fill").await;
    counted_reads(&shop).await;
    let sql = shop.sql().await;
    shop.put(&sql, 1, 1).await;
    let mut daemon = shop.daemon().await;
    sql.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    let miss = ask(&daemon, "/v1/counter/1").await;
    until_a_read_waits(&sql).await;
    let address = daemon.http_address().to_owned();
    let land = async {
        eventually("close the listener", || async {
            if TcpStream::connect(&address).await.is_err() { Ok(()) } else { Err("still accepts") }
        })
        .await;
        sql.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
        answer(miss).await
    };
    let (status, text) = tokio::join!(daemon.terminate(), land);
    assert!(status.success(), "{status}");
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("\"version\":1"), "{text}");
    daemon = shop.daemon().await;
    shop.equals_postgres(&daemon).await;
}

/// 30: a client that never finishes its request holds nothing up for longer than the grace period.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_never_ends_is_cut_off() {
    let mut shop = Shop::new("shutdown_slow").await;
    shop.config = shop.config.set("http", "grace", "1s").set("http", "header_timeout", "60s");
    let daemon = shop.daemon().await;
    let mut stream = TcpStream::connect(daemon.http_address()).await.unwrap();
    let head =
        "POST /v1/counter/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    crate::harness::until_received(daemon.http_address(), 1).await;
    let took = ends_in_time(&daemon).await;
    assert!(took >= Duration::from_secs(1), "it was not waited for: {took:?}");
    let log = daemon.log();
    assert!(log.contains("cut off connections at the end of the grace period"), "{log}");
}
