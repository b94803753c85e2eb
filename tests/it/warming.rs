//! Warming: entries that are filled before anybody reads them.

mod begins;
mod check;
mod faults;
mod hot;
mod keys;
mod occasions;
mod pauses;
mod resumes;

use serde_json::{Value, json};

use crate::harness::{Daemon, Entity, Finished, Scene, cli, eventually};

/// Rows of the table.
pub const ROWS: u64 = 1200;

pub const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO items SELECT i, 0 FROM generate_series(1, 1200) i;
    CREATE TABLE notes (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO notes SELECT i, 0 FROM generate_series(1, 300) i;
    ANALYZE";

/// `warm = {...}` of an entity.
pub fn warm(table: Value) -> toml::Value {
    toml::Value::try_from(table).unwrap()
}

/// The entity's job, or `None` before there is one.
pub async fn job(daemon: &Daemon, entity: &str) -> Option<Value> {
    let jobs = daemon.admin().get("/v1/warm").await.expect(200).json();
    jobs["jobs"].as_array().unwrap().iter().find(|job| job["entity"] == entity).cloned()
}

/// Waits until a job for which this holds has ended, and gives it.
pub async fn ended(daemon: &Daemon, entity: &str, which: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("end the warming of {entity}"), || async {
        match job(daemon, entity).await {
            Some(job) if job["state"] != "running" && which(&job) => Ok(job),
            job => Err(format!("{job:?}")),
        }
    })
    .await
}

/// Has an entity warmed, and waits for the end.
pub async fn warmed(daemon: &Daemon, body: Value) -> Value {
    daemon.admin().post("/v1/warm", &body, &[]).await.expect(200);
    ended(daemon, body["entity"].as_str().unwrap(), |_| true).await
}

/// `walcache warm ...`.
pub async fn cli_warm(scene: &Scene, args: &[&str]) -> Finished {
    cli(&scene.config, &[&["warm", "--admin", scene.daemon.admin_address()], args].concat(), &[]).await
}

/// A counter of warmed keys.
pub async fn count(scene: &Scene, entity: &str, result: &str) -> u64 {
    let name = format!("walcache_warmed_keys_total{{entity=\"{entity}\",result=\"{result}\"}}");
    scene.metric(&name).await.unwrap_or_else(|| panic!("{name}")) as u64
}

/// The entity of `items`.
pub fn item() -> Entity {
    Entity::new("item", "public.items")
}

/// The keys as numbers, in order.
pub async fn numbers(scene: &Scene, entity: &str) -> Vec<u64> {
    let mut keys: Vec<u64> = scene.keys(entity).await.iter().map(|key| key.parse().unwrap()).collect();
    keys.sort_unstable();
    keys
}

/// How many jobs the log says to have ended, once these have.
pub async fn told_of(daemon: &Daemon, jobs: usize) -> usize {
    eventually("tell of them in the log", || async {
        let told = daemon.log().matches("warming has ended").count();
        if told >= jobs { Ok(told) } else { Err(format!("{told} of {jobs}")) }
    })
    .await
}

/// Removes the leases that a daemon has left that was killed, as if their time were over.
pub async fn drop_leases(scene: &Scene, entity: &str) {
    for key in scene.keys(entity).await {
        let key = format!("{entity}:{key}");
        if scene.stored(&key).await.is_none() {
            let (): () = redis::cmd("DEL").arg(&key).query_async(&mut scene.l2.clone()).await.unwrap();
        }
    }
}

pub fn as_json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

