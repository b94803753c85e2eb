//! Fault 9: out-of-line (TOAST) values that an update leaves alone are not in the stream. They are never null and never
//! older ones: they are those of the image before, where that is known, and else the entry is dropped.

use serde_json::Value;

use crate::harness::{Daemon, Entity, Scene, current_lsn};

/// Random text of this length: it cannot be compressed, so it is stored out of line.
const NOISE: &str = "CREATE FUNCTION noise(seed int, length int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
        SELECT substr(string_agg(md5(seed || '/' || i), ''), 1, length) FROM generate_series(1, length / 32 + 1) i $$;";

const SCHEMA: &str = "CREATE TABLE docs (id int PRIMARY KEY, n int, body text, raw json, tags text[]);
    INSERT INTO docs SELECT i, 0, noise(i, 5000) || E'\\n\\\\\"}', format('  {\"b\" : 1.0, \"a\":\"%s\"} ', noise(-i, 5000))::json,
                            ARRAY[noise(i, 3000), NULL, '\"{}'] FROM generate_series(1, 9) i;";

async fn scene(name: &str) -> Scene {
    Scene::open(name, &format!("{NOISE}{SCHEMA}"), |config| {
        config
            .entity(Entity::new("doc", "docs"))
            .entity(Entity::new("pop", "docs").set("populate", true))
            .entity(Entity::new("inval", "docs").set("on_change", "invalidate"))
    })
    .await
}

/// The update's values really are left out of the stream: else these tests would show nothing.
async fn is_out_of_line(scene: &Scene) {
    let row = scene.sql.query_one(
        "SELECT pg_column_size(body), reltoastrelid <> 0 FROM docs, pg_class WHERE relname = 'docs' AND id = 1",
        &[],
    );
    let row = row.await.unwrap();
    assert!(row.get::<_, i32>(0) > 3000 && row.get::<_, bool>(1), "{row:?}");
}

async fn merged(scene: &Scene, key: i32, n: i32) {
    for entity in ["doc", "pop"] {
        let what = format!("{entity}:{key}");
        let entry = scene.stored(&what).await.unwrap_or_else(|| panic!("{what} was dropped"));
        assert_eq!(serde_json::from_str::<Value>(&entry.value).unwrap()["n"], n, "{what}: {entry:?}");
        assert_eq!(entry.lo, entry.hi, "{what} has an event's label");
        let response = scene.get(&format!("{entity}/{key}")).await.expect(200);
        assert_eq!((response.header("x-cache"), response.text()), ("HIT-L2", entry.value), "{what}");
    }
    assert_eq!(scene.stored(&format!("inval:{key}")).await, None);
}

/// 9: from an entry that a fill has made, and from one that an event has made; byte for byte.
#[tokio::test]
async fn an_entry_keeps_the_values_that_an_update_leaves_alone() {
    let scene = scene("toast").await;
    is_out_of_line(&scene).await;
    for key in [1, 2] {
        for entity in ["doc", "pop", "inval"] {
            scene.warm(&format!("{entity}/{key}")).await;
        }
    }
    for n in 1..4 {
        scene.write(&format!("UPDATE docs SET n = {n} WHERE id IN (1, 2)")).await;
        merged(&scene, 1, n).await;
        merged(&scene, 2, n).await;
    }
    // One of them changes, the others do not; then none.
    scene.write("UPDATE docs SET body = noise(77, 6000), n = 4 WHERE id = 1").await;
    merged(&scene, 1, 4).await;
    scene.write("UPDATE docs SET n = 5, raw = NULL WHERE id = 1").await;
    merged(&scene, 1, 5).await;
    scene.write("UPDATE docs SET n = 6 WHERE id = 1").await;
    merged(&scene, 1, 6).await;
    assert_eq!(
        scene.metric("walcache_cache_invalidations_total{entity=\"pop\",cause=\"toast\"}").await.unwrap_or(0.0),
        0.0
    );
    // What nobody has read is not there to be merged with.
    scene.write("UPDATE docs SET n = 1 WHERE id = 3").await;
    assert_eq!(scene.stored("pop:3").await, None);
    scene.verify().await;
}

