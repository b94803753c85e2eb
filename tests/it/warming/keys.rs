//! Each key once, whatever its type and its collation.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::harness::eventually_within;

/// Texts that collations order otherwise than bytes: cases, accents, blanks, punctuation, digits.
const TEXTS: &str = "CREATE COLLATION IF NOT EXISTS german (provider = icu, locale = 'de-u-kn-true');
    CREATE TABLE plain (k text PRIMARY KEY, n int);
    CREATE TABLE german (k text COLLATE german PRIMARY KEY, n int);
    CREATE TABLE bytes (k text COLLATE \"C\" PRIMARY KEY, n int);
    CREATE TABLE padded (k char(9) COLLATE german, b bool, PRIMARY KEY (k, b));
    CREATE TABLE pairs (a int, k varchar(40) COLLATE german, u uuid, PRIMARY KEY (a, k, u), n int);
    INSERT INTO plain SELECT x || y || i, i FROM unnest(ARRAY['a','A','ä','Z','z','_','-',' ','','é','ß','ss','10','9']) x,
        unnest(ARRAY['', ' ', 'b', 'B', '%', ',', 'ö']) y, generate_series(1, 12) i ON CONFLICT DO NOTHING;
    INSERT INTO german SELECT * FROM plain;
    INSERT INTO bytes SELECT * FROM plain;
    INSERT INTO padded SELECT DISTINCT left(k, 9)::char(9), b FROM plain, unnest(ARRAY[true, false]) b;
    INSERT INTO pairs SELECT n % 3, k, md5(k)::uuid, n FROM plain";

#[tokio::test]
async fn texts_in_the_order_of_their_column() {
    let scene = Scene::open("warm_texts", TEXTS, |config| {
        ["plain", "german", "bytes", "padded", "pairs"].into_iter().fold(config, |config, table| {
            let rate = warm(json!({"rate": 100_000}));
            config.entity(Entity::new(table, &format!("public.{table}")).set("warm", rate))
        })
    })
    .await;
    for table in ["plain", "german", "bytes", "padded", "pairs"] {
        let count = format!("SELECT count(*) FROM {table}");
        let rows: i64 = scene.sql.query_one(&count, &[]).await.unwrap().get(0);
        assert!(rows > 1000, "{table}: more than two pages: {rows}");
        // In both directions: one that leaves a key out leaves it out of Redis, one that repeats it counts it twice.
        for (order, filled) in [("desc", rows), ("asc", 0)] {
            let job = warmed(&scene.daemon, json!({"entity": table, "order": order})).await;
            assert_eq!((&job["done"], &job["filled"]), (&json!(rows), &json!(filled)), "{table} {order}: {job}");
            assert_eq!((&job["absent"], &job["strange"]), (&json!(0), &json!(0)), "{table} {order}: {job}");
        }
        let keys: BTreeSet<String> = scene.keys(table).await.into_iter().collect();
        assert_eq!(keys.len() as i64, rows, "{table}");
    }
    scene.verify().await;
}

#[tokio::test]
async fn only_rows_that_are_published() {
    if crate::harness::needs_publications("only_rows_that_are_published") {
        return;
    }
    let scene = Scene::open("warm_published", SCHEMA, |config| {
        config.entity(item().set("warm", warm(json!({"rate": 100_000}))))
    })
    .await;
    scene.write(&format!("ALTER PUBLICATION {} SET TABLE items WHERE (id > 1000)", scene.stage.name)).await;
    eventually("know of the filter", || async {
        let response = scene.get("item/7").await;
        if response.status == 404 { Ok(()) } else { Err(response.text()) }
    })
    .await;
    scene.daemon.wait_joined().await;
    let job = warmed(&scene.daemon, json!({"entity": "item", "where": "id % 100 = 0"})).await;
    assert_eq!((&job["done"], &job["absent"]), (&json!(2), &json!(0)), "{job}");
    let mut keys = numbers(&scene, "item").await;
    keys.retain(|key| *key != 7);
    assert_eq!(keys, [1100, 1200]);
}

/// Inserts, updates and deletes all the while: what is cached equals what Postgres has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_race_with_warming() {
    let scene = Scene::open("warm_race", SCHEMA, |config| {
        config
            .entity(item().set("warm", warm(json!({"rate": 3000}))))
            .entity(Entity::new("note", "public.notes").set("on_change", "invalidate"))
    })
    .await;
    let writer = scene.stage.sql().await;
    let (mut round, mut voided) = (0, 0.0);
    for pass in 0.. {
        // Until fills have met with events: at the second pass at the latest, as a rule.
        if pass >= 3 && voided > 0.0 {
            break;
        }
        assert!(pass < 20, "{round} rounds of writes have voided no fill");
        let entity = ["item", "note"][pass % 2];
        let (): () = redis::cmd("EVAL")
            .arg("for _, k in ipairs(redis.call('KEYS', '[in]*:*')) do redis.call('DEL', k) end")
            .arg(0)
            .query_async(&mut scene.l2.clone())
            .await
            .unwrap();
        scene.daemon.admin().post("/v1/warm", &json!({"entity": entity}), &[]).await.expect(200);
        while super::job(&scene.daemon, entity).await.unwrap()["state"] == "running" {
            round += 1;
            assert!(round < 5000, "it does not end");
            let sql = format!(
                "UPDATE {entity}s SET n = n + 1 WHERE id % 7 = {r} % 7; DELETE FROM {entity}s WHERE id % 101 = {r} % 101;
                 INSERT INTO {entity}s SELECT i, {r} FROM generate_series(1, 1300, 1 + {r} % 50) i ON CONFLICT DO NOTHING",
                r = round
            );
            writer.batch_execute(&sql).await.unwrap();
        }
        let job = super::job(&scene.daemon, entity).await.unwrap();
        assert_eq!(job["state"], "done", "{job}");
        for entity in ["item", "note"] {
            let name = format!("walcache_fills_total{{entity=\"{entity}\",result=\"voided\"}}");
            voided += scene.metric(&name).await.unwrap_or(0.0);
        }
    }
    assert!(round > 3, "{round}");
    println!("{round} rounds of writes");
    scene.verify().await;
}

