//! When warming begins by itself.

use serde_json::json;

use super::*;
use crate::harness::Config;

#[tokio::test]
async fn at_the_start_and_after_a_new_generation() {
    let scene = Scene::open("warm_start", SCHEMA, |config| {
        config
            .entity(
                item().set("warm", warm(json!({"on": ["start", "generation"], "where": "id <= 700", "rate": 100_000}))),
            )
            .entity(Entity::new("note", "public.notes"))
    })
    .await;
    let wanted: Vec<u64> = (1..=700).collect();
    let job = ended(&scene.daemon, "item", |job| job["trigger"] == "start").await;
    assert_eq!(
        (&job["state"], &job["filled"], &job["total"].as_u64().is_some()),
        (&json!("done"), &json!(700), &true),
        "{job}"
    );
    assert_eq!(numbers(&scene, "item").await, wanted);
    assert_eq!(scene.keys("note").await.len(), 0, "only what is configured");
    assert!(super::job(&scene.daemon, "note").await.is_none());

    // A new generation, of a resync and of DDL: all is filled anew.
    for (n, sql) in [(1, ""), (2, "ALTER TABLE items ADD more int DEFAULT 3")] {
        if sql.is_empty() {
            scene.daemon.admin().post("/v1/resync", &json!({"entity": "item"}), &[]).await.expect(200);
        } else {
            scene.write(sql).await;
        }
        let filled = 700 * (n + 1);
        eventually("warm the new generation", || async {
            let found = count(&scene, "item", "filled").await;
            if found >= filled { Ok(()) } else { Err(format!("{found} of {filled}")) }
        })
        .await;
        let job = ended(&scene.daemon, "item", |_| true).await;
        assert_eq!((&job["trigger"], &job["filled"]), (&json!("generation"), &json!(700)), "{job}");
    }
    assert_eq!(scene.get("item/7").await.text(), r#"{"id":7,"n":0,"more":3}"#);
    assert_eq!(scene.get("item/8").await.header("x-cache"), "HIT-L1");
    // Of an empty table nothing is left to warm.
    scene.write("TRUNCATE items").await;
    ended(&scene.daemon, "item", |job| job["trigger"] == "generation" && job["done"] == 0).await;
    scene.verify().await;
}

#[tokio::test]
async fn on_a_schedule_and_by_a_command_in_the_log() {
    let scene = Scene::open("warm_every", SCHEMA, |config| {
        config
            .entity(item().set("warm", warm(json!({"every": "1s", "limit": 5}))))
            .entity(Entity::new("note", "public.notes").set("warm", warm(json!({"where": "n = 0", "rate": 100_000}))))
    })
    .await;
    let job = ended(&scene.daemon, "item", |job| job["trigger"] == "schedule").await;
    // It may be the second one by now, which has found all of them.
    assert_eq!((&job["state"], &job["done"], &job["failed"]), (&json!("done"), &json!(5), &json!(0)), "{job}");
    assert_eq!(count(&scene, "item", "filled").await, 5);
    assert_eq!(numbers(&scene, "item").await, [1, 2, 3, 4, 5]);
    let (): () = redis::cmd("DEL").arg("item:3").query_async(&mut scene.l2.clone()).await.unwrap();
    eventually("warm it again", || async { if scene.keys("item").await.len() == 5 { Ok(()) } else { Err("not yet") } })
        .await;

    // Once the transaction is applied: what it wrote is among it. Nothing of one that was rolled back.
    let says = r#"SELECT pg_logical_emit_message(true, 'walcache', '{"warm":{"entity":"note"}}')"#;
    scene.write(&format!("BEGIN; {says}; ROLLBACK")).await;
    scene
        .write(&format!(
            "BEGIN; {says}; INSERT INTO notes VALUES (1000, 0); UPDATE notes SET n = 1 WHERE id < 100; COMMIT"
        ))
        .await;
    let job = ended(&scene.daemon, "note", |job| job["trigger"] == "command").await;
    assert_eq!((&job["filled"], &job["state"]), (&json!(202), &json!("done")), "{job}");
    assert_eq!(scene.stored("note:1000").await.unwrap().value, r#"{"id":1000,"n":0}"#);
    assert_eq!(scene.metric("walcache_commands_total{command=\"warm\",result=\"done\"}").await, Some(1.0));
    assert_eq!(count(&scene, "note", "filled").await, 202, "in all, so one job has run");
    scene.verify().await;
}

#[tokio::test]
async fn without_l2() {
    let scene = Scene::open("warm_alone", SCHEMA, |config| {
        config
            .without("l2")
            .entity(item().set("warm", warm(json!({"on": ["start", "generation"], "rate": 100_000, "limit": 300}))))
    })
    .await;
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["trigger"], &job["filled"], &job["present"]), (&json!("start"), &json!(300), &json!(0)), "{job}");
    for id in [1, 150, 300] {
        assert_eq!(scene.get(&format!("item/{id}")).await.expect(200).header("x-cache"), "HIT-L1", "{id}");
    }
    assert_eq!(scene.get("item/301").await.header("x-cache"), "MISS");
    scene.write("UPDATE items SET n = 1 WHERE id = 7").await;
    let job = warmed(&scene.daemon, json!({"entity": "item", "limit": 10})).await;
    assert!(job["present"].as_u64().unwrap() >= 9 && job["filled"].as_u64().unwrap() <= 1, "{job}");
    assert_eq!(scene.get("item/7").await.text(), r#"{"id":7,"n":1}"#);
    scene.verify().await;
}

/// Only the instance that applies changes warms; whoever takes over does then.
#[tokio::test]
async fn only_by_the_one_that_leads() {
    let scene = Scene::open("warm_follower", SCHEMA, |config: Config| {
        config.entity(item().set("warm", warm(json!({"on": ["start"], "limit": 50}))))
    })
    .await;
    ended(&scene.daemon, "item", |_| true).await;
    let second = Daemon::start(&scene.config).await;
    eventually("find the slot held", || async {
        if second.log().contains("another consumer holds the slot") { Ok(()) } else { Err("not yet") }
    })
    .await;
    let refused = second.admin().post("/v1/warm", &json!({"entity": "item"}), &[]).await.expect(503);
    assert_eq!(refused.json()["type"], "urn:walcache:problem:not-leading");
    assert!(scene.daemon.terminate().await.success());
    let job = ended(&second, "item", |_| true).await;
    assert_eq!((&job["trigger"], &job["done"], &job["present"]), (&json!("start"), &json!(50), &json!(50)), "{job}");
    // Nor had it before.
    assert_eq!(told_of(&second, 1).await, 1, "{}", second.log());
    let metrics = second.admin().get("/metrics").await.expect(200).text();
    assert!(metrics.contains("walcache_warmed_keys_total{entity=\"item\",result=\"present\"} 50\n"), "{metrics}");
    assert!(metrics.contains("walcache_warmed_keys_total{entity=\"item\",result=\"filled\"} 0\n"), "{metrics}");
}
