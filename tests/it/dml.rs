//! Each kind of change, for an entity that refreshes, one that invalidates and one that populates: in L2, in L1, and
//! over HTTP.

use serde_json::{Value, json};

use crate::harness::{Entity, Scene};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, n int);
     INSERT INTO items SELECT i, 'item ' || i, i * 10 FROM generate_series(1, 5) i;";

/// Three entities of one table; `pop` is named last so that the others' entries must have been read to be there.
async fn scene(name: &str) -> Scene {
    Scene::open(name, SCHEMA, |config| {
        config
            .entity(Entity::new("fresh", "public.items"))
            .entity(Entity::new("inval", "public.items").set("on_change", "invalidate"))
            .entity(Entity::new("pop", "public.items").set("populate", true))
    })
    .await
}

fn item(id: i32, name: &str, n: i32) -> Value {
    json!({"id": id, "name": name, "n": n})
}

/// Brings keys into L2 and L1 of all entities.
async fn warm(scene: &Scene, keys: &[i32]) {
    for key in keys {
        for entity in ["fresh", "inval", "pop"] {
            scene.warm(&format!("{entity}/{key}")).await;
        }
    }
}

/// Right after the change of a key that all tiers had: L2 has the new image or nothing, L1 has nothing of the old one,
/// and soon has the new one. `None`: the row is absent.
async fn changed(scene: &Scene, key: i32, wanted: Option<Value>) {
    for entity in ["fresh", "inval", "pop"] {
        let what = format!("{entity}:{key}");
        let stored = scene.stored(&what).await;
        let from = if entity == "inval" {
            assert_eq!(stored, None, "{what} was to be dropped");
            "MISS"
        } else {
            let stored = stored.unwrap_or_else(|| panic!("{what} was to be refreshed in place"));
            assert_eq!(parse(&stored.value), wanted, "{what}");
            assert_eq!(stored.lo, stored.hi, "{what} has an event's label");
            "HIT-L2"
        };
        let path = format!("{entity}/{key}");
        let first = scene.get(&path).await;
        assert_eq!(first.header("x-cache"), from, "{what}: L1 must not answer any more");
        for response in [first, scene.warm(&path).await] {
            let value = (response.status == 200).then(|| response.json());
            assert_eq!(value, wanted, "{what}: {response:?}");
            assert_eq!(response.status, if wanted.is_some() { 200 } else { 404 });
        }
    }
}

fn parse(value: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(value).unwrap();
    (!value.is_null()).then_some(value)
}

/// Nothing happened to a key that all tiers had.
async fn unchanged(scene: &Scene, key: i32, wanted: Value) {
    for entity in ["fresh", "inval", "pop"] {
        let response = scene.get(&format!("{entity}/{key}")).await;
        assert_eq!((response.header("x-cache"), response.json()), ("HIT-L1", wanted.clone()), "{entity}:{key}");
        assert_eq!(parse(&scene.stored(&format!("{entity}:{key}")).await.unwrap().value), Some(wanted.clone()));
    }
}

#[tokio::test]
async fn insert_replaces_what_is_known_of_an_absent_row() {
    let scene = scene("insert").await;
    for entity in ["fresh", "inval", "pop"] {
        let absent = scene.get(&format!("{entity}/7")).await;
        assert_eq!((absent.status.as_u16(), absent.header("x-cache")), (404, "MISS"));
        assert_eq!(absent.header("content-type"), "application/problem+json");
        assert_eq!(scene.stored(&format!("{entity}:7")).await.unwrap().value, "null", "a negative entry");
        assert_eq!(scene.warm(&format!("{entity}/7")).await.status, 404);
    }
    scene.write("INSERT INTO items VALUES (7, 'seven', 70), (8, 'eight', 80)").await;
    changed(&scene, 7, Some(item(7, "seven", 70))).await;
    // Nobody has asked for this one: only `populate` writes it.
    assert_eq!(scene.stored("fresh:8").await, None);
    assert_eq!(scene.stored("inval:8").await, None);
    assert_eq!(parse(&scene.stored("pop:8").await.unwrap().value), Some(item(8, "eight", 80)));
    assert_eq!(scene.get("pop/8").await.header("x-cache"), "HIT-L2");
    assert_eq!(scene.get("fresh/8").await.header("x-cache"), "MISS");
    scene.verify().await;
}

#[tokio::test]
async fn update_replaces_the_row() {
    let scene = scene("update").await;
    warm(&scene, &[1, 2]).await;
    scene.write("UPDATE items SET name = 'new', n = NULL WHERE id = 1").await;
    changed(&scene, 1, Some(json!({"id": 1, "name": "new", "n": null}))).await;
    unchanged(&scene, 2, item(2, "item 2", 20)).await;
    for n in 0..3 {
        scene.write(&format!("UPDATE items SET n = {n} WHERE id = 1")).await;
        changed(&scene, 1, Some(item(1, "new", n))).await;
    }
    scene.verify().await;
}