/// Results of a query, of the keys that another one gives: nulls, repeated ones and those that can be no keys are passed
/// over; the array is projected object by object.
#[tokio::test]
async fn results_of_a_query() {
    let schema = "CREATE TABLE lists (id int PRIMARY KEY, parent bigint, n int);
        CREATE INDEX ON lists (parent);
        ALTER TABLE lists REPLICA IDENTITY FULL;
        INSERT INTO lists SELECT i, i % 40, i FROM generate_series(1, 400) i;
        INSERT INTO lists VALUES (1000, NULL, 0)";
    let list = Entity::query(
        "list",
        r#"
params = { parent = "bigint" }
query = "select id, n from lists where parent = $1 order by id"
depends_on = [{ table = "lists", key = { parent = "parent" } }]
warm = { on = ["start"], keys = "select parent from lists -- each ten times", rate = 100000 }
"#,
    );
    let scene = Scene::open("warm_query", schema, |config| config.entity(list)).await;
    let job = ended(&scene.daemon, "list", |job| job["trigger"] == "start").await;
    assert_eq!((&job["state"], &job["filled"], &job["done"]), (&json!("done"), &json!(40), &json!(400)), "{job}");
    assert_eq!(scene.keys("list").await.len(), 40);
    let part = scene.get("list/7?fields=n").await.expect(200);
    let wanted: Vec<serde_json::Value> = (0..10).map(|i| json!({"n": 7 + 40 * i})).collect();
    assert_eq!((part.json(), part.header("x-cache")), (json!(wanted), "HIT-L1"));
    scene.write("UPDATE lists SET parent = 8 WHERE id = 7").await;
    let job =
        warmed(&scene.daemon, json!({"entity": "list", "keys": "select generate_series(0, 49) order by 1 desc"})).await;
    assert_eq!((&job["done"], &job["state"]), (&json!(50), &json!("done")), "{job}");
    assert_eq!(scene.get("list/8?fields=id").await.json()[0], json!({"id": 7}));
    let refused =
        scene.daemon.admin().post("/v1/warm", &json!({"entity": "list", "where": "true"}), &[]).await.expect(400);
    assert!(refused.json()["detail"].as_str().unwrap().contains("which keys to warm"), "{}", refused.text());
}

/// A null in a later column is no key, on any page.
#[tokio::test]
async fn nulls_in_a_later_column() {
    let schema = "CREATE TABLE pairs (a int, b int, PRIMARY KEY (a, b), n int);
        INSERT INTO pairs SELECT i, i, 0 FROM generate_series(1, 6000) i";
    let scene = Scene::open("warm_nulls", schema, |config| {
        config.entity(Entity::new("pair", "public.pairs").set("warm", warm(json!({"rate": 100_000}))))
    })
    .await;
    // More than one page of what a SELECT gives.
    let keys = "select a, case when a % 1000 <> 500 then b end from pairs";
    let job = warmed(&scene.daemon, json!({"entity": "pair", "keys": keys})).await;
    let counts = (&job["state"], &job["done"], &job["strange"]);
    assert_eq!(counts, (&json!("done"), &json!(5994), &json!(0)), "{job}");
}

/// Nobody waits for a statement any more whose job was cancelled.
#[tokio::test]
async fn a_statement_ends_with_its_job() {
    // It is given up after 30 s by itself.
    const ENDED: Duration = Duration::from_secs(12);
    let scene = Scene::open("warm_cancel", SCHEMA, |config| config.entity(item())).await;
    let asleep = async || {
        let query = "SELECT count(*) FROM pg_stat_activity
                     WHERE state = 'active' AND datname = current_database() AND wait_event = 'PgSleep'";
        scene.sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0)
    };
    let body = json!({"entity": "item", "keys": "select 1 from pg_sleep(29)"});
    scene.daemon.admin().post("/v1/warm", &body, &[]).await.expect(200);
    eventually("run it", || async { if asleep().await == 1 { Ok(()) } else { Err("not yet") } }).await;
    // What others ask for does not wait for it.
    let refused = json!({"entity": "item", "keys": "select 1 from missing"});
    let answer = scene.daemon.admin();
    let answer = answer.post("/v1/warm", &refused, &[]);
    tokio::time::timeout(Duration::from_secs(15), answer).await.expect("an answer in time").expect(400);
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item", "cancel": true}), &[]).await.expect(200);
    eventually_within(ENDED, "end it", || async { if asleep().await == 0 { Ok(()) } else { Err("it still runs") } })
        .await;
    assert_eq!(warmed(&scene.daemon, json!({"entity": "item", "limit": 3})).await["filled"], 3);
}