/// 9: what the same transaction, or another one of the same batch, has written before.
#[tokio::test]
async fn changes_of_one_batch_are_merged_with_each_other() {
    let scene = scene("toast_batch").await;
    for key in [1, 2, 4, 20] {
        scene.warm(&format!("pop/{key}")).await;
        scene.warm(&format!("doc/{key}")).await;
    }
    let sql = "BEGIN;
        UPDATE docs SET body = noise(101, 5000) WHERE id = 1; UPDATE docs SET n = 1 WHERE id = 1;
        UPDATE docs SET n = 1 WHERE id = 2; UPDATE docs SET raw = '[1]' WHERE id = 2; UPDATE docs SET n = 2 WHERE id = 2;
        INSERT INTO docs VALUES (20, 0, noise(20, 5000), 'null', NULL); UPDATE docs SET n = 20 WHERE id = 20;
        INSERT INTO docs VALUES (21, 0, noise(21, 5000), 'null', NULL); UPDATE docs SET n = 21 WHERE id = 21;
        DELETE FROM docs WHERE id = 4; INSERT INTO docs VALUES (4, 0, noise(4, 9000), '4', '{}');
        UPDATE docs SET n = 4 WHERE id = 4;
        SAVEPOINT s; UPDATE docs SET body = 'lost', n = -1 WHERE id = 1; ROLLBACK TO s;
        UPDATE docs SET tags = NULL WHERE id = 1;
        COMMIT";
    scene.write(sql).await;
    merged(&scene, 1, 1).await;
    merged(&scene, 2, 2).await;
    merged(&scene, 20, 20).await;
    merged(&scene, 4, 4).await;
    assert!(scene.stored("pop:21").await.unwrap().value.contains("\"n\":21"));
    assert!(scene.stored("doc:21").await.is_none());
    scene.verify().await;
    // Each a transaction; several are applied together while the daemon is held up.
    scene.daemon.pause().await;
    for n in 30..60 {
        let sql =
            format!("UPDATE docs SET n = {n} WHERE id IN (1, 2); UPDATE docs SET body = noise({n}, 4000) WHERE id = 2");
        scene.sql.batch_execute(&sql).await.unwrap();
    }
    scene.daemon.resume();
    scene.applied().await;
    merged(&scene, 1, 59).await;
    merged(&scene, 2, 59).await;
    scene.verify().await;
}

/// 8, 9: under a new key nothing that stood there says what the row has; also where keys are swapped.
#[tokio::test]
async fn a_row_that_moves_takes_no_values_of_what_stood_at_its_new_key() {
    let scene = scene("toast_rekey").await;
    for key in 1..9 {
        scene.warm(&format!("pop/{key}")).await;
    }
    scene.warm("pop/40").await;
    scene.write("UPDATE docs SET id = 40, n = 1 WHERE id = 1").await;
    assert_eq!(scene.stored("pop:1").await.unwrap().value, "null");
    assert_eq!(scene.stored("pop:40").await, None, "dropped: the absent row's entry has no values");
    let swap = "BEGIN; UPDATE docs SET id = -2 WHERE id = 2; UPDATE docs SET id = 2 WHERE id = 3;
        UPDATE docs SET id = 3 WHERE id = -2; UPDATE docs SET n = 7 WHERE id IN (2, 3); COMMIT";
    scene.write(swap).await;
    scene.verify().await;
    // A chain, the rows updated on their way.
    let chain = "BEGIN; UPDATE docs SET id = 50 WHERE id = 6; UPDATE docs SET id = 6, n = 5 WHERE id = 5;
        UPDATE docs SET id = 5 WHERE id = 4; UPDATE docs SET n = n + 1 WHERE id IN (5, 6, 50); COMMIT";
    scene.write(chain).await;
    scene.verify().await;
    scene.write("UPDATE docs SET n = n + 1").await;
    scene.verify().await;
}

/// 9, 12: in a transaction that is applied in pieces, each row in several of them.
#[tokio::test]
async fn pieces_of_a_transaction_are_merged_in_order() {
    let scene = Scene::open("toast_pieces", &format!("{NOISE}{SCHEMA}"), |config| {
        config
            .set("apply", "max_transaction_bytes", "1KiB")
            .set("apply", "max_batch_bytes", "1KiB")
            .entity(Entity::new("doc", "docs"))
            .entity(Entity::new("pop", "docs").set("populate", true))
            .entity(Entity::new("inval", "docs").set("on_change", "invalidate"))
    })
    .await;
    for key in [1, 2] {
        scene.warm(&format!("pop/{key}")).await;
        scene.warm(&format!("doc/{key}")).await;
    }
    let mut sql = "BEGIN;".to_owned();
    for n in 0..30 {
        sql += &format!(
            "UPDATE docs SET n = {n} WHERE id IN (1, 2); UPDATE docs SET body = noise({n}, 4000) WHERE id = 2;"
        );
    }
    scene.write(&(sql + "COMMIT")).await;
    merged(&scene, 1, 29).await;
    merged(&scene, 2, 29).await;
    scene.verify().await;
}