#[tokio::test]
async fn update_of_the_key_moves_the_row() {
    let scene = scene("rekey").await;
    warm(&scene, &[1, 11]).await;
    scene.write("UPDATE items SET id = 11 WHERE id = 1").await;
    changed(&scene, 1, None).await;
    changed(&scene, 11, Some(item(11, "item 1", 10))).await;
    scene.write("UPDATE items SET id = 12 WHERE id = 2").await;
    assert_eq!(parse(&scene.stored("pop:12").await.unwrap().value), Some(item(12, "item 2", 20)));
    assert_eq!(scene.stored("fresh:12").await, None);
    scene.verify().await;
}

#[tokio::test]
async fn keys_swapped_in_one_transaction() {
    let scene = scene("swap").await;
    warm(&scene, &[1, 2]).await;
    let swap = "BEGIN; UPDATE items SET id = -1 WHERE id = 1; UPDATE items SET id = 1 WHERE id = 2;
                UPDATE items SET id = 2 WHERE id = -1; COMMIT";
    scene.write(swap).await;
    changed(&scene, 1, Some(item(1, "item 2", 20))).await;
    changed(&scene, 2, Some(item(2, "item 1", 10))).await;
    assert_eq!(scene.get("pop/-1").await.status, 404);
    scene.verify().await;
}

#[tokio::test]
async fn delete_leaves_a_row_known_to_be_absent() {
    let scene = scene("delete").await;
    warm(&scene, &[1, 2]).await;
    scene.write("DELETE FROM items WHERE id = 1").await;
    changed(&scene, 1, None).await;
    unchanged(&scene, 2, item(2, "item 2", 20)).await;
    scene.write("INSERT INTO items VALUES (1, 'again', 1)").await;
    changed(&scene, 1, Some(item(1, "again", 1))).await;
    scene.verify().await;
}

#[tokio::test]
async fn truncate_empties_all_entities_of_the_table() {
    let scene = scene("truncate").await;
    warm(&scene, &[1, 2, 99]).await;
    scene.write("TRUNCATE items").await;
    for entity in ["fresh", "inval", "pop"] {
        for key in [1, 2, 99] {
            let response = scene.get(&format!("{entity}/{key}")).await;
            assert_eq!((response.status.as_u16(), response.header("x-cache")), (404, "MISS"), "{entity}:{key}");
        }
    }
    // In one transaction, and with rows after it.
    warm(&scene, &[1, 2]).await;
    scene.write("BEGIN; INSERT INTO items VALUES (1, 'gone', 0); TRUNCATE items; INSERT INTO items VALUES (2, 'b', 2); COMMIT").await;
    for entity in ["fresh", "inval", "pop"] {
        assert_eq!(scene.get(&format!("{entity}/1")).await.status, 404, "{entity}");
        assert_eq!(scene.get(&format!("{entity}/2")).await.json(), item(2, "b", 2), "{entity}");
    }
    scene.verify().await;
}

#[tokio::test]
async fn several_changes_of_one_row_in_one_transaction_show_the_last() {
    let scene = scene("several").await;
    warm(&scene, &[1, 2, 3, 9]).await;
    let sql = "BEGIN;
        UPDATE items SET n = 1 WHERE id = 1; UPDATE items SET n = 2 WHERE id = 1; UPDATE items SET name = 'x' WHERE id = 1;
        DELETE FROM items WHERE id = 2; INSERT INTO items VALUES (2, 'two', 2);
        UPDATE items SET n = 3 WHERE id = 3; DELETE FROM items WHERE id = 3;
        INSERT INTO items VALUES (9, 'nine', 9); UPDATE items SET n = 99 WHERE id = 9;
        INSERT INTO items VALUES (10, 'brief', 0); DELETE FROM items WHERE id = 10;
        COMMIT";
    scene.write(sql).await;
    changed(&scene, 1, Some(item(1, "x", 2))).await;
    changed(&scene, 2, Some(item(2, "two", 2))).await;
    changed(&scene, 3, None).await;
    changed(&scene, 9, Some(item(9, "nine", 99))).await;
    assert_eq!(scene.get("pop/10").await.status, 404);
    scene.verify().await;
}

