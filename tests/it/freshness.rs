//! How stale answers may be: heartbeats that come back, bounds by configuration, entity and request.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use walcache::lsn::Lsn;
use walcache::sandbox::{PostgresOptions, RedisOptions, StopMode, free_port};

use crate::harness::{Daemon, Entity, Http, Response, Shop, current_lsn, eventually, version};

/// The walsender, stopped in its tracks: the stream stands still while Postgres answers everybody else.
struct Stopped(i32);

impl Stopped {
    async fn walsender(shop: &Shop) -> Stopped {
        let query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND active";
        let pid: i32 = shop.sql().await.query_one(query, &[&shop.stage.name]).await.unwrap().get(0);
        signal("-STOP", pid);
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT", self.0);
    }
}

fn signal(name: &str, pid: i32) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(sent.success() || std::thread::panicking(), "kill {name} {pid}: {sent}");
}

async fn lag(daemon: &Daemon) -> Option<f64> {
    daemon.status().await["lag_seconds"].as_f64()
}

async fn lag_reaches(daemon: &Daemon, seconds: f64) {
    eventually(&format!("be {seconds} s behind"), || async {
        match lag(daemon).await {
            Some(lag) if lag >= seconds => Ok(()),
            lag => Err(format!("{lag:?}")),
        }
    })
    .await;
}

/// A shop whose rows are served three times: `counter` by the configuration's bound, `tight` by 1 s, and `lenient`
/// by 1 s past which it is served. All rows have version 1.
async fn shop(name: &str, bound: Duration) -> Shop {
    let mut shop = Shop::new(name).await;
    let entity = |name| Entity::new(name, "public.counters");
    shop.config = shop
        .config
        .set("source", "dead_after", "60s")
        .set("freshness", "stale_after", "1s")
        .set("freshness", "max_staleness", format!("{}s", bound.as_secs()))
        // A read of Postgres that cannot be made does not wait for so long.
        .set("source", "fill_timeout", "30s")
        .set("l2", "lease_ttl", "30s")
        .set("freshness", "min_lsn_wait", "50ms")
        .entity(entity("tight").set("max_staleness", "1s"))
        .entity(entity("lenient").set("max_staleness", "1s").set("past_max_staleness", "serve"));
    shop.sql().await.batch_execute("INSERT INTO counters SELECT i, 1 FROM generate_series(1, 40) i").await.unwrap();
    shop
}

/// Reads all rows of all entities once, so that they are cached.
async fn warm(http: &Http) {
    let keys: Vec<i32> = (1..=40).collect();
    for entity in ["counter", "tight", "lenient"] {
        eventually(&format!("cache {entity}"), || async {
            let batch = http.post(&format!("/v1/{entity}/batch"), &json!({ "keys": keys }), &[]).await.expect(200);
            if batch.header("x-cache").starts_with("HIT") { Ok(()) } else { Err(format!("{:?}", batch.headers)) }
        })
        .await;
    }
}

/// Reads one row after the other, each once: what one read leaves behind must not answer the next.
struct Reader {
    http: Http,
    row: i32,
}

impl Reader {
    async fn get(&mut self, entity: &str, cache_control: &str, others: &[(&str, &str)]) -> Response {
        self.row += 1;
        assert!(self.row <= 40, "there are no more rows");
        let headers = [&[("cache-control", cache_control)], others].concat();
        self.http.get_with(&format!("/v1/{entity}/{}", self.row), &headers).await
    }

    #[track_caller]
    fn is_stale(response: Response) {
        let response = response.expect(200);
        assert_eq!((response.header("x-cache"), version(&response.json())), ("STALE", Some(1)), "{response:?}");
        let age: u64 = response.header("age").parse().unwrap();
        assert!(age >= 2, "rounded up from more than 1 s: {age}");
        let status = response.header("cache-status");
        assert!(status.contains("; hit; ") && status.ends_with(&format!("; ttl=-{age}")), "{status}");
    }

