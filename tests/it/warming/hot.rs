//! What is read most is warmed first.

use serde_json::json;
use walcache::lsn::Lsn;
use walcache::sandbox::RedisOptions;

use super::*;
use crate::harness::{Config, Hidden, Shop, Stage};

/// Reads each of these often enough to be known: one read in sixteen is looked at.
async fn read_often(scene_http: &crate::harness::Http, keys: &[u64]) {
    let keys: Vec<u64> = keys.iter().copied().cycle().take(keys.len() * 400).collect();
    for keys in keys.chunks(500) {
        scene_http.post("/v1/item/batch", &json!({ "keys": keys }), &[]).await.expect(200);
    }
}

fn config(config: Config) -> Config {
    config.entity(item().set("hot_set", 20).set("warm", warm(json!({"on": ["generation"], "limit": 50, "rate": 50}))))
}

/// Waits until what others have kept is known: before that, nothing is kept. The entity of `notes` tells: its first row is warmed
/// then.
async fn know(daemon: &Daemon) {
    ended(daemon, "note", |job| job["trigger"] == "start").await;
}

fn note() -> Entity {
    Entity::new("note", "public.notes").set("warm", warm(json!({"on": ["start"], "limit": 1})))
}

/// Redis is emptied. The hot keys come before the walk, which begins at the other end.
#[tokio::test]
async fn after_redis_was_emptied() {
    let scene = Scene::open("hot_flush", SCHEMA, config).await;
    let hot: Vec<u64> = (1181..=1200).collect();
    // What is cached at first is of a new generation, too.
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["trigger"], &job["filled"]), (&json!("start"), &json!(50)), "{job}");
    read_often(&scene.http, &hot).await;
    let generation = async || scene.daemon.status().await["entities"][0]["generation"].as_u64().unwrap();
    let before = generation().await;
    let (): () = redis::cmd("FLUSHDB").query_async(&mut scene.l2.clone()).await.unwrap();
    // The next batch, a heartbeat's at the latest, finds the fence gone.
    eventually("begin a new generation", || async {
        if generation().await > before { Ok(()) } else { Err("not yet") }
    })
    .await;
    // Nobody has read anything since. While keys of the walk are missing, all hot ones are there.
    let present = eventually("warm the hot set", || async {
        let keys = numbers(&scene, "item").await;
        let hot_there = keys.iter().filter(|key| **key > 1180).count();
        assert!(hot_there == 20 || keys.len() == hot_there, "the walk went before the hot set: {keys:?}");
        if hot_there == 20 { Ok(keys.len()) } else { Err(format!("{keys:?}")) }
    })
    .await;
    println!("{present} keys when the hot ones were there");
    let job = ended(&scene.daemon, "item", |job| job["trigger"] == "generation").await;
    assert_eq!((&job["done"], &job["state"]), (&json!(70), &json!("done")), "{job}");
    let wanted: Vec<u64> = (1..=50).chain(1181..=1200).collect();
    assert_eq!(numbers(&scene, "item").await, wanted);
    scene.verify().await;
}

/// It outlives the process, and is checked before it is believed.
#[tokio::test]
async fn across_a_restart() {
    let mut scene =
        Scene::open("hot_restart", SCHEMA, |config| config.entity(item().set("hot_set", 20)).entity(note())).await;
    know(&scene.daemon).await;
    let hot: Vec<u64> = (301..=320).collect();
    read_often(&scene.http, &hot).await;
    assert!(scene.daemon.terminate().await.success());
    let note = String::from_utf8(scene.raw("~walcache:hot:item").await.expect("the hot set is kept").to_vec()).unwrap();
    assert!(hot.iter().all(|key| note.contains(&format!("\"{key}\""))), "{note}");
    // Keys of no row, of no entity, and of no form.
    let foreign =
        note.replacen("[[", "[[\"0301\",9.0],[\"x\",9.0],[\"note:1\",9.0],[\"~walcache:fence\",9.0],[\"\",9.0],[", 1);
    assert_ne!(foreign, note);
    let (): () =
        redis::cmd("SET").arg("~walcache:hot:item").arg(&foreign).query_async(&mut scene.l2.clone()).await.unwrap();
    for key in &hot {
        let (): () = redis::cmd("DEL").arg(format!("item:{key}")).query_async(&mut scene.l2.clone()).await.unwrap();
    }
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    let job = ended(&scene.daemon, "item", |job| job["trigger"] == "start").await;
    assert!(job["filled"].as_u64().unwrap() >= 15, "the first of what is kept, as many as are wanted: {job}");
    let keys = numbers(&scene, "item").await;
    assert!(keys.len() >= 15 && keys.iter().all(|key| hot.contains(key)), "{keys:?}");
    // Nonsense is none.
    assert!(scene.daemon.terminate().await.success());
    let (): () = redis::cmd("SET")
        .arg("~walcache:hot:item")
        .arg("{\"keys\":7}")
        .query_async(&mut scene.l2.clone())
        .await
        .unwrap();
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    scene.http = scene.daemon.http();
    warmed(&scene.daemon, json!({"entity": "item", "limit": 1})).await;
    scene.verify().await;
}

