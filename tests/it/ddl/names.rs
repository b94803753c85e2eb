//! Tables and schemas that are renamed, moved, swapped, dropped and made again.

use super::{BOTH, Noticed, refused, stands};
use crate::harness::{Entity, Scene, Stage, eventually_within, needs_publications};

const SCHEMA: &str = "CREATE SCHEMA shop; CREATE SCHEMA spare;
    CREATE TABLE shop.items (id int PRIMARY KEY, name text);
    CREATE TABLE shop.others (id int PRIMARY KEY, name text);
    INSERT INTO shop.items VALUES (1, 'one'), (2, 'two');
    INSERT INTO shop.others VALUES (1, 'other');";

async fn scene(name: &str, noticed: Noticed) -> Scene {
    let entities = [Entity::new("item", "shop.items"), Entity::new("other", "shop.others")];
    let stage = Stage::shared(name).await;
    stage.execute(SCHEMA).await;
    // Tables stay published whatever they are called.
    stage.execute(&format!("CREATE PUBLICATION {} FOR ALL TABLES", stage.name)).await;
    Scene::on(stage, |config| entities.into_iter().fold(noticed.configure(config), |c, e| c.entity(e))).await
}

#[tokio::test]
async fn a_table_that_is_not_there_is_refused_and_comes_back() {
    let ways = [
        ("ALTER TABLE shop.items RENAME TO goods", "ALTER TABLE shop.goods RENAME TO items"),
        ("ALTER TABLE shop.items SET SCHEMA spare", "ALTER TABLE spare.items SET SCHEMA shop"),
        (
            "DROP TABLE shop.items",
            "CREATE TABLE shop.items (id int PRIMARY KEY, label text); INSERT INTO shop.items VALUES (1, 'new')",
        ),
        (
            "DROP TABLE shop.items; CREATE VIEW shop.items AS SELECT 1 AS id",
            "DROP VIEW shop.items; CREATE TABLE shop.items (id bigint PRIMARY KEY); INSERT INTO shop.items VALUES (1)",
        ),
    ];
    for noticed in BOTH {
        let scene = scene("ddl_names", noticed).await;
        for (away, back) in ways {
            scene.warm("item/1").await;
            scene.warm("other/1").await;
            let (why, code) =
                if away.contains("VIEW") { ("is a view", "not_a_table") } else { ("does not exist", "table_missing") };
            noticed.change(&scene, away, "item/1", |r| refused(r, why)).await;
            stands(&scene, "item", "unreadable", code).await;
            let batch = scene.http.post("/v1/item/batch", &serde_json::json!({"keys": [1, 2]}), &[]).await;
            assert!(refused(&batch, why), "{batch:?}");
            assert_eq!(scene.get("other/1").await.header("x-cache"), "HIT-L1", "the other entity is served");
            noticed.change(&scene, back, "item/1", |r| r.status == 200).await;
            stands(&scene, "item", "cached", "").await;
            scene.write("UPDATE shop.others SET name = name || '.'").await;
            scene.verify().await;
        }
        let said = scene.daemon.log().matches("cannot be read any more").count();
        assert_eq!(said, ways.len(), "once for each change");
    }
}

#[tokio::test]
async fn a_schema_that_is_renamed() {
    for noticed in BOTH {
        let scene = scene("ddl_schema", noticed).await;
        scene.warm("item/1").await;
        let refused = |r: &crate::harness::Response| refused(r, "does not exist");
        noticed.change(&scene, "ALTER SCHEMA shop RENAME TO store", "item/1", refused).await;
        stands(&scene, "other", "unreadable", "shop.others does not exist").await;
        // Nobody serves this, and nobody minds.
        scene.write("UPDATE store.items SET name = 'ONE' WHERE id = 1; DELETE FROM store.items WHERE id = 2").await;
        noticed.change(&scene, "ALTER SCHEMA store RENAME TO shop", "item/1", |r| r.status == 200).await;
        stands(&scene, "other", "cached", "").await;
        scene.verify().await;
    }
}

#[tokio::test]
async fn tables_and_schemas_that_are_swapped() {
    let schema = "CREATE TABLE shop.items_new (id int PRIMARY KEY, name text);
        INSERT INTO shop.items_new VALUES (1, 'eins'), (3, 'drei');
        CREATE SCHEMA store; CREATE TABLE store.items (id int PRIMARY KEY, name text);
        INSERT INTO store.items VALUES (1, 'uno'), (4, 'quattro'); CREATE TABLE store.others (id int PRIMARY KEY, name text);";
    for noticed in BOTH {
        let scene = scene("ddl_swap", noticed).await;
        scene.write(schema).await;
        let tables = "ALTER TABLE shop.items RENAME TO items_old; ALTER TABLE shop.items_new RENAME TO items;
            ALTER TABLE shop.items_old RENAME TO items_new";
        let schemas = "ALTER SCHEMA shop RENAME TO shop_old; ALTER SCHEMA store RENAME TO shop;
            ALTER SCHEMA shop_old RENAME TO store";
        for (swap, names) in [(tables, ["one", "eins"]), (schemas, ["one", "uno"])] {
            for wanted in [names[1], names[0], names[1], names[0]] {
                scene.warm("item/1").await;
                for absent in ["item/3", "item/4"] {
                    scene.get(absent).await;
                }
                noticed.change(&scene, swap, "item/1", |r| r.status == 200 && r.json()["name"] == wanted).await;
                // Entities are looked up one after the other.
                let others = scene.sql.query_one("SELECT count(*) FROM shop.others", &[]).await.unwrap();
                let status = if others.get::<_, i64>(0) > 0 { 200 } else { 404 };
                eventually_within(super::BOUND, "notice it for the other entity", || async {
                    let response = scene.get("other/1").await;
                    if response.status == status { Ok(()) } else { Err(format!("{response:?}")) }
                })
                .await;
                scene.verify().await;
                // What comes of either table, whichever name it has now.
                scene
                    .write("UPDATE shop.items SET name = name WHERE id = 1; DELETE FROM shop.items WHERE id = 2")
                    .await;
                scene.verify().await;
            }
        }
    }
}

/// All tables of a batch that have come under other names start one generation, by one write of the fence.
#[tokio::test]
async fn tables_that_are_renamed_together_start_one_generation() {
    if needs_publications("ddl::names::tables_that_are_renamed_together_start_one_generation") {
        return;
    }
    let stage = Stage::shared("ddl_together").await;
    stage.execute(SCHEMA).await;
    stage.execute(&format!("CREATE PUBLICATION {} FOR ALL TABLES", stage.name)).await;
    // Only the stream tells.
    let scene = Scene::on(stage, |config| {
        let config = config.set("source", "schema_check_interval", "1h").set("source", "event_triggers", false);
        config.entity(Entity::new("item", "shop.items")).entity(Entity::new("other", "shop.others"))
    })
    .await;
    let renamed = "BEGIN; ALTER TABLE shop.items RENAME TO goods; ALTER TABLE shop.others RENAME TO rest;
        INSERT INTO shop.goods VALUES (3, 'three'); INSERT INTO shop.rest VALUES (3, 'three'); COMMIT";
    scene.write(renamed).await;
    let log = scene.daemon.log();
    let told: Vec<serde_json::Value> = (log.lines().filter(|line| line.contains("has come under another name")))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let entities: Vec<_> = told.iter().map(|told| told["entity"].as_str().unwrap()).collect();
    assert_eq!(entities, ["item", "other"], "{log}");
    assert_eq!(told[0]["generation"], told[1]["generation"], "{log}");
}
