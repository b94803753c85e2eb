//! Going on after a crash.

use serde_json::json;

use super::*;

async fn come_to(daemon: &Daemon, least: u64) -> u64 {
    eventually(&format!("warm {least} keys"), || async {
        let job = super::job(daemon, "item").await.ok_or("no job")?;
        let done = job["done"].as_u64().unwrap();
        if done >= least { Ok(done) } else { Err(job.to_string()) }
    })
    .await
}

/// Killed in the middle: the next daemon goes on after the last page that was finished, though nothing tells it to warm
/// at its start.
#[tokio::test]
async fn after_a_kill() {
    let mut scene =
        Scene::open("warm_kill", SCHEMA, |config| config.entity(item().set("warm", warm(json!({"rate": 120}))))).await;
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item"}), &[]).await.expect(200);
    come_to(&scene.daemon, 600).await;
    scene.daemon.kill().await;
    drop_leases(&scene, "item").await;
    let place = String::from_utf8(scene.raw("~walcache:warm:item").await.expect("a place").to_vec()).unwrap();
    assert!(place.contains("\"after\":[\"500\"]") && !place.to_lowercase().contains("select"), "{place}");
    // Whoever goes on from there does not see to these any more.
    for id in [1, 250, 499] {
        let (): () = redis::cmd("DEL").arg(format!("item:{id}")).query_async(&mut scene.l2.clone()).await.unwrap();
    }
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    scene.http = scene.daemon.http();
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!((&job["state"], &job["resumed"], &job["done"]), (&json!("done"), &json!(true), &json!(1200)), "{job}");
    assert!(job["present"].as_u64().unwrap() >= 100, "those between the page and the kill: {job}");
    let keys = numbers(&scene, "item").await;
    assert_eq!(keys, (1..=1200).filter(|id| ![1, 250, 499].contains(id)).collect::<Vec<u64>>());
    assert_eq!(scene.raw("~walcache:warm:item").await, None, "the way is over");
    scene.verify().await;
}

/// A place that makes no sense, or is of another walk or generation, is none.
#[tokio::test]
async fn not_from_a_place_that_is_none() {
    let scene =
        Scene::open("warm_place", SCHEMA, |config| config.entity(item().set("warm", warm(json!({"rate": 100_000})))))
            .await;
    let body = json!({"entity": "item", "where": "id <= 1000", "rate": 100});
    scene.daemon.admin().post("/v1/warm", &body, &[]).await.expect(200);
    come_to(&scene.daemon, 600).await;
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item", "cancel": true}), &[]).await.expect(200);
    ended(&scene.daemon, "item", |job| job["state"] == "cancelled").await;
    let place = String::from_utf8(scene.raw("~walcache:warm:item").await.expect("a place").to_vec()).unwrap();
    let put = async |text: &str| {
        let (): () =
            redis::cmd("SET").arg("~walcache:warm:item").arg(text).query_async(&mut scene.l2.clone()).await.unwrap();
    };
    let fast = |body: &serde_json::Value| {
        let mut body = body.clone();
        body["rate"] = 100_000.into();
        body
    };
    // The very same goes on.
    let job = warmed(&scene.daemon, fast(&body)).await;
    assert_eq!((&job["resumed"], &job["done"]), (&json!(true), &json!(1000)), "{job}");
    for (text, body) in [
        (place.clone(), json!({"entity": "item", "where": "id <= 999"})),
        (place.replace("\"500\"", "\"nonsense\""), body.clone()),
        (place.replace("[\"500\"]", "[\"500\",\"1\"]"), body.clone()),
        (place.replacen(":", ":1", 1), body.clone()),
        ("nonsense".to_owned(), body.clone()),
        ("x".repeat(100_000), body.clone()),
    ] {
        put(&text).await;
        let job = warmed(&scene.daemon, fast(&body)).await;
        let wanted = if body["where"] == "id <= 999" { 999 } else { 1000 };
        assert_eq!(
            (&job["state"], &job["resumed"], &job["done"]),
            (&json!("done"), &json!(false), &json!(wanted)),
            "{text}: {job}"
        );
    }
    // Of a generation that does not stand.
    put(&place).await;
    scene.daemon.admin().post("/v1/resync", &json!({"entity": "item"}), &[]).await.expect(200);
    let job = warmed(&scene.daemon, fast(&body)).await;
    assert_eq!((&job["resumed"], &job["filled"]), (&json!(false), &json!(1000)), "{job}");
    scene.verify().await;
}

/// What an operator had begun goes on to its own limit.
#[tokio::test]
async fn to_the_limit_of_the_walk_that_was_killed() {
    let mut scene =
        Scene::open("warm_limit", SCHEMA, |config| config.entity(item().set("warm", warm(json!({"rate": 100_000})))))
            .await;
    let body = json!({"entity": "item", "limit": 1150, "rate": 130});
    scene.daemon.admin().post("/v1/warm", &body, &[]).await.expect(200);
    come_to(&scene.daemon, 550).await;
    scene.daemon.kill().await;
    drop_leases(&scene, "item").await;
    scene.daemon = Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    let job = ended(&scene.daemon, "item", |_| true).await;
    assert_eq!(
        (&job["trigger"], &job["resumed"], &job["done"]),
        (&json!("start"), &json!(true), &json!(1150)),
        "{job}"
    );
    assert_eq!(numbers(&scene, "item").await, (1..=1150).collect::<Vec<u64>>());
}

/// A place is of no use for longer than what was warmed before it.
#[tokio::test]
async fn not_from_before_the_entries_are_over() {
    let scene = Scene::open("warm_place_ttl", SCHEMA, |config| {
        config.entity(item().set("ttl", "90s").set("warm", warm(json!({"rate": 150}))))
    })
    .await;
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item"}), &[]).await.expect(200);
    come_to(&scene.daemon, 550).await;
    scene.daemon.admin().post("/v1/warm", &json!({"entity": "item", "cancel": true}), &[]).await.expect(200);
    let left: i64 = redis::cmd("TTL").arg("~walcache:warm:item").query_async(&mut scene.l2.clone()).await.unwrap();
    assert!((60..=90).contains(&left), "{left} s");
}
