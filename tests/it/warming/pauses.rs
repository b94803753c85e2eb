//! Warming takes what readers leave, and waits while a server is away.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use super::*;
use crate::harness::{Shop, Stage, current_lsn};

/// Readers wait for a locked table with all the connections that there are for them: warming of another table waits for them.
#[tokio::test]
async fn while_readers_need_postgres() {
    let stage = Stage::shared("warm_readers").await;
    stage.execute(SCHEMA).await;
    // To read a page of keys leaves a trace that no transaction takes back: it ends somebody's statement.
    let victim = stage.sql().await;
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let condition = format!("pg_cancel_backend({pid}) IS NOT NULL");
    let scene = Scene::on(stage, |config| {
        config
            .set("audit", "rate", 0)
            .set("source", "fill_timeout", "60s")
            .set("l2", "lease_ttl", "60s")
            .entity(item().set("warm", warm(json!({"rate": 100_000, "where": condition, "limit": 64}))))
            .entity(Entity::new("note", "public.notes"))
    })
    .await;
    let locker = scene.stage.sql().await;
    locker.batch_execute("BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut readers = JoinSet::new();
    for id in 1..=12 {
        let http = scene.http.clone();
        readers.spawn(async move { http.get(&format!("/v1/note/{id}")).await.status });
        // With all of the connections that there are for one entity: readers that come together share one.
        eventually("have readers wait", || async {
            let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted
                           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            let waiting: i64 = scene.sql.query_one(waiting, &[]).await.unwrap().get(0);
            if waiting >= id.min(3) { Ok(()) } else { Err(waiting.to_string()) }
        })
        .await;
    }
    let victim = tokio::spawn(async move { victim.batch_execute("SELECT pg_sleep(600)").await });
    let is_asleep = async || {
        let query = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1";
        scene.sql.query_one(query, &[&pid]).await.unwrap().get::<_, Option<bool>>(0) == Some(true)
    };
    eventually("have somebody sleep", || async { if is_asleep().await { Ok(()) } else { Err("awake") } }).await;
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item", "limit": 64}), &[]).await.expect(200);
    eventually("wait for readers", || async {
        let job = super::job(&scene.daemon, "item").await.unwrap();
        if job["waits_for"].as_str().is_some_and(|what| what.contains("readers")) {
            Ok(())
        } else {
            Err(job.to_string())
        }
    })
    .await;
    assert_eq!(scene.keys("item").await.len(), 0);
    // Not even a page of keys is read.
    assert!(is_asleep().await);
    // A reader gets what warming does not take.
    assert_eq!(scene.get("item/1000").await.expect(200).header("x-cache"), "MISS");
    assert_eq!(scene.keys("item").await, ["1000"]);
    locker.batch_execute("COMMIT").await.unwrap();
    while let Some(status) = readers.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["state"], &job["done"]), (&json!("done"), &json!(64)), "{job}");
    let ended = victim.await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    scene.verify().await;
}

/// The table that is warmed is locked: others are read and warmed meanwhile, and it goes on afterwards.
#[tokio::test]
async fn while_the_table_is_locked() {
    let scene = Scene::open("warm_locked", SCHEMA, |config| {
        config
            .set("source", "fill_timeout", "2s")
            .entity(item().set("warm", warm(json!({"rate": 100_000, "keys": "select generate_series(1, 300)"}))))
            .entity(Entity::new("note", "public.notes").set("warm", warm(json!({"rate": 100_000}))))
    })
    .await;
    let locker = scene.stage.sql().await;
    locker.batch_execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE").await.unwrap();
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item"}), &[]).await.expect(200);
    eventually("notice the lock", || async {
        let job = super::job(&scene.daemon, "item").await.unwrap();
        if job["waits_for"].as_str().is_some_and(|what| what.contains("did not answer")) {
            Ok(())
        } else {
            Err(job.to_string())
        }
    })
    .await;
    let note = warmed(&scene.daemon, json!({"entity": "note"})).await;
    assert_eq!((&note["done"], &note["failed"]), (&json!(300), &json!(0)), "{note}");
    let under_way = scene.daemon.admin().post("/v1/warm", &json!({"entity": "item"}), &[]).await.expect(409);
    assert!(under_way.json()["detail"].as_str().unwrap().contains("already"), "{}", under_way.text());
    locker.batch_execute("COMMIT").await.unwrap();
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["state"], &job["done"], &job["failed"]), (&json!("done"), &json!(300), &json!(0)), "{job}");
    scene.verify().await;
}