/// The hot sets of all entities come before any walk.
#[tokio::test]
async fn of_all_entities_before_any_walk() {
    let stage = Stage::shared("hot_all").await;
    stage.execute(SCHEMA).await;
    let scene = Scene::on(stage, |config| {
        config
            // One that has nothing to remember, and a long way to go.
            .entity(
                Entity::new("note", "public.notes")
                    .set("warm", warm(json!({"on": ["generation"], "rate": 20, "limit": 40}))),
            )
            .entity(item().set("hot_set", 20))
    })
    .await;
    // It has looked around: what comes now is a new generation, and no start.
    eventually("begin to warm", || async { super::job(&scene.daemon, "note").await.ok_or("no job") }).await;
    read_often(&scene.http, &(1..=20).collect::<Vec<u64>>()).await;
    ended(&scene.daemon, "note", |_| true).await;
    // What is read most cannot be read for now.
    let locker = scene.stage.sql().await;
    locker.batch_execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE").await.unwrap();
    scene.daemon.admin().post("/v1/resync", &json!({}), &[]).await.expect(200);
    let note = eventually("wait for the other's hot set", || async {
        let note = super::job(&scene.daemon, "note").await.unwrap();
        let waits = note["waits_for"].as_str().is_some_and(|what| what.contains("what is read most"));
        if waits { Ok(note) } else { Err(note.to_string()) }
    })
    .await;
    assert_eq!((&note["trigger"], &note["done"]), (&json!("generation"), &json!(0)), "{note}");
    locker.batch_execute("COMMIT").await.unwrap();
    let job = ended(&scene.daemon, "item", |job| job["trigger"] == "generation").await;
    assert_eq!(job["filled"], 20, "{job}");
    let note = ended(&scene.daemon, "note", |job| job["trigger"] == "generation").await;
    assert_eq!((&note["state"], &note["filled"]), (&json!("done"), &json!(40)), "{note}");
    scene.verify().await;
}

/// A daemon that stops before it has caught up, and so before it knows what is kept, keeps what is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_lost_before_it_is_known() {
    let mut shop = Shop::of("hot_behind", 8, Hidden::postgres(), RedisOptions::new()).await;
    shop.config = shop.config.clone().entity(item().set("hot_set", 20)).entity(note());
    shop.stage.execute(SCHEMA).await;
    let done = cli(&shop.config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    let mut l2 = shop.stage.l2().await;
    let mut kept =
        async || -> String { redis::cmd("GET").arg("~walcache:hot:item").query_async(&mut l2).await.unwrap() };

    let daemon = shop.daemon().await;
    know(&daemon).await;
    read_often(&daemon.http(), &(301..=320).collect::<Vec<u64>>()).await;
    let hidden = Hidden::write(&shop, &daemon, &["UPDATE items SET n = 1 WHERE id = 1"]).await;
    assert!(daemon.terminate().await.success());
    let before = kept().await;
    assert!(before.contains("\"301\"") && before.contains("\"320\""), "{before}");

    // It applies changes, and does not come past the one that nobody sees.
    let daemon = Daemon::start(&shop.config).await;
    eventually("receive the change that is hidden", || async {
        let status = daemon.status().await;
        let at: Option<Lsn> = status["replication"]["received_lsn"].as_str().and_then(|text| text.parse().ok());
        let metrics = daemon.admin().get("/metrics").await.expect(200).text();
        let is_trusted = metrics.contains("walcache_l2_trusted 1");
        if at >= Some(hidden.lsn) && is_trusted { Ok(()) } else { Err(format!("{at:?} {is_trusted}")) }
    })
    .await;
    read_often(&daemon.http(), &(1..=20).collect::<Vec<u64>>()).await;
    assert!(daemon.terminate().await.success());
    assert_eq!(kept().await, before);

    // Once it has caught up, it has both.
    hidden.show(&shop.sql().await).await;
    let daemon = shop.daemon().await;
    let job = ended(&daemon, "item", |_| true).await;
    assert_eq!((&job["trigger"], &job["done"]), (&json!("start"), &json!(20)), "{job}");
    read_often(&daemon.http(), &[7]).await;
    assert!(daemon.terminate().await.success());
    let after = kept().await;
    assert!(after.contains("\"7\"") && after.contains("\"301\""), "{after}");
}
