//! Parts of values: `?fields=`, and `"fields"` of a batch.

use serde_json::json;

use crate::harness::{Entity, Scene, eventually};

const SCHEMA: &str = r#"CREATE TABLE items (id int PRIMARY KEY, "né,w+" text, n int NOT NULL, doc jsonb);
    INSERT INTO items VALUES (1, 'a "b"', 10, '{"id": [1, {"n": 2}]}'), (2, null, 20, null)"#;

#[tokio::test]
async fn parts_of_an_entry_come_from_the_one_entry() {
    let scene = Scene::open("parts", SCHEMA, |config| {
        config
            .entity(Entity::new("item", "public.items"))
            .entity(Entity::new("few", "public.items").set("columns", vec!["id", "n"]))
    })
    .await;
    let miss = scene.get("item/1?fields=doc,id").await.expect(200);
    assert_eq!((miss.header("x-cache"), miss.text().as_str()), ("MISS", r#"{"id":1,"doc":{"id": [1, {"n": 2}]}}"#));
    // What is cached is the whole entry.
    let stored = scene.stored("item:1").await.unwrap().value;
    assert_eq!(scene.keys("item").await, ["1"]);
    scene.warm("item/1").await;
    let hit = scene.get("item/1?fields=n").await.expect(200);
    assert_eq!((hit.header("x-cache"), hit.text().as_str()), ("HIT-L1", r#"{"n":10}"#));
    let whole = scene.get("item/1").await.expect(200);
    assert_eq!(whole.text(), stored);
    assert_ne!(whole.header("etag"), hit.header("etag"));
    // A change of another member leaves the tag of the part as it was.
    let n = hit.header("etag").to_owned();
    scene.write("UPDATE items SET doc = '[]' WHERE id = 1").await;
    let same = scene.http.get_with("/v1/item/1?fields=n", &[("if-none-match", &n)]).await.expect(304);
    assert_eq!((same.header("x-cache"), same.header("etag")), ("HIT-L2", n.as_str()));
    let head = scene.http.head("/v1/item/1?fields=n", &[]).await.expect(200);
    assert_eq!((head.header("etag"), head.header("content-length")), (n.as_str(), "8"));
    assert_ne!(scene.get("item/1").await.header("etag"), whole.header("etag"));
    scene.write("UPDATE items SET n = 11 WHERE id = 1").await;
    let changed = scene.http.get_with("/v1/item/1?fields=n", &[("if-none-match", &n)]).await.expect(200);
    assert_eq!(changed.text(), r#"{"n":11}"#);
    let fresh = scene.http.get_with("/v1/item/1?fields=n", &[("cache-control", "no-cache")]).await.expect(200);
    assert_eq!((fresh.header("x-cache"), fresh.text().as_str()), ("BYPASS", r#"{"n":11}"#));

    // A name with a comma can be said in a batch only.
    let unknown = scene.get("item/1?fields=n%C3%A9,w%2B").await.expect(400);
    assert_eq!(unknown.json()["type"], "urn:walcache:problem:unknown-field");
    assert_eq!(unknown.json()["detail"], "item has no field \"né\"; it has: id, né,w+, n, doc");
    let body = json!({"keys": [2, 1, 3], "fields": ["né,w+", "id"]});
    let items = scene.http.post("/v1/item/batch", &body, &[]).await.expect(200).json()["items"].clone();
    assert_eq!(items[0]["value"], json!({"id": 2, "né,w+": null}));
    assert_eq!(items[1]["value"], json!({"id": 1, "né,w+": "a \"b\""}));
    assert_eq!(items[2]["status"], 404);
    let refused = scene.http.post("/v1/few/batch?fields=id", &json!({"keys": [1]}), &[]).await.expect(400);
    assert_eq!(refused.json()["type"], "urn:walcache:problem:unknown-parameter", "{}", refused.text());
    let unknown = scene.http.post("/v1/few/batch", &json!({"keys": [1], "fields": ["doc"]}), &[]).await.expect(400);
    assert_eq!(unknown.json()["detail"], "few has no field \"doc\"; it has: id, n");
    scene.verify().await;
}

/// Fields are those that the table has now.
#[tokio::test]
async fn fields_follow_the_tables_shape() {
    let scene = Scene::open("parts_ddl", SCHEMA, |config| config.entity(Entity::new("item", "public.items"))).await;
    scene.get("item/1?fields=later").await.expect(400);
    scene.write("ALTER TABLE items ADD later int DEFAULT 7; ALTER TABLE items DROP doc").await;
    eventually("know the new column", || async {
        let part = scene.get("item/1?fields=later").await;
        if part.text() == r#"{"later":7}"# { Ok(()) } else { Err(part.text()) }
    })
    .await;
    scene.get("item/1?fields=doc").await.expect(400);
}