/// Each server away in the middle of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_server_is_away() {
    let mut shop = Shop::of("warm_away", 8, PostgresOptions::new(), RedisOptions::new()).await;
    shop.config = shop.config.entity(item().set("warm", warm(json!({"rate": 100}))));
    shop.config = shop.config.set("l2", "response_timeout", "3s");
    shop.stage.execute(SCHEMA).await;
    let done = cli(&shop.config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    let daemon = shop.daemon().await;
    daemon.admin().post("/v1/warm", &json!({"entity": "item", "limit": 600}), &[]).await.expect(200);
    let come = async |least: u64| {
        eventually(&format!("warm {least} keys"), || async {
            let job = super::job(&daemon, "item").await.unwrap();
            assert!(["running", "done"].contains(&job["state"].as_str().unwrap()), "{job}");
            if job["done"].as_u64().unwrap() >= least { Ok(()) } else { Err(job.to_string()) }
        })
        .await
    };
    let waits = async |reasons: &[&str]| {
        eventually("wait", || async {
            let job = super::job(&daemon, "item").await.unwrap();
            let waits_for = job["waits_for"].as_str().unwrap_or_default();
            if reasons.iter().any(|reason| waits_for.contains(reason)) { Ok(()) } else { Err(job.to_string()) }
        })
        .await
    };
    come(30).await;
    shop.stage.postgres.kill().await.unwrap();
    waits(&["this instance to apply changes", "the database cannot be reached"]).await;
    shop.stage.postgres.start_again().await.unwrap();
    come(150).await;
    shop.stage.redis.pause().await.unwrap();
    waits(&["L2 to be trusted", "this instance to apply changes"]).await;
    shop.stage.redis.resume().unwrap();
    let job = ended(&daemon, "item", |_| true).await;
    assert_eq!((&job["state"], &job["failed"]), (&json!("done"), &json!(0)), "{job}");
    daemon.wait_applied(current_lsn(&shop.sql().await).await).await;
    let mut l2 = shop.stage.l2().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("item:*").query_async(&mut l2).await.unwrap();
    // What was under way when Redis fell silent may not have been kept, which it says; or only the answer has come too late.
    assert!(keys.len() as u64 + job["unkept"].as_u64().unwrap() >= 600 && keys.len() > 500, "{}: {job}", keys.len());
    assert!(daemon.terminate().await.success());
}

/// A table whose shape changes is warmed anew, in the new shape; SIGTERM ends it at once.
#[tokio::test]
async fn ddl_and_the_end() {
    let scene =
        Scene::open("warm_ddl", SCHEMA, |config| config.entity(item().set("warm", warm(json!({"rate": 400}))))).await;
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item"}), &[]).await.expect(200);
    eventually("warm a part", || async {
        let job = super::job(&scene.daemon, "item").await.unwrap();
        if job["done"].as_u64().unwrap() >= 100 { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
    scene.write("ALTER TABLE items ADD more int DEFAULT 1").await;
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["state"], &job["filled"], &job["done"]), (&json!("done"), &json!(1200), &json!(1200)), "{job}");
    assert_eq!(scene.get("item/1").await.text(), r#"{"id":1,"n":0,"more":1}"#);
    scene.verify().await;
    scene.daemon.admin().post("/v1/resync", &json!({}), &[]).await.expect(200);
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item", "rate": 10}), &[]).await.expect(200);
    // Long before the job's own end, and before the grace period's, which is 10 s.
    let ended = tokio::time::timeout(Duration::from_secs(9), scene.daemon.terminate()).await;
    assert!(ended.expect("the end in time").success());
}