/// 1, 9: what comes again after a crash meets entries that contain it, and never brings older values.
#[tokio::test]
async fn a_replay_merges_nothing_twice() {
    let scene = scene("toast_replay").await;
    for key in 1..6 {
        scene.warm(&format!("pop/{key}")).await;
    }
    for n in 1..20 {
        let key = n % 5 + 1;
        let sql = format!(
            "UPDATE docs SET n = {n} WHERE id = {key}; UPDATE docs SET body = noise({n}, 4000) WHERE id = {key} % 5 + 1"
        );
        scene.sql.batch_execute(&sql).await.unwrap();
    }
    scene.applied().await;
    // Before the confirmed position is certain to have been noted: what was applied comes again.
    scene.daemon.kill().await;
    let again = Daemon::start(&scene.config).await;
    again.wait_ready().await;
    scene.sql.batch_execute("UPDATE docs SET n = 100 WHERE id < 3").await.unwrap();
    again.wait_applied(current_lsn(&scene.sql).await).await;
    let scene = Scene { http: again.http(), daemon: again, ..scene };
    scene.verify().await;
}

/// 9: a key that is itself out of line, and values beside it.
#[tokio::test]
async fn keys_that_are_out_of_line() {
    let schema = format!(
        "{NOISE} CREATE TABLE files (path text PRIMARY KEY, n int, body text);
        INSERT INTO files SELECT noise(i, 2500), 0, noise(-i, 4000) FROM generate_series(1, 3) i;
        CREATE TABLE whole (path text PRIMARY KEY, n int, body text); ALTER TABLE whole REPLICA IDENTITY FULL;
        INSERT INTO whole SELECT noise(i, 2500), 0, noise(-i, 4000) FROM generate_series(1, 3) i;"
    );
    let scene = Scene::open("toast_keys", &schema, |config| {
        config.entity(Entity::new("file", "files")).entity(Entity::new("whole", "whole"))
    })
    .await;
    scene.verify().await;
    let keys = scene.keys("file").await;
    assert_eq!(keys.len(), 3);
    for n in 1..3 {
        scene.write(&format!("UPDATE files SET n = {n}; UPDATE whole SET n = {n}")).await;
        for key in &keys {
            for entity in ["file", "whole"] {
                let entry = scene.stored(&format!("{entity}:{key}")).await.expect("merged");
                assert!(entry.value.contains(&format!("\"n\":{n},")), "{entry:?}");
            }
        }
    }
    scene.write("UPDATE files SET path = 'short' WHERE path = noise(1, 2500); DELETE FROM files WHERE path = noise(2, 2500)").await;
    scene.write("UPDATE whole SET path = 'short' WHERE path = noise(1, 2500); DELETE FROM whole WHERE path = noise(2, 2500)").await;
    // The whole old row is there: also what it has out of line.
    assert!(scene.stored(&format!("whole:{}", keys[0])).await.is_some());
    scene.verify().await;
}

/// 9: whatever stands in L2 that is no entry of this row's image before, nothing is taken from it.
#[tokio::test]
async fn nothing_is_merged_with_what_is_not_the_image_before() {
    let scene = scene("toast_foreign").await;
    let mut l2 = scene.l2.clone();
    let mut set = async |key: &str, text: &str| {
        redis::cmd("SET").arg(key).arg(text).exec_async(&mut l2).await.unwrap();
    };
    let value = scene.get("doc/1").await.text();
    let whole = String::from_utf8(scene.raw("doc:1").await.unwrap().to_vec()).unwrap();
    // Of the future, of another generation, of other columns, no entry at all.
    let (lo, generation) = ("0".repeat(16), "0".repeat(16));
    set("doc:2", &format!("{}{lo}{}{}{}", &whole[..7], &whole[23..31], "F".repeat(16), &whole[47..])).await;
    set("doc:3", &format!("{}{generation}{}", &whole[..54], &whole[70..])).await;
    set("doc:4", &whole.replacen("\"n\"", "\"m\"", 1)).await;
    set("doc:5", "{\"lease\":\"0\"}").await;
    redis::cmd("RPUSH").arg("doc:6").arg("x").exec_async(&mut scene.l2.clone()).await.unwrap();
    scene.write("UPDATE docs SET n = 9 WHERE id BETWEEN 1 AND 6").await;
    assert_eq!(scene.stored("doc:1").await.unwrap().value, value.replacen("\"n\":0", "\"n\":9", 1));
    for key in 2..7 {
        assert_eq!(scene.raw(&format!("doc:{key}")).await, None, "doc:{key}");
    }
    scene.verify().await;
}