#[tokio::test]
async fn on_demand_with_a_condition_a_limit_and_an_order() {
    let scene = Scene::open("warm_demand", SCHEMA, |config| config.entity(item())).await;
    let done =
        cli_warm(&scene, &["item", "--where", "id % 2 = 0 -- even", "--limit", "100", "--order", "desc", "--json"])
            .await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let job = as_json(&done);
    assert_eq!(
        (&job["state"], &job["trigger"], &job["done"]),
        (&json!("done"), &json!("operator"), &json!(100)),
        "{job}"
    );
    assert_eq!((&job["filled"], &job["present"], &job["failed"]), (&json!(100), &json!(0), &json!(0)));
    let wanted: Vec<u64> = (1001..=1200).filter(|id| id % 2 == 0).collect();
    assert_eq!(numbers(&scene, "item").await, wanted);
    // Both tiers have them.
    let hit = scene.get("item/1200").await;
    assert_eq!((hit.header("x-cache"), hit.text().as_str()), ("HIT-L1", r#"{"id":1200,"n":0}"#));
    scene.get("item/1199").await.expect(200);
    // What is there costs a lookup only. The estimate is the planner's, of at most the limit.
    let fills = scene.metric("walcache_fills_total{entity=\"item\",result=\"published\"}").await;
    let job = warmed(&scene.daemon, json!({"entity": "item", "keys": "select generate_series(1191, 1210)"})).await;
    assert_eq!((&job["filled"], &job["present"], &job["absent"]), (&json!(14), &json!(6), &json!(10)), "{job}");
    let after = scene.metric("walcache_fills_total{entity=\"item\",result=\"published\"}").await;
    assert_eq!(after.unwrap() - fills.unwrap(), 4.0);
    // While it is under way, metrics tell how far it is.
    let slow = json!({"entity": "item", "order": "desc", "rate": 10});
    scene.daemon.admin().post("/v1/warm", &slow, &[]).await.expect(200);
    let remaining = "walcache_warming_remaining_keys{entity=\"item\"}";
    let left = eventually("warm a few", || async {
        let left = scene.metric(remaining).await.ok_or("no such metric")?;
        if left > 0.0 { Ok(left as u64) } else { Err("none is left") }
    })
    .await;
    assert!((1000..ROWS).contains(&left), "{left}");
    eventually("count the job", || async {
        let jobs = scene.metric("walcache_warming_jobs").await;
        if jobs == Some(1.0) { Ok(()) } else { Err(format!("{jobs:?}")) }
    })
    .await;
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item", "cancel": true}), &[]).await.expect(200);
    ended(&scene.daemon, "item", |job| job["state"] == "cancelled").await;
    assert_eq!(scene.metric(remaining).await, Some(0.0));
    let done = cli_warm(&scene, &["item", "--limit", "1"]).await;
    assert!(done.stdout.starts_with("item: warmed 1 keys in "), "{done:?}");
    let done = cli_warm(&scene, &["item"]).await;
    assert!(done.stdout.contains(": warmed 1200 keys in "), "{done:?}");
    assert_eq!(job_total(&scene).await, ROWS);
    eventually("have no job left", || async {
        let jobs = scene.metric("walcache_warming_jobs").await;
        if jobs == Some(0.0) { Ok(()) } else { Err(format!("{jobs:?}")) }
    })
    .await;
    assert_eq!(count(&scene, "item", "strange").await, 0);
    scene.verify().await;
}

async fn job_total(scene: &Scene) -> u64 {
    job(&scene.daemon, "item").await.unwrap()["total"].as_u64().unwrap()
}

#[tokio::test]
async fn what_postgres_says_of_a_statement_comes_back() {
    let scene = Scene::open("warm_bad", SCHEMA, |config| config.entity(item())).await;
    for (args, says) in [
        (["--where", "pricee > 3"], "column \"pricee\" does not exist"),
        (["--where", "id >"], "syntax error"),
        (["--where", "true); DELETE FROM items; SELECT (1"], "syntax error at or near \";\""),
        (["--keys", "select"], "has 0 columns available"),
        (["--keys", "select point(1, 2)"], "cannot cast type point to integer"),
        (
            ["--keys", "with gone as (delete from items returning id) select id from gone"],
            "WITH clause containing a data-modifying statement",
        ),
    ] {
        let refused = cli_warm(&scene, &[&["item"][..], &args[..]].concat()).await;
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(refused.stderr.contains(says), "{refused:?}");
    }
    // It cannot make the connection one that can write, for whatever comes next.
    let unlocks = "set_config('default_transaction_read_only', 'off', false) is not null and id = 1";
    let done = cli_warm(&scene, &["item", "--where", unlocks]).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    // What shows only when it runs, and what the transaction may not do.
    for (keys, says) in [
        ("select 1 / (id - id) from items", "division by zero"),
        ("select nextval('s')::int", "cannot execute nextval() in a read-only transaction"),
    ] {
        scene.sql.batch_execute("CREATE SEQUENCE IF NOT EXISTS s").await.unwrap();
        let failed = cli_warm(&scene, &["item", "--keys", keys]).await;
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
        assert!(failed.stdout.contains(says), "{failed:?}");
    }
    let nul = json!({"entity": "item", "where": "id > 0 -- \u{0}"});
    let refused = scene.daemon.admin().post("/v1/warm", &nul, &[]).await.expect(400);
    assert!(refused.text().contains("NUL"), "{refused:?}");
    let unknown = cli_warm(&scene, &["itme"]).await;
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let idle = cli_warm(&scene, &["item", "--cancel"]).await;
    assert!(idle.status.code() == Some(2) && idle.stderr.contains("is not being warmed"), "{idle:?}");
    for args in [&["item", "--limit", "0"][..], &["item", "--where", "x", "--keys", "y"], &["item", "--rate", "0"]] {
        assert_eq!(cli_warm(&scene, args).await.status.code(), Some(2), "{args:?}");
    }
    let rows: i64 = scene.sql.query_one("SELECT count(*) FROM items", &[]).await.unwrap().get(0);
    assert_eq!((rows, scene.keys("item").await.len()), (1200, 1));
}

/// The next page of keys may come over the same connection: what a condition has locked is given back, also where it fails.
#[tokio::test]
async fn no_lock_of_a_statement_stays() {
    let scene = Scene::open("warm_locks", SCHEMA, |config| config.entity(item())).await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND granted";
    for (condition, code) in
        [("pg_try_advisory_lock(id) and id < 10", 0), ("pg_try_advisory_lock(id) and 1 / (id - 9) = 0", 1)]
    {
        let done = cli_warm(&scene, &["item", "--where", condition]).await;
        assert_eq!(done.status.code(), Some(code), "{done:?}");
        assert_eq!(scene.sql.query_one(locks, &[]).await.unwrap().get::<_, i64>(0), 0, "{condition}");
    }
}
