//! Explain: what each tier holds, and the verdict.

use serde_json::Value;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Config, Entity, Scene, Stage, cli, current_lsn, eventually};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, price numeric(10, 2) NOT NULL);
    INSERT INTO items SELECT i, i FROM generate_series(1, 50) i;
    CREATE TABLE pairs (a text, b text, PRIMARY KEY (a, b));
    INSERT INTO pairs VALUES ('x/y z', 'b')";

fn entities(config: Config) -> Config {
    let config = config.set("audit", "rate", 0).set("audit", "wait", "10s");
    config.entity(Entity::new("item", "public.items")).entity(Entity::new("pair", "public.pairs"))
}

async fn explain(scene: &Scene, path: &str) -> Value {
    scene.daemon.admin().get(&format!("/v1/explain/{path}")).await.expect(200).json()
}

#[track_caller]
fn judged(explained: &Value, l1: &str, l2: &str, words: &[&str]) {
    assert_eq!(
        (explained["l1"]["case"].as_str(), explained["l2"]["case"].as_str()),
        (Some(l1), Some(l2)),
        "{explained}"
    );
    let verdict = explained["verdict"].as_str().unwrap();
    for word in words {
        assert!(verdict.contains(word), "{word:?} is not in {verdict:?}");
    }
}

async fn set(scene: &Scene, arguments: &[&str]) {
    redis::cmd("SET").arg(arguments).exec_async(&mut scene.l2.clone()).await.unwrap();
}

#[tokio::test]
async fn what_stands_where_and_why() {
    let scene = Scene::open("explain", SCHEMA, entities).await;
    let nothing = explain(&scene, "item/1").await;
    judged(&nothing, "nothing", "nothing", &["L1 holds nothing", "L2 holds nothing", "the next read fills it"]);
    assert_eq!(nothing["redis_key"], "item:1");
    assert!(nothing["l2"]["fence"]["done"].is_string() && nothing["l2"]["trusted"] == true, "{nothing}");

    scene.warm("item/1").await;
    let agreed = explain(&scene, "item/1").await;
    judged(&agreed, "agrees", "agrees", &["L1, L2 and Postgres agree"]);
    assert_eq!(agreed["l1"]["labels"]["etag"], agreed["row"]["labels"]["etag"]);
    assert!(agreed["l2"]["life_seconds"].as_f64().is_some_and(|life| life > 3000.0), "{agreed}");
    let text = scene.daemon.admin().get("/v1/explain/item/1").await.text();
    assert!(text.contains("\"price\":1.00"), "the row's own text: {text}");

    scene.get("item/99").await.expect(404);
    let absent = explain(&scene, "item/99").await;
    judged(&absent, "agrees", "agrees", &["agree"]);
    assert_eq!((&absent["l1"]["labels"]["absent"], &absent["row"]["labels"]["absent"]), (&true.into(), &true.into()));

    scene.write("UPDATE items SET price = 5 WHERE id = 1").await;
    let fenced = explain(&scene, "item/1").await;
    judged(
        &fenced,
        "unservable",
        "agrees",
        &["L2 and Postgres agree", "L1 holds an entry that is not served: it was fetched when W"],
    );
    let lsn = |text: &Value| text.as_str().unwrap().parse::<walcache::lsn::Lsn>().unwrap();
    assert!(lsn(&fenced["l1"]["cell"]) > lsn(&fenced["l1"]["labels"]["lo"]), "{fenced}");

    set(&scene, &["item:2", "{\"lease\":\"00000000deadbeef\"}", "PX", "60000"]).await;
    judged(&explain(&scene, "item/2").await, "nothing", "lease", &["a lease stands in L2: somebody is filling"]);
    set(&scene, &["item:3", "junk"]).await;
    judged(&explain(&scene, "item/3").await, "nothing", "foreign", &["that walcache did not write"]);
    redis::cmd("HSET").arg(&["item:4", "a", "b"]).exec_async(&mut scene.l2.clone()).await.unwrap();
    judged(&explain(&scene, "item/4").await, "nothing", "foreign", &["that walcache did not write"]);

    scene.get("item/5").await.expect(200);
    let right = String::from_utf8(scene.raw("item:5").await.unwrap().to_vec()).unwrap();
    set(&scene, &["item:5", &right.replace("5.00", "6.00")]).await;
    let words =
        ["L1 and Postgres agree", "L2 differs from Postgres and no change is on its way", "`walcache verify` repairs"];
    judged(&explain(&scene, "item/5").await, "agrees", "differs", &words);
    let admin = ["--admin", scene.daemon.admin_address()];
    let told = cli(&scene.config, &[&["explain", "item", "05"], &admin[..]].concat(), &[]).await;
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    for word in
        ["item:5 (in Redis: item:5)", "L1         as of", "L2         lo", "6.00", "Postgres   hi", "verdict: L1 and"]
    {
        assert!(told.stdout.contains(word), "{word}: {told:?}");
    }

    scene.daemon.admin().post("/v1/resync", &serde_json::json!({ "entity": "item" }), &[]).await.expect(200);
    let words = ["L1 holds an entry that is not served: it is of generation", "the next read fills it from Postgres"];
    judged(&explain(&scene, "item/99").await, "unservable", "unservable", &words);

    // As in the URL of a read, or as a shell lets one type it.
    scene.get("pair/x%2Fy%20z,b").await.expect(200);
    for key in ["x%2Fy%20z,b", "x/y z,b"] {
        let told = cli(&scene.config, &[&["explain", "pair", key, "--json"], &admin[..]].concat(), &[]).await;
        assert_eq!(told.status.code(), Some(0), "{told:?}");
        let json: Value = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!((&json["key"], &json["l2"]["case"]), (&"x/y z,b".into(), &"agrees".into()));
    }
    for (arguments, code, words) in [
        (["explain", "itme", "1"], 2, "configured: item, pair"),
        (["explain", "item", "one"], 2, "key column id is an integer"),
        (["explain", "pair", "a"], 2, "1 part(s)"),
    ] {
        let told = cli(&scene.config, &[&arguments[..], &admin[..]].concat(), &[]).await;
        assert_eq!(told.status.code(), Some(code), "{told:?}");
        assert!(told.stderr.contains(words), "{told:?}");
    }
}