    #[track_caller]
    fn is_from_postgres(response: Response) {
        let response = response.expect(200);
        assert_eq!((response.header("x-cache"), version(&response.json())), ("BYPASS", Some(2)), "{response:?}");
        assert_eq!(response.find_header("age"), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stands_still_ages_what_is_cached() {
    // All of the reads between the two bounds take place meanwhile.
    const BOUND: Duration = Duration::from_secs(10);
    for (tier, l1) in [("l1", true), ("l2", false)] {
        let mut shop = shop(&format!("stale_{tier}"), BOUND).await;
        shop.config = shop.config.set("l1", "enabled", l1);
        let daemon = shop.daemon().await;
        let mut reader = Reader { http: daemon.http(), row: 0 };
        warm(&reader.http).await;
        let stopped = Stopped::walsender(&shop).await;
        let sql = shop.sql().await;
        sql.batch_execute("UPDATE counters SET version = 2").await.unwrap();
        let written = current_lsn(&sql).await;
        lag_reaches(&daemon, 1.1).await;

        // Past `stale_after` and the bounds of 1 s, but not past that of 10 s.
        Reader::is_stale(reader.get("counter", "", &[]).await);
        Reader::is_stale(reader.get("counter", "max-age=3600", &[]).await);
        Reader::is_from_postgres(reader.get("counter", "max-age=1", &[]).await);
        Reader::is_from_postgres(reader.get("counter", "max-age=0", &[]).await);
        Reader::is_from_postgres(reader.get("counter", "max-age=1, max-stale", &[]).await);
        Reader::is_stale(reader.get("counter", "max-age=soon, max-age=-1", &[]).await);
        Reader::is_from_postgres(reader.get("tight", "", &[]).await);
        Reader::is_stale(reader.get("tight", "max-stale", &[]).await);
        Reader::is_stale(reader.get("tight", "max-stale=3600", &[]).await);
        Reader::is_from_postgres(reader.get("tight", "max-stale=3600, max-age=1", &[]).await);
        Reader::is_from_postgres(reader.get("tight", "max-stale=nonsense", &[]).await);
        Reader::is_stale(reader.get("lenient", "", &[]).await);
        Reader::is_from_postgres(reader.get("lenient", "max-age=1", &[]).await);
        // What has not been applied is never served, however lenient everybody is; what has been is.
        let (after, before) = (written.to_string(), daemon.status().await["applied_lsn"].as_str().unwrap().to_owned());
        for entity in ["counter", "lenient"] {
            Reader::is_from_postgres(reader.get(entity, "max-stale", &[("x-min-lsn", &after)]).await);
            Reader::is_stale(reader.get(entity, "max-stale", &[("x-min-lsn", &before)]).await);
        }
        let batch = |entity: &'static str, cache_control: &'static str, keys: [i32; 2]| {
            let http = reader.http.clone();
            async move {
                let headers = [("cache-control", cache_control)];
                let got =
                    http.post(&format!("/v1/{entity}/batch"), &json!({ "keys": keys }), &headers).await.expect(200);
                let versions: Vec<Option<i64>> = (0..2).map(|i| version(&got.json()["items"][i]["value"])).collect();
                (got.header("x-cache").to_owned(), versions, got.find_header("age").is_some())
            }
        };
        let (old, new) = (vec![Some(1); 2], vec![Some(2); 2]);
        assert_eq!(batch("counter", "", [31, 32]).await, ("STALE".into(), old.clone(), true));
        assert_eq!(batch("tight", "max-stale=9", [31, 32]).await, ("STALE".into(), old.clone(), true));
        assert_eq!(batch("lenient", "", [31, 32]).await, ("STALE".into(), old, true));
        assert_eq!(batch("counter", "max-age=1", [33, 34]).await, ("BYPASS".into(), new.clone(), false));
        assert_eq!(batch("tight", "", [33, 34]).await, ("BYPASS".into(), new, false));
        assert_eq!(daemon.admin().get("/readyz").await.status, 200);

        lag_reaches(&daemon, BOUND.as_secs_f64() + 0.1).await;
        Reader::is_from_postgres(reader.get("counter", "", &[]).await);
        Reader::is_stale(reader.get("counter", "max-stale=3600", &[]).await);
        Reader::is_stale(reader.get("lenient", "", &[]).await);
        let ready = daemon.admin().get("/readyz").await.expect(503).text();
        assert!(ready.contains("replication was last current"), "{ready}");
        let metrics = daemon.admin().get("/metrics").await.text();
        let seconds = metrics.lines().find_map(|l| l.strip_prefix("walcache_replication_lag_seconds ")).unwrap();
        assert!(seconds.parse::<f64>().unwrap() >= BOUND.as_secs_f64(), "{seconds}");

        drop(stopped);
        eventually("be current again", || async {
            match lag(&daemon).await {
                Some(lag) if lag < 1.0 => Ok(()),
                lag => Err(format!("{lag:?}")),
            }
        })
        .await;
        let min = written.to_string();
        for entity in ["counter", "tight", "lenient"] {
            let hit = eventually("be answered from the cache", || async {
                let hit = reader.http.get_with(&format!("/v1/{entity}/40"), &[("x-min-lsn", &min)]).await.expect(200);
                assert_eq!(version(&hit.json()), Some(2));
                if hit.header("x-cache").starts_with("HIT") { Ok(hit) } else { Err(format!("{hit:?}")) }
            })
            .await;
            assert_eq!(hit.find_header("age"), None);
        }
        shop.equals_postgres(&daemon).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_bound_without_postgres_there_is_no_answer() {
    let shop = shop("too_stale", Duration::from_secs(4)).await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    warm(&http).await;
    let later = Lsn::from_u64(current_lsn(&shop.sql().await).await.as_u64() + (1 << 30)).to_string();
    shop.stage.postgres.stop(StopMode::Immediate).await.unwrap();
    lag_reaches(&daemon, 4.1).await;
    let refused = |path: &'static str, headers: Vec<(&'static str, String)>, kind: &'static str| {
        let http = http.clone();
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            // Whether Postgres is refusing, starting or silent: the answer comes long before `source.fill_timeout`.
            let began = Instant::now();
            let got = http.get_with(path, &headers).await.expect(503);
            assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
            assert_eq!(got.json()["type"], format!("urn:walcache:problem:{kind}"), "{got:?}");
            assert!(got.header("retry-after").parse::<u32>().unwrap() > 0);
            got.json()["detail"].as_str().unwrap().to_owned()
        }
    };
    let control = |text: &str| vec![("cache-control", text.to_owned())];
    let detail = refused("/v1/counter/1", vec![], "too-stale").await;
    assert!(detail.contains("which is more than 4s, and the"), "{detail}");
    let detail = refused("/v1/tight/1", vec![], "too-stale").await;
    assert!(detail.contains("which is more than 1s"), "{detail}");
    refused("/v1/lenient/1", control("max-age=2"), "too-stale").await;
    refused("/v1/lenient/1", control("no-cache"), "source-unavailable").await;
    refused("/v1/lenient/1", control("max-age=0"), "source-unavailable").await;
    refused("/v1/lenient/1", vec![("x-min-lsn", later)], "source-unavailable").await;
    refused("/v1/lenient/4711", vec![], "source-unavailable").await;
    for (entity, cache_control) in [("lenient", ""), ("counter", "max-stale"), ("tight", "max-stale=3600")] {
        let got = http.get_with(&format!("/v1/{entity}/1"), &[("cache-control", cache_control)]).await.expect(200);
        assert_eq!((got.header("x-cache"), version(&got.json())), ("STALE", Some(1)));
        assert!(got.header("age").parse::<u32>().unwrap() >= 5);
    }
    let batch = http.post("/v1/counter/batch", &json!({"keys": [1, 2]}), &[]).await.expect(200);
    for item in batch.json()["items"].as_array().unwrap() {
        assert_eq!(
            (&item["status"], &item["problem"]["type"]),
            (&json!(503), &json!("urn:walcache:problem:too-stale"))
        );
    }
    shop.stage.postgres.start_again().await.unwrap();
    shop.equals_postgres(&daemon).await;
}

/// The slot is held by another daemon: how far behind this one is, nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_before_replication_was_current() {
    let shop = shop("unknown", Duration::from_secs(4)).await;
    let leader = shop.daemon().await;
    warm(&leader.http()).await;
    let listen = || format!("127.0.0.1:{}", free_port());
    let second = shop.config.clone().set("http", "listen", listen()).set("admin", "listen", listen());
    let second = Daemon::start(&second).await;
    eventually("find the slot held", || async {
        if second.log().contains("another consumer holds the slot") { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert_eq!(lag(&second).await, None);
    for entity in ["counter", "lenient"] {
        let got =
            second.http().get_with(&format!("/v1/{entity}/1"), &[("cache-control", "max-stale")]).await.expect(200);
        assert_eq!(got.header("x-cache"), "BYPASS");
    }
}

/// Nothing else flushes the log: the server is idle, and its WAL writer sleeps.
async fn idle(name: &str) -> Shop {
    let postgres = PostgresOptions::new().setting("wal_writer_delay", "10s").setting("autovacuum", "off");
    Shop::with(name, postgres, RedisOptions::new()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_come_back_from_an_idle_server() {
    let mut shop = idle("heartbeat").await;
    shop.config = shop.config.set("source", "heartbeat_interval", "1s");
    let daemon = shop.daemon().await;
    let (mut lowest, mut looks, mut behind) = (f64::MAX, 0, 0);
    for _ in 0..300 {
        let lag = lag(&daemon).await.unwrap();
        lowest = lowest.min(lag);
        (looks, behind) = (looks + 1, behind + usize::from(lag > 2.5));
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    println!("heartbeats: staleness of {lowest:.4} s at best, and above two intervals {behind} times of {looks}");
    assert!(lowest < 0.5, "a heartbeat took {lowest} s at best");
    // Without them the WAL writer flushes every 10 s, and most of the time is more than two intervals behind.
    assert!(behind * 2 < looks, "a second's interval, and behind {behind} times of {looks}");
}

/// A commit that does not wait for the disk is visible at once: whatever claims to be current since then has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staleness_covers_commits_that_are_not_on_disk() {
    let shop = idle("async").await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 0); SET synchronous_commit = off").await.unwrap();
    let daemon = shop.daemon().await;
    let http = daemon.http();
    for round in 1..=20 {
        sql.batch_execute(&format!("UPDATE counters SET version = {round} WHERE id = 1")).await.unwrap();
        let committed = Instant::now();
        let reads = eventually("be current since the commit", || async {
            let asked = Instant::now();
            let current_since = asked - Duration::from_secs_f64(lag(&daemon).await.unwrap());
            let got: Value = http.get("/v1/counter/1").await.expect(200).json();
            if current_since > committed { Ok(got) } else { Err("not yet") }
        })
        .await;
        assert_eq!(version(&reads), Some(round), "it said that it was current since after the commit");
    }
}
