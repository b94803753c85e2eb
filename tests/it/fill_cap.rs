//! Postgres is protected from its cache: fills are capped, the rest wait or are refused, and others are not held up.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use walcache::cache::permits::Permits;
use walcache::cache::rows::Rows;
use walcache::entity::{Definition, Shape, ValueColumn};
use walcache::key::{KeyColumn, KeyType};
use walcache::metrics::FillMetrics;
use walcache::sandbox::{PostgresOptions, RedisOptions};
use walcache::sqltype::SqlType;

use crate::harness::{Daemon, Entity, Http, Response, Scene, Stage, eventually};

const MAX_FILLS: usize = 64;
/// What one of several entities gets of them, and of the four connections.
const SHARE: f64 = 48.0;
const CONNECTIONS: i64 = 3;
/// Long enough to see the crowd wait, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(15);

/// On servers of its own: whoever holds a lock on a table holds up the tests that share a server with it.
async fn scene(name: &str, max_waiting: i64, timeout: Duration) -> Scene {
    let schema = "CREATE TABLE crowded (id int PRIMARY KEY, n int NOT NULL);
                  INSERT INTO crowded SELECT i, i FROM generate_series(1, 5000) i;
                  CREATE TABLE calm (id int PRIMARY KEY, n int NOT NULL);
                  INSERT INTO calm SELECT i, i FROM generate_series(1, 5000) i";
    let stage = Stage::private(name, PostgresOptions::new(), RedisOptions::new()).await;
    stage.execute(schema).await;
    Scene::on(stage, |config| {
        config
            // Its reads count, too.
            .set("audit", "rate", 0)
            .set("source", "max_fills", MAX_FILLS as i64)
            .set("source", "max_waiting_fills", max_waiting)
            .set("source", "fill_timeout", format!("{}s", timeout.as_secs()))
            .set("l2", "lease_ttl", "60s")
            .entity(Entity::new("crowded", "public.crowded"))
            .entity(Entity::new("calm", "public.calm"))
    })
    .await
}

/// How many fills of this test's database Postgres is working on.
async fn queries(sql: &Client) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
                 AND application_name = 'walcache' AND query LIKE '%WITH ORDINALITY%' AND pid <> pg_backend_pid()";
    sql.query_one(count, &[]).await.unwrap().get(0)
}