/// The server's end of the stream stands still: changes are committed, and none comes.
#[tokio::test]
async fn a_change_on_its_way() {
    let stage = Stage::private("explain_late", PostgresOptions::new(), RedisOptions::new()).await;
    stage.execute(SCHEMA).await;
    let scene = Scene::on(stage, |config| entities(config).set("audit", "wait", "1s")).await;
    scene.warm("item/1").await;
    let row = scene.sql.query_one("SELECT active_pid FROM pg_replication_slots WHERE active", &[]).await.unwrap();
    let walsender = rustix::process::Pid::from_raw(row.get(0)).expect("a pid");
    rustix::process::kill_process(walsender, rustix::process::Signal::STOP).unwrap();
    scene.sql.batch_execute("UPDATE items SET price = 7 WHERE id = 1").await.unwrap();
    let end = current_lsn(&scene.sql).await;
    let late = explain(&scene, "item/1").await;
    let words = [
        "L1 holds an older image, and an event at or before 0/",
        "is on its way: W has not reached it",
        "L2 holds an older",
    ];
    judged(&late, "on_its_way", "on_its_way", &words);
    let told = cli(&scene.config, &["verify", "--all", "--admin", scene.daemon.admin_address()], &[]).await;
    assert_eq!(told.status.code(), Some(69), "neither equal nor wrong: {told:?}");
    assert!(told.stdout.contains("without a verdict: item:1 in l2: replication did not come"), "{told:?}");
    rustix::process::kill_process(walsender, rustix::process::Signal::CONT).unwrap();
    scene.daemon.wait_applied(end).await;
    judged(&explain(&scene, "item/1").await, "unservable", "agrees", &["L2 and Postgres agree"]);
}

#[tokio::test]
async fn without_redis_and_without_postgres() {
    let stage = Stage::private("explain_alone", PostgresOptions::new(), RedisOptions::new()).await;
    stage.execute(SCHEMA).await;
    let scene =
        Scene::on(stage, |config| entities(config).set("audit", "wait", "1s").set("l2", "response_timeout", "300ms"))
            .await;
    scene.warm("item/1").await;
    scene.stage.redis.kill().await.unwrap();
    let words = ["L1 and Postgres agree", "L2 could not be compared"];
    judged(&explain(&scene, "item/1").await, "agrees", "unknown", &words);
    let told = cli(&scene.config, &["explain", "item", "1", "--admin", scene.daemon.admin_address()], &[]).await;
    assert_eq!(told.status.code(), Some(69), "neither equal nor wrong: {told:?}");
    let told = cli(&scene.config, &["verify", "--admin", scene.daemon.admin_address()], &[]).await;
    assert_eq!(told.status.code(), Some(69), "{told:?}");
    assert!(told.stdout.contains("problem: item: list entries in L2"), "{told:?}");
    scene.stage.postgres.kill().await.unwrap();
    let explained = eventually("see that Postgres is away", || async {
        let explained = explain(&scene, "item/1").await;
        if explained["row"]["error"].is_string() { Ok(explained) } else { Err(explained.to_string()) }
    })
    .await;
    judged(&explained, "unknown", "unknown", &["Postgres was not read"]);
}
