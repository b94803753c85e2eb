//! What cannot be warmed does not keep the rest from it.

use serde_json::json;

use super::*;

/// The table of one entity is gone: the walks of others do not wait for what is read most of it.
#[tokio::test]
async fn of_a_table_that_is_gone() {
    let mut scene = Scene::open("warm_gone", SCHEMA, |config| {
        let walk = || warm(json!({"on": ["start"], "rate": 100_000}));
        config.entity(Entity::new("note", "public.notes").set("warm", walk())).entity(item().set("warm", walk()))
    })
    .await;
    for entity in ["item", "note"] {
        ended(&scene.daemon, entity, |_| true).await;
    }
    scene.daemon.kill().await;
    scene.sql.batch_execute("DROP TABLE notes").await.unwrap();
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    scene.http = scene.daemon.http();
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["state"], &job["done"]), (&json!("done"), &json!(ROWS)), "{job}");
    eventually("wait for the one that is gone", || async {
        let gone = super::job(&scene.daemon, "note").await.ok_or("no job")?;
        assert_eq!(gone["state"], "running", "{gone}");
        if gone["waits_for"] == "the entity to be cached" { Ok(()) } else { Err(gone.to_string()) }
    })
    .await;
    assert!(scene.daemon.terminate().await.success());
}

/// A query that always takes too long for one of the keys.
#[tokio::test]
async fn of_a_key_that_takes_too_long() {
    let schema =
        "CREATE TABLE slow (id int PRIMARY KEY, n int); INSERT INTO slow SELECT i, i FROM generate_series(1, 40) i";
    let slow = Entity::query(
        "slow",
        r#"
params = { id = "int" }
query = "select n, pg_sleep(case when $1 = 3 then 30 else 0 end)::text as slept from slow where id = $1"
depends_on = [{ table = "slow", key = { id = "id" } }]
warm = { keys = "select id from slow" }
"#,
    );
    let scene =
        Scene::open("warm_slow", schema, |config| config.set("source", "fill_timeout", "1s").entity(slow)).await;
    let job = warmed(&scene.daemon, json!({"entity": "slow"})).await;
    assert_eq!((&job["state"], &job["done"], &job["failed"]), (&json!("done"), &json!(40), &json!(1)), "{job}");
    for id in 1..=40 {
        assert_eq!(scene.stored(&format!("slow:{id}")).await.is_some(), id != 3, "{id}");
    }
}

/// Keys for which a query fails, each of them alone in its batch.
#[tokio::test]
async fn of_a_key_that_is_refused() {
    let schema = "CREATE TABLE mails (id int PRIMARY KEY, address text NOT NULL, n int NOT NULL);
        CREATE INDEX ON mails (address); ALTER TABLE mails REPLICA IDENTITY FULL;
        INSERT INTO mails VALUES (1, 'a', 1), (2, 'b', 1), (3, 'c', 2), (4, 'a-', 0), (5, 'c', 1)";
    let mail = Entity::query(
        "mail",
        r#"
params = { address = "text" }
query = "select id, 10 / n as part from mails where address = $1"
shape = "one"
depends_on = [{ table = "mails", key = { address = "address" } }]
warm = { keys = "select distinct address from mails", rate = 10 }
"#,
    );
    let scene = Scene::open("warm_refused", schema, |config| config.entity(mail)).await;
    let job = warmed(&scene.daemon, json!({"entity": "mail"})).await;
    let counts = (&job["state"], &job["done"], &job["filled"], &job["failed"]);
    assert_eq!(counts, (&json!("done"), &json!(4), &json!(2), &json!(2)), "{job}");
    assert_eq!(scene.keys("mail").await, ["a", "b"]);
}

/// A table that is locked: its pages of keys are waited for, and those of others, and operators, are not kept.
#[tokio::test]
async fn of_a_table_that_is_locked() {
    let scene = Scene::open("warm_locked_keys", SCHEMA, |config| {
        config
            .set("source", "fill_timeout", "2s")
            .entity(item().set("warm", warm(json!({"on": ["generation"], "rate": 100_000}))))
            .entity(Entity::new("note", "public.notes").set("warm", warm(json!({"rate": 100_000}))))
    })
    .await;
    ended(&scene.daemon, "item", |job| job["done"] == ROWS).await;
    let locker = scene.stage.sql().await;
    locker.batch_execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE").await.unwrap();
    scene.daemon.admin().post("/v1/resync", &json!({"entity": "item"}), &[]).await.expect(200);
    eventually("read keys", || async {
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND datname = current_database() AND query LIKE '%AS t(k0)%'";
        let waiting: i64 = scene.sql.query_one(waiting, &[]).await.unwrap().get(0);
        if waiting > 0 { Ok(()) } else { Err("nobody waits for the table") }
    })
    .await;
    // While pages of it are tried again and again.
    for _ in 0..3 {
        let job = warmed(&scene.daemon, json!({"entity": "note", "limit": 10})).await;
        assert_eq!((&job["state"], &job["done"]), (&json!("done"), &json!(10)), "{job}");
    }
    eventually("give up waiting", || async {
        let job = job(&scene.daemon, "item").await.unwrap();
        assert_eq!(job["state"], "running", "{job}");
        let waits_for = job["waits_for"].as_str().unwrap_or_default();
        if waits_for.contains("SQLSTATE 55P03") { Ok(()) } else { Err(job.to_string()) }
    })
    .await;
    locker.batch_execute("COMMIT").await.unwrap();
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["trigger"], &job["state"]), (&json!("generation"), &json!("done")), "{job}");
    assert_eq!(job["done"], ROWS, "{job}");
    scene.verify().await;
}