#[tokio::test]
async fn what_is_rolled_back_never_shows() {
    let scene = scene("rollback").await;
    warm(&scene, &[1, 2, 3]).await;
    let before = scene.raw("fresh:1").await;
    scene
        .write("BEGIN; UPDATE items SET n = -1 WHERE id = 1; DELETE FROM items WHERE id = 2; TRUNCATE items; ROLLBACK")
        .await;
    assert_eq!(scene.raw("fresh:1").await, before, "not a byte was touched");
    for key in [1, 2, 3] {
        unchanged(&scene, key, item(key, &format!("item {key}"), key * 10)).await;
    }
    let sql = "BEGIN; UPDATE items SET name = 'kept' WHERE id = 1;
        SAVEPOINT s; UPDATE items SET name = 'lost' WHERE id = 1; DELETE FROM items WHERE id = 2; ROLLBACK TO s;
        SAVEPOINT t; UPDATE items SET n = 31 WHERE id = 3; RELEASE t; COMMIT";
    scene.write(sql).await;
    changed(&scene, 1, Some(item(1, "kept", 10))).await;
    unchanged(&scene, 2, item(2, "item 2", 20)).await;
    changed(&scene, 3, Some(item(3, "item 3", 31))).await;
    scene.verify().await;
}

/// A transaction that is applied in pieces, each key in several of them.
#[tokio::test]
async fn a_transaction_in_pieces_ends_as_it_was_committed() {
    let scene = Scene::open("pieces", SCHEMA, |config| {
        config
            .set("apply", "max_transaction_bytes", "1KiB")
            .set("apply", "max_batch_bytes", "1KiB")
            .entity(Entity::new("fresh", "public.items"))
            .entity(Entity::new("inval", "public.items").set("on_change", "invalidate"))
            .entity(Entity::new("pop", "public.items").set("populate", true))
    })
    .await;
    warm(&scene, &[1, 2, 3, 4, 5, 6]).await;
    let mut sql = "BEGIN; INSERT INTO items VALUES (6, 'six', 60);".to_owned();
    for n in 0..50 {
        sql += &format!("UPDATE items SET n = {n} WHERE id <> 5; INSERT INTO items VALUES (100 + {n}, 'row', {n});");
    }
    sql += "DELETE FROM items WHERE id IN (2, 101); UPDATE items SET id = 7 WHERE id = 3; COMMIT";
    scene.write(&sql).await;
    for (key, name) in [(1, "item 1"), (4, "item 4"), (6, "six"), (7, "item 3")] {
        for entity in ["fresh", "inval", "pop"] {
            assert_eq!(scene.get(&format!("{entity}/{key}")).await.json(), item(key, name, 49), "{entity}:{key}");
        }
    }
    for key in [2, 3, 101] {
        assert_eq!(scene.get(&format!("pop/{key}")).await.status, 404);
    }
    unchanged(&scene, 5, item(5, "item 5", 50)).await;
    scene.verify().await;
}

/// Entities may show some columns only, and share a table and a change.
#[tokio::test]
async fn an_entity_of_some_columns_shows_no_others() {
    let scene = Scene::open("columns", SCHEMA, |config| {
        let columns = vec![toml::Value::from("n"), toml::Value::from("id")];
        config.entity(Entity::new("part", "public.items").set("columns", columns))
    })
    .await;
    assert_eq!(scene.get("part/1").await.text(), r#"{"n":10,"id":1}"#);
    scene.write("UPDATE items SET n = 11, name = 'hidden' WHERE id = 1").await;
    let response = scene.get("part/1").await;
    assert_eq!((response.text().as_str(), response.header("x-cache")), (r#"{"n":11,"id":1}"#, "HIT-L2"));
    scene.verify().await;
}

/// Columns may be named as anything in the statement that reads rows.
#[tokio::test]
async fn columns_named_as_what_is_read_with() {
    let schema = "CREATE TYPE pair AS (a int, b text);
        CREATE TABLE odd (id int PRIMARY KEY, v pair, k int, k0 int, ord int, t pair, value text, hi int, walcache_row pair);
        INSERT INTO odd VALUES (1, (1, 'x'), 2, 3, 4, (5, 'y'), 'six', 7, (8, 'z'));
        CREATE TABLE part (id int PRIMARY KEY, v pair, x int); INSERT INTO part VALUES (1, (1, 'hidden'), 7);";
    let scene = Scene::open("dml_odd", schema, |config| {
        let part = Entity::new("part", "part").set("columns", vec![toml::Value::from("id"), toml::Value::from("x")]);
        config.entity(Entity::new("odd", "odd")).entity(part)
    })
    .await;
    let of = |n: i32| {
        json!({"id": 1, "v": {"a": 1, "b": "x"}, "k": n, "k0": 3, "ord": 4, "t": {"a": 5, "b": "y"}, "value": "six",
            "hi": 7, "walcache_row": {"a": 8, "b": "z"}})
    };
    assert_eq!(scene.warm("odd/1").await.json(), of(2));
    assert_eq!(scene.warm("part/1").await.json(), json!({"id": 1, "x": 7}));
    scene.write("UPDATE odd SET k = 3; UPDATE part SET x = 8").await;
    assert_eq!(scene.warm("odd/1").await.json(), of(3));
    assert_eq!(scene.warm("part/1").await.json(), json!({"id": 1, "x": 8}));
    scene.verify().await;
}
