//! `walcache tap`: what is applied, and what it does to entries.

use serde_json::Value;

use crate::harness::{Entity, Finished, Scene, cli};

async fn scene(name: &str) -> Scene {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, n int); CREATE TABLE notes (id int PRIMARY KEY, t text);
                  INSERT INTO items VALUES (1, 0), (2, 0); INSERT INTO notes VALUES (1, 'a')";
    Scene::open(name, schema, |config| {
        config.entity(Entity::new("item", "items")).entity(Entity::new("note", "notes").set("on_change", "invalidate"))
    })
    .await
}

/// Writes again and again while somebody watches: nobody knows when watching begins.
async fn watched(scene: &Scene, arguments: &[&str], sql: &str) -> Finished {
    let target = format!("http://{}", scene.daemon.admin_address());
    let arguments = [&["tap", "--admin", &target], arguments].concat();
    let tap = cli(&scene.config, &arguments, &[]);
    tokio::pin!(tap);
    loop {
        tokio::select! {
            done = &mut tap => return done,
            _ = scene.write(sql) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_shown_with_their_effects() {
    let scene = scene("tap").await;
    let sql = "BEGIN; UPDATE items SET n = n + 1 WHERE id = 1; DELETE FROM notes WHERE id = 9;
               INSERT INTO notes VALUES (9, 'secret'); COMMIT; DELETE FROM notes WHERE id = 9";
    let done = watched(&scene, &["--json", "--count", "20"], sql).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let events: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 20);
    let put = serde_json::json!([{ "entity": "item", "key": "1", "effect": "put", "cause": null }]);
    let update = events.iter().find(|event| event["op"] == "update").unwrap();
    assert_eq!((&update["tables"][0], &update["effects"]), (&Value::from("public.items"), &put));
    let drop = serde_json::json!([{ "entity": "note", "key": "9", "effect": "drop", "cause": "delete" }]);
    assert!(events.iter().any(|event| event["op"] == "delete" && event["effects"] == drop), "{events:?}");
    // Of the same transaction, in order, each once.
    let insert = events.iter().position(|event| event["op"] == "insert").unwrap();
    if insert > 0 {
        assert_eq!(events[insert - 1]["xid"], events[insert]["xid"]);
    }
    let lsns: Vec<walcache::lsn::Lsn> = events.iter().map(|e| e["lsn"].as_str().unwrap().parse().unwrap()).collect();
    assert!(lsns.is_sorted(), "{lsns:?}");
    assert!(!done.stdout.contains("secret"), "values are not shown: {}", done.stdout);

    let done = watched(&scene, &["note", "--count", "3"], sql).await;
    assert!(done.stdout.lines().all(|line| line.contains(" public.notes -> drop note:9 (")), "{done:?}");
    let done = watched(&scene, &["--count", "1"], "TRUNCATE items, notes; INSERT INTO items VALUES (1, 0)").await;
    assert!(done.stdout.contains("-> "), "{done:?}");
}

#[tokio::test]
async fn who_asks_wrongly_is_told() {
    let scene = scene("tap_wrong").await;
    let admin = scene.daemon.admin();
    for (query, said) in
        [("?entity=nothing", "there is no entity"), ("?from=x", "from must be"), ("?wat=1", "are entity and from")]
    {
        let response = admin.get(&format!("/v1/tap{query}")).await;
        assert!((response.status == 400 || response.status == 404) && response.text().contains(said), "{response:?}");
    }
    let target = format!("http://{}", scene.daemon.admin_address());
    let done = cli(&scene.config, &["tap", "nothing", "--admin", &target], &[]).await;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
}
