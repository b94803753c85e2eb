//! Resync: what is cached of an entity, or of all, becomes unservable at once.

use serde_json::{Value, json};

use crate::harness::{Daemon, Entity, Scene, cli, eventually};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
    CREATE TABLE notes (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO items VALUES (1, 1), (2, 2);
    INSERT INTO notes VALUES (1, 1)";

async fn open(name: &str) -> Scene {
    Scene::open(name, SCHEMA, |config| {
        config.entity(Entity::new("item", "public.items")).entity(Entity::new("note", "public.notes"))
    })
    .await
}

async fn came_from(scene: &Scene, path: &str) -> String {
    scene.get(path).await.expect(200).header("x-cache").to_owned()
}

#[tokio::test]
async fn one_entity_or_all() {
    let scene = open("resync").await;
    let admin = ["--admin", scene.daemon.admin_address()];
    for path in ["item/1", "item/2", "note/1"] {
        scene.warm(path).await;
    }
    let before = (scene.daemon.generation_of("item").await, scene.daemon.generation_of("note").await);
    let done = cli(&scene.config, &[&["resync", "item"], &admin[..]].concat(), &[]).await;
    assert!(done.status.success(), "{done:?}");
    let after = scene.daemon.generation_of("item").await;
    assert!(after > before.0 && scene.daemon.generation_of("note").await == before.1);
    assert!(done.stdout.contains(&format!("item: generation {after} begins")), "{done:?}");
    assert!(done.stdout.contains("reads fill from Postgres"), "{done:?}");
    // In Redis the entry still stands, and is as good as none.
    assert!(scene.stored("item:1").await.is_some());
    assert_eq!(came_from(&scene, "item/1").await, "MISS");
    assert_eq!(came_from(&scene, "note/1").await, "HIT-L1");
    scene.warm("item/1").await;

    let done = cli(&scene.config, &[&["resync", "--json"], &admin[..]].concat(), &[]).await;
    assert!(done.status.success(), "{done:?}");
    let json: Value = serde_json::from_str(&done.stdout).unwrap();
    let raised = json["generation"].as_u64().unwrap();
    assert!(raised > after && json["entity"].is_null(), "{json}");
    assert_eq!((scene.daemon.generation_of("item").await, scene.daemon.generation_of("note").await), (raised, raised));
    for path in ["item/1", "note/1"] {
        assert_eq!(came_from(&scene, path).await, "MISS", "{path}");
    }
    let unknown = cli(&scene.config, &[&["resync", "itme"], &admin[..]].concat(), &[]).await;
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(unknown.stderr.contains("configured: item, note"), "{unknown:?}");
    assert_eq!(scene.daemon.generation_of("item").await, raised);
    scene.write("UPDATE items SET n = 3").await;
    scene.verify().await;
}

#[tokio::test]
async fn only_by_the_one_that_leads() {
    let scene = open("resync_follower").await;
    scene.warm("item/1").await;
    let second = Daemon::start(&scene.config).await;
    eventually("find the slot held", || async {
        if second.log().contains("another consumer holds the slot") { Ok(()) } else { Err("not yet") }
    })
    .await;
    let refused = second.admin().post("/v1/resync", &json!({}), &[]).await.expect(503);
    assert_eq!(refused.json()["type"], "urn:walcache:problem:not-leading");
    refused.header("retry-after");
    second.admin().post("/v1/verify", &json!({ "entity": "item" }), &[]).await.expect(503);
    for verb in ["resync", "verify"] {
        let refused = cli(&scene.config, &[verb, "--admin", second.admin_address()], &[]).await;
        assert_eq!(refused.status.code(), Some(69), "{refused:?}");
        assert!(refused.stderr.contains("mend: try again"), "{refused:?}");
    }
    let explained = second.admin().get("/v1/explain/item/1").await.expect(200).json();
    assert!(explained["verdict"].as_str().unwrap().contains("has not caught up"), "{explained}");
    assert_eq!(came_from(&scene, "item/1").await, "HIT-L1", "nothing was voided");
}
