//! Partitions that come, go, are emptied and exchange rows.

use super::{BOTH, BOUND, Noticed, bypassed, stands};
use crate::harness::{Entity, Scene, eventually_within, needs_publications};

/// Rows 1 to 9 in the first partition, 10 to 19 in the second; a table for 20 to 29 with its columns in another order.
const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);
    CREATE TABLE items_0 PARTITION OF items FOR VALUES FROM (0) TO (10);
    CREATE TABLE items_1 PARTITION OF items FOR VALUES FROM (10) TO (20);
    CREATE TABLE items_2 (name text, gone int, id int PRIMARY KEY);
    ALTER TABLE items_2 DROP COLUMN gone;
    INSERT INTO items SELECT n, 'name ' || n FROM generate_series(1, 19) n;
    INSERT INTO items_2 SELECT 'name ' || n, n FROM generate_series(20, 29) n;";

async fn scene(name: &str, noticed: Noticed) -> Scene {
    noticed.scene(name, SCHEMA, |config| config.entity(Entity::new("item", "items"))).await
}

#[tokio::test]
async fn partitions_are_attached_detached_and_dropped() {
    for noticed in BOTH {
        let scene = scene("ddl_parts", noticed).await;
        let there = |r: &crate::harness::Response| r.status == 200;
        let absent = |r: &crate::harness::Response| r.status == 404;
        scene.get("item/25").await.expect(404);
        scene.warm("item/25").await;
        let attach = "ALTER TABLE items ATTACH PARTITION items_2 FOR VALUES FROM (20) TO (30)";
        noticed.change(&scene, attach, "item/25", there).await;
        scene.write("UPDATE items SET name = 'changed' WHERE id IN (5, 15, 25); UPDATE items_2 SET name = 'x' WHERE id = 26").await;
        scene.verify().await;
        // Rows that move: to another partition, back, and to where no partition was.
        scene.write("UPDATE items SET id = 0 WHERE id = 25; UPDATE items SET id = 25 WHERE id = 15; UPDATE items SET id = 15 WHERE id = 1").await;
        scene.verify().await;
        scene.warm("item/25").await;
        noticed.change(&scene, "ALTER TABLE items DETACH PARTITION items_2", "item/25", absent).await;
        // Not the entity's any more.
        scene.write("UPDATE items_2 SET name = 'no matter'").await;
        scene.verify().await;
        noticed.change(&scene, attach, "item/25", there).await;
        scene.warm("item/26").await;
        scene.warm("item/16").await;
        noticed.change(&scene, "ALTER TABLE items DETACH PARTITION items_2 CONCURRENTLY", "item/26", absent).await;
        scene.verify().await;
        scene.warm("item/16").await;
        noticed.change(&scene, "DROP TABLE items_1", "item/16", absent).await;
        let made = "CREATE TABLE items_1 PARTITION OF items DEFAULT; INSERT INTO items VALUES (16, 'again')";
        noticed.change(&scene, made, "item/16", there).await;
        scene.write("UPDATE items SET name = 'still there' WHERE id IN (3, 16)").await;
        scene.verify().await;
        assert_eq!(super::entity(&scene, "item").await["state"], "cached");
    }
}

/// The stream does not tell of a TRUNCATE that names a partition whose changes come under its root's name, and no event
/// trigger fires: only the catalog shows it.
#[tokio::test]
async fn a_partition_that_is_truncated() {
    let scene = scene("ddl_part_truncate", Noticed::Polled).await;
    scene.write("ALTER TABLE items ATTACH PARTITION items_2 FOR VALUES FROM (20) TO (30)").await;
    for (truncate, gone, left) in
        [("TRUNCATE items_0", "item/5", "item/15"), ("TRUNCATE items_1, items_2", "item/25", "item/0")]
    {
        scene.write("INSERT INTO items VALUES (0, 'zero') ON CONFLICT DO NOTHING").await;
        scene.warm(gone).await;
        scene.warm(left).await;
        Noticed::Polled.change(&scene, truncate, gone, |r| r.status == 404).await;
        scene.verify().await;
    }
    scene.write("INSERT INTO items VALUES (5, 'again'), (15, 'again')").await;
    scene.verify().await;
    scene.warm("item/5").await;
    scene.write("TRUNCATE items").await;
    scene.get("item/5").await.expect(404);
    scene.verify().await;
}

#[tokio::test]
async fn a_publication_that_names_partitions_instead_of_their_root() {
    if needs_publications("ddl::partitions::a_publication_that_names_partitions_instead_of_their_root") {
        return;
    }
    for noticed in BOTH {
        let scene = scene("ddl_via_root", noticed).await;
        scene.warm("item/1").await;
        let set = |on: bool| format!("ALTER PUBLICATION {} SET (publish_via_partition_root = {on})", scene.stage.name);
        noticed.change(&scene, &set(false), "item/1", |r| bypassed(r, "name 1")).await;
        stands(&scene, "item", "uncached", "publication_via_root").await;
        for name in ["a", "b"] {
            scene.write(&format!("UPDATE items SET name = '{name}' WHERE id = 1")).await;
            let response = scene.get("item/1").await;
            assert!(bypassed(&response, name), "{response:?}");
        }
        noticed.change(&scene, &set(true), "item/1", |r| r.header("x-cache") != "BYPASS").await;
        stands(&scene, "item", "cached", "").await;
        scene.write("UPDATE items SET name = 'c' WHERE id < 15; DELETE FROM items WHERE id = 2").await;
        scene.verify().await;
    }
}

/// A partition whose detachment waits for a reader is not read any more, and its rows are not served.
#[tokio::test]
async fn a_partition_whose_detachment_is_pending() {
    let scene = scene("ddl_pending", Noticed::Polled).await;
    scene.warm("item/15").await;
    let reader = scene.stage.sql().await;
    reader.batch_execute("BEGIN; SELECT * FROM items").await.unwrap();
    let detaching = scene.stage.sql().await;
    let detach = tokio::spawn(async move {
        detaching.batch_execute("ALTER TABLE items DETACH PARTITION items_1 CONCURRENTLY").await.unwrap();
    });
    eventually_within(BOUND, "notice that rows are on their way out", || async {
        let response = scene.get("item/15").await;
        if response.status == 404 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    assert!(!detach.is_finished());
    scene.verify().await;
    reader.batch_execute("COMMIT").await.unwrap();
    detach.await.unwrap();
    scene.verify().await;
}

/// Whoever alters a partition locks it, for as long as that takes. No look at the catalog waits for that.
#[tokio::test]
async fn looks_wait_for_nobodys_lock() {
    let scene = scene("ddl_locked", Noticed::Announced).await;
    scene.warm("item/15").await;
    let altering = scene.stage.sql().await;
    altering.batch_execute("BEGIN; ALTER TABLE items_0 ALTER name SET STATISTICS 10").await.unwrap();
    altering.batch_execute("LOCK TABLE items_0 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let alter = "ALTER TABLE items_2 RENAME TO items_two; ALTER TABLE items_1 ADD CHECK (id > 0); \
                  ALTER TABLE items_1 REPLICA IDENTITY NOTHING";
    // Reads that need Postgres do wait for it.
    scene.write(alter).await;
    assert_eq!(super::entity(&scene, "item").await["state"], "uncached");
    stands(&scene, "item", "uncached", "replica_identity").await;
    altering.batch_execute("COMMIT").await.unwrap();
    let mend = "ALTER TABLE items_1 REPLICA IDENTITY DEFAULT";
    Noticed::Announced.change(&scene, mend, "item/15", |r| r.header("x-cache") != "BYPASS").await;
    scene.verify().await;
}
