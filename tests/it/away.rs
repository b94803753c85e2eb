//! Fault 3: Postgres is away for longer than readers are to be served what may be stale, and comes back to many of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use walcache::lsn::Lsn;
use walcache::sandbox::StopMode;

use crate::harness::{Shop, counted_reads, eventually, version};

/// Readers that wait for Postgres.
const READERS: usize = 300;
/// The rows that they ask for.
const KEYS: usize = 20;
/// `source.pool_size` here; besides, the daemon has the stream, the gate and the catalog.
const POOL: i64 = 3;
/// How long a refusal may take: `source.fill_timeout`, here 1 s, and a busy machine.
const FAST: Duration = Duration::from_secs(8);

/// 3: first hits are marked with their position and age, then refused; misses fail fast all along; when Postgres is back,
/// it is asked by few connections, and by far fewer queries than there are readers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn longer_than_max_staleness() {
    let mut shop = Shop::new("pg_long").await;
    shop.config = shop
        .config
        .set("freshness", "stale_after", "500ms")
        .set("freshness", "max_staleness", "10s")
        .set("source", "fill_timeout", "1s")
        .set("source", "pool_size", POOL)
        // Its reads would be counted.
        .set("audit", "rate", 0);
    counted_reads(&shop).await;
    let sql = shop.sql().await;
    for id in 0..2 * KEYS {
        shop.put(&sql, id, 1).await;
    }
    // It was never current before that.
    let started = Instant::now();
    let daemon = shop.daemon().await;
    let http = daemon.http();
    for id in 0..KEYS {
        http.warm(&format!("/v1/counter/{id}")).await;
    }
    let applied = daemon.status().await["applied_lsn"].as_str().unwrap().parse::<Lsn>().unwrap();
    drop(sql);
    let began = Instant::now();
    shop.stage.postgres.stop(StopMode::Immediate).await.unwrap();

    let marked = eventually("have hits marked as stale", || async {
        let response = http.get("/v1/counter/3").await.expect(200);
        if response.header("x-cache") == "STALE" { Ok(response) } else { Err(format!("{:?}", response.headers)) }
    })
    .await;
    assert_eq!(version(&marked.json()), Some(1));
    assert!(marked.header("age").parse::<u64>().unwrap() <= started.elapsed().as_secs() + 1, "{:?}", marked.headers);
    assert!(marked.header("x-applied-lsn").parse::<Lsn>().unwrap() >= applied, "{:?}", marked.headers);

    let refused = |status: u16| status == 503;
    eventually("refuse what is older than max_staleness", || async {
        let asked = Instant::now();
        let response = http.get("/v1/counter/3").await;
        assert!(asked.elapsed() < FAST, "a hit took {:?}", asked.elapsed());
        if refused(response.status.as_u16()) { Ok(()) } else { Err(format!("{:?}", response.headers)) }
    })
    .await;
    // Not before its time: the daemon was current a heartbeat before the stop, or little more.
    assert!(began.elapsed() > Duration::from_secs(7), "refused after {:?}", began.elapsed());
    for id in 0..2 * KEYS {
        let asked = Instant::now();
        let response = http.get(&format!("/v1/counter/{id}")).await;
        assert_eq!(response.status, 503, "{response:?}");
        assert_eq!(response.header("content-type"), "application/problem+json");
        assert!(response.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert!(asked.elapsed() < FAST, "a refusal took {:?}", asked.elapsed());
    }
    let ready = daemon.admin().get("/readyz").await;
    assert_eq!(ready.status, 503, "{}", ready.text());

    // Everybody asks again and again, and is answered once.
    let answered = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (http, answered) = (http.clone(), answered.clone());
            tokio::spawn(async move {
                eventually("be answered after the outage", || async {
                    let path = format!("/v1/counter/{}", reader % KEYS);
                    let response = http.send(Method::GET, &path, &[], Bytes::new()).await?;
                    if response.status == 200 { Ok(()) } else { Err(format!("{response:?}")) }
                })
                .await;
                answered.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    shop.stage.postgres.start_again().await.unwrap();
    let sql = shop.sql().await;
    let over = AtomicBool::new(false);
    let watch = async {
        let (mut most, query) = (0, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walcache'");
        while !over.load(Ordering::Relaxed) {
            most = most.max(sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0));
        }
        most
    };
    let wait = async {
        for reader in readers {
            reader.await.unwrap();
        }
        over.store(true, Ordering::Relaxed);
    };
    let (most, ()) = tokio::join!(watch, wait);
    assert_eq!(answered.load(Ordering::Relaxed), READERS);
    // Some more while the ones of attempts that failed are still ending.
    assert!(most <= POOL + 3 + 6, "{most} connections at a time");
    let rows: i64 = sql.query_one("SELECT last_value FROM row_reads", &[]).await.unwrap().get(0);
    // The first round of misses made KEYS of them; after a crash, a sequence may have skipped 32.
    assert!(rows < KEYS as i64 + 32 + READERS as i64 / 2, "{rows} rows read for {READERS} readers");
    println!("{READERS} readers after an outage: {rows} rows read in all, {most} connections at a time");
    for id in 0..2 * KEYS {
        shop.put(&sql, id, 2).await;
    }
    shop.equals_postgres(&daemon).await;
}