fn gauge(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// The highest that was seen.
#[derive(Debug, Default, Clone, Copy)]
struct Peak {
    keys: f64,
    queries: i64,
}

/// Watches how much is under way until told to stop.
fn watch(daemon: &Daemon, sql: Client, stop: CancellationToken) -> tokio::task::JoinHandle<Peak> {
    let admin = daemon.admin();
    tokio::spawn(async move {
        let mut peak = Peak::default();
        while !stop.is_cancelled() {
            let metrics = admin.get("/metrics").await.text();
            peak.keys = peak.keys.max(gauge(&metrics, "walcache_fills_running"));
            peak.queries = peak.queries.max(queries(&sql).await);
        }
        peak
    })
}

fn is_away(response: &Response) -> bool {
    response.status == 503 && response.json()["type"] == "urn:walcache:problem:source-unavailable"
}

/// Reads rows of `calm` that nobody has read, one after the other, until told to stop; gives how long each took.
fn calm_reader(http: Http, stop: CancellationToken) -> tokio::task::JoinHandle<Vec<Duration>> {
    tokio::spawn(async move {
        let mut times = Vec::new();
        while !stop.is_cancelled() && times.len() < 5000 {
            let began = Instant::now();
            let id = times.len() + 1;
            loop {
                let got = http.get(&format!("/v1/calm/{id}")).await;
                // Where the server takes long to say that the crowd's statements are over, it passes for away for a moment.
                if !is_away(&got) {
                    assert_eq!(got.expect(200).json()["n"], id);
                    break;
                }
            }
            times.push(began.elapsed());
        }
        times.sort();
        times
    })
}

fn quantile(times: &[Duration], q: f64) -> Duration {
    times[((times.len() - 1) as f64 * q) as usize]
}

/// Reads all 5,000 keys of `crowded` at once, a tenth by itself and the rest in batches; gives each item's status and
/// problem.
async fn read_all(http: &Http) -> Vec<(u64, Option<String>)> {
    let mut tasks = JoinSet::new();
    for id in 1..=500 {
        let http = http.clone();
        tasks.spawn(async move {
            let got = http.get(&format!("/v1/crowded/{id}")).await;
            if got.status == 503 {
                assert!(got.header("retry-after").parse::<u32>().unwrap() > 0);
            }
            let status = u64::from(got.status.as_u16());
            assert!(status != 200 || got.json()["n"] == id);
            vec![item(status, &got.json()["type"])]
        });
    }
    for first in (501..=5000).step_by(100) {
        let http = http.clone();
        tasks.spawn(async move {
            let keys: Vec<i32> = (first..first + 100).collect();
            let got = http.post("/v1/crowded/batch", &json!({ "keys": keys }), &[]).await.expect(200).json();
            let items = got["items"].as_array().unwrap();
            assert!(items.iter().all(|i| i["status"] != 200 || i["value"]["n"] == i["key"]), "another row's value");
            items.iter().map(|i| item(i["status"].as_u64().unwrap(), &i["problem"]["type"])).collect()
        });
    }
    let mut all = Vec::new();
    while let Some(items) = tasks.join_next().await {
        all.extend(items.unwrap());
    }
    all
}

fn item(status: u64, kind: &Value) -> (u64, Option<String>) {
    (status, kind.as_str().and_then(|kind| kind.strip_prefix("urn:walcache:problem:")).map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_takes_no_more_than_its_share() {
    let scene = scene("capped", 10_000, TIMEOUT).await;
    let holder = scene.stage.sql().await;
    holder.batch_execute("BEGIN; LOCK TABLE crowded IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // The cap is reached before the crowd comes: how many keys its fills would have depends on who comes first.
    let mut full = JoinSet::new();
    for (fill, keys) in [5001..5017, 5017..5033, 5033..5049].into_iter().enumerate() {
        let (http, keys) = (scene.http.clone(), json!({ "keys": keys.collect::<Vec<i32>>() }));
        full.spawn(async move { http.post("/v1/crowded/batch", &keys, &[]).await.expect(200) });
        eventually("have the fill wait for the lock", || async {
            let metrics = scene.daemon.admin().get("/metrics").await.text();
            let under_way = (gauge(&metrics, "walcache_fills_running"), queries(&scene.sql).await);
            let wanted = (16.0 * (fill + 1) as f64, fill as i64 + 1);
            if under_way == wanted { Ok(()) } else { Err(format!("{under_way:?}")) }
        })
        .await;
    }
    let stop = CancellationToken::new();
    let watching = watch(&scene.daemon, scene.stage.sql().await, stop.clone());
    let calm = calm_reader(scene.http.clone(), stop.clone());

    let began = Instant::now();
    let items = read_all(&scene.http).await;
    let took = began.elapsed();
    let of = |kind: &str| items.iter().filter(|i| *i == &(503, Some(kind.to_owned()))).count();
    let (overloaded, late) = (of("overloaded"), of("source-timeout") + of("source-unavailable"));
    assert_eq!((items.len(), overloaded + late), (5000, 5000), "{:?}", items.iter().find(|i| i.0 != 503));
    assert!(took < TIMEOUT * 2, "nobody waits longer than the timeout, but the last answer took {took:?}");
    // Nothing hangs on in Postgres that nobody waits for any more, although the lock is still held.
    eventually("have Postgres idle", || async {
        match queries(&scene.sql).await {
            0 => Ok(()),
            n => Err(format!("{n} queries")),
        }
    })
    .await;
    stop.cancel();
    let (peak, times) = (watching.await.unwrap(), calm.await.unwrap());
    let (p50, p99, max) = (quantile(&times, 0.5), quantile(&times, 0.99), quantile(&times, 1.0));
    println!(
        "locked: {overloaded} overloaded, {late} timed out after {took:?}; at most {peak:?}; the other entity: {} misses, \
         p50 {p50:?}, p99 {p99:?}, max {max:?}",
        times.len()
    );
    // Beside them, those that were given up, which the server has not ended yet.
    assert_eq!(
        (peak.keys, peak.queries),
        (peak.keys.min(SHARE + 1.0), peak.queries.min(2 * CONNECTIONS + 1)),
        "{peak:?}"
    );
    assert!(peak.keys >= SHARE && peak.queries >= CONNECTIONS, "the cap was not reached: {peak:?}");
    // Some come so late that their time is not over when that of the first ones is. (Who is told that the database is away was
    // refused at once.)
    let begun = of("source-timeout");
    assert!(begun < items.len() / 4, "{begun} reads were started");
    while let Some(held) = full.join_next().await {
        let held = held.unwrap().json();
        let given_up = held["items"].as_array().unwrap().iter().all(|item| item["status"] == 503);
        assert!(given_up, "{held}");
    }
    // Who had to wait for the crowd would wait for as long as that does.
    assert!(p99 < TIMEOUT / 2, "{p99:?}");
    let metrics = scene.daemon.admin().get("/metrics").await.text();
    let counted = gauge(&metrics, "walcache_fills_total{entity=\"crowded\",result=\"refused\"}");
    assert_eq!(counted as usize, overloaded);

    holder.batch_execute("ROLLBACK").await.unwrap();
    for first in (1..=5000).step_by(100) {
        let keys: Vec<i32> = (first..first + 100).collect();
        // For a moment the server may pass for away still, see `calm_reader`.
        eventually("read all", || async {
            let got = scene.http.post("/v1/crowded/batch", &json!({ "keys": keys }), &[]).await.expect(200).json();
            let read = got["items"].as_array().unwrap().iter().all(|item| item["value"]["n"] == item["key"]);
            if read { Ok(()) } else { Err(got.to_string()) }
        })
        .await;
    }
    eventually("have nothing under way", || async {
        let metrics = scene.daemon.admin().get("/metrics").await.text();
        let under_way = (gauge(&metrics, "walcache_fills_running"), gauge(&metrics, "walcache_fills_waiting"));
        if under_way == (0.0, 0.0) { Ok(()) } else { Err(format!("{under_way:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_gives_up_its_place() {
    let scene = scene("places", 100, TIMEOUT).await;
    let holder = scene.stage.sql().await;
    holder.batch_execute("BEGIN; LOCK TABLE crowded IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waiting = async || gauge(&scene.daemon.admin().get("/metrics").await.text(), "walcache_fills_waiting");
    let wait = |ids: std::ops::RangeInclusive<i32>| {
        let mut tasks = JoinSet::new();
        for id in ids {
            let http = scene.http.clone();
            tasks.spawn(async move {
                // As in `calm_reader`.
                eventually("have the database there", || async {
                    let got = http.get(&format!("/v1/crowded/{id}")).await;
                    if is_away(&got) { Err(got.text()) } else { Ok(got) }
                })
                .await
            });
        }
        tasks
    };
    let mut first = wait(1..=100);
    eventually("fill the waiting room", || async {
        let n = waiting().await;
        if n >= 100.0 { Ok(()) } else { Err(n) }
    })
    .await;
    let began = Instant::now();
    let refused = scene.http.get("/v1/crowded/101").await.expect(503);
    assert_eq!(
        (&refused.json()["type"], refused.header("retry-after")),
        (&json!("urn:walcache:problem:overloaded"), "1")
    );
    assert!(began.elapsed() < TIMEOUT / 2, "it was refused after {:?}", began.elapsed());
    // Their connections are closed while they wait.
    first.abort_all();
    while first.join_next().await.is_some() {}
    eventually("see them gone", || async {
        let n = waiting().await;
        if n == 0.0 { Ok(()) } else { Err(n) }
    })
    .await;
    let mut second = wait(201..=300);
    holder.batch_execute("ROLLBACK").await.unwrap();
    while let Some(got) = second.join_next().await {
        got.unwrap().expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_generation_is_filled_within_the_cap() {
    // All of them are to be answered, however busy the machine is.
    let scene = scene("generation", 20_000, TIMEOUT * 4).await;
    let items = read_all(&scene.http).await;
    assert!(items.iter().all(|item| item.0 == 200));
    let before = scene.daemon.status().await["entities"][0]["generation"].as_u64().unwrap();
    // The table's shape has changed: everything that is cached of it becomes void at once.
    scene
        .write("ALTER TABLE crowded ADD COLUMN more int NOT NULL DEFAULT 7; UPDATE crowded SET n = n WHERE id = 1")
        .await;
    let status = scene.daemon.status().await;
    assert!(status["entities"][0]["generation"].as_u64().unwrap() > before, "{status}");
    assert!(status["entities"][1]["generation"].as_u64().unwrap() <= before, "{status}");

    let stop = CancellationToken::new();
    let watching = watch(&scene.daemon, scene.stage.sql().await, stop.clone());
    let calm = calm_reader(scene.http.clone(), stop.clone());
    let began = Instant::now();
    let mut crowds = JoinSet::new();
    for _ in 0..2 {
        let http = scene.http.clone();
        crowds.spawn(async move { read_all(&http).await });
    }
    while let Some(items) = crowds.join_next().await {
        let items = items.unwrap();
        assert!(items.iter().all(|item| item.0 == 200), "{:?}", items.iter().find(|item| item.0 != 200));
    }
    let took = began.elapsed();
    stop.cancel();
    let (peak, times) = (watching.await.unwrap(), calm.await.unwrap());
    let (p50, p99, max) = (quantile(&times, 0.5), quantile(&times, 0.99), quantile(&times, 1.0));
    println!(
        "generation: 10,000 reads after {took:?}; at most {peak:?}; the other entity: {} misses, p50 {p50:?}, p99 {p99:?}, \
         max {max:?}",
        times.len()
    );
    assert_eq!((peak.keys, peak.queries), (peak.keys.min(SHARE + 1.0), peak.queries.min(CONNECTIONS + 1)), "{peak:?}");
    // Who had to wait for the crowd would wait for a good part of what that takes.
    assert!(p99 < Duration::from_secs(1).max(took / 4), "{p99:?}");
    assert_eq!(scene.get("crowded/5000").await.expect(200).json()["more"], 7);
}

/// A statement that reads rows is closed everywhere once the table's columns are others: else each DDL would leave one behind
/// on every connection.
#[tokio::test]
async fn statements_of_former_shapes_are_closed() {
    let stage = Stage::shared("former_shapes").await;
    stage.execute("CREATE TABLE items (id int PRIMARY KEY, a int, b int); INSERT INTO items VALUES (1, 2, 3)").await;
    let value = |name: &str| ValueColumn { name: name.into(), type_oid: 23, sql_type: SqlType::Integer };
    let key_type = KeyType::Integer(i32::MIN.into(), i32::MAX.into());
    let key = vec![KeyColumn { name: "id".into(), type_oid: 23, key_type, cast: "integer".into() }];
    let shape = |columns: &[&str]| Shape {
        columns: columns.iter().map(|name| value(name)).collect(),
        key: key.clone(),
        ..Shape::unknown(0)
    };
    let entity = walcache::entity::Entity::new(0, Definition::rows("item", "public", "items"), "", shape(&["id"]));
    let since = Instant::now();
    let manager = deadpool_postgres::Manager::new(stage.source_url().parse().unwrap(), tokio_postgres::NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(1).build().unwrap();
    let rows = Rows::new(pool.clone(), Permits::new(MAX_FILLS, 1, FillMetrics::new()), TIMEOUT);
    for (columns, wanted) in [(&["id"][..], r#"{"id":1}"#), (&["a"], r#"{"a":2}"#), (&["a", "b"], r#"{"a":2,"b":3}"#)] {
        entity.reshape(shape(columns));
        let (key, permit) = (entity.key("1").unwrap(), rows.spare(1).unwrap());
        let found = rows.read(&entity, &[&key], &permit, since).await.unwrap();
        assert_eq!(found.values, [Some(wanted.into())]);
        assert_eq!(pool.get().await.unwrap().statement_cache.size(), 1, "{columns:?}");
    }
}
