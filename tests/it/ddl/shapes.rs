//! Columns and types that change.

use super::BOTH;
use crate::harness::{Config, Entity, Scene};

const SCHEMA: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TYPE size AS (x int, y int);
    CREATE DOMAIN code AS text;
    CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(10,2), mood mood, moods mood[], size size, code code,
        sizes size[]);
    INSERT INTO items SELECT n, 'name ' || n, n, 'ok', '{ok,sad}', (n, n)::size, 'c', ARRAY[(n, n)::size]
    FROM generate_series(1, 4) n;";

/// What changes how rows read, and nothing of that is in the stream before a row is written.
const CHANGES: [&str; 21] = [
    "ALTER TABLE items ADD COLUMN added int DEFAULT 7",
    "ALTER TABLE items DROP COLUMN added",
    "ALTER TABLE items RENAME price TO cost",
    "ALTER TABLE items ALTER cost TYPE numeric(10,3)",
    "ALTER TABLE items ALTER cost TYPE text USING 'costs ' || cost",
    "ALTER TABLE items ALTER name TYPE text USING upper(name)",
    "ALTER TABLE items ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED",
    "ALTER TABLE items ALTER twice DROP EXPRESSION; UPDATE items SET twice = 1",
    "ALTER TABLE items DROP COLUMN twice, ADD COLUMN twice bigint GENERATED ALWAYS AS (id * 4) STORED",
    "ALTER TABLE items DROP COLUMN twice",
    "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
    "ALTER TYPE size ADD ATTRIBUTE z int",
    "ALTER TYPE size RENAME ATTRIBUTE z TO w",
    "ALTER TYPE size DROP ATTRIBUTE w",
    "ALTER TYPE size RENAME ATTRIBUTE x TO width",
    "ALTER TABLE items ALTER id TYPE bigint, ADD COLUMN big bool DEFAULT true",
    "ALTER TABLE items ALTER code TYPE varchar(9) USING code || '!'",
    "ALTER TABLE items DROP COLUMN name, ADD COLUMN name text DEFAULT 'again'",
    "CREATE TYPE tone AS ENUM ('fine', 'sad'); ALTER TABLE items ALTER mood TYPE tone USING mood::text::tone, ADD toned int",
    "ALTER TABLE items ALTER toned SET DEFAULT 3, ADD COLUMN noted text NOT NULL DEFAULT 'n'",
    "BEGIN; ALTER TABLE items ADD COLUMN last int DEFAULT 1; UPDATE items SET last = 2 WHERE id = 2; COMMIT",
];

async fn in_postgres(scene: &Scene, id: i32) -> String {
    let sql = scene.stage.sql().await;
    crate::harness::pinned(&sql).await;
    let query = format!("SELECT row_to_json(t)::text FROM items t WHERE id = {id}");
    sql.query_one(&query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn columns_and_types_come_go_and_change() {
    for noticed in BOTH {
        let scene = noticed.scene("ddl_shapes", SCHEMA, |config| config.entity(Entity::new("item", "items"))).await;
        for change in CHANGES {
            let before = in_postgres(&scene, 1).await;
            assert_eq!(scene.warm("item/1").await.text(), before);
            // What the change makes of the row, found out without making it.
            let mut sql = scene.stage.sql().await;
            crate::harness::pinned(&sql).await;
            let trial = sql.transaction().await.unwrap();
            trial.batch_execute(change.trim_start_matches("BEGIN;").trim_end_matches("COMMIT")).await.unwrap();
            let row = trial.query_one("SELECT row_to_json(t)::text FROM items t WHERE id = 1", &[]).await.unwrap();
            let wanted: String = row.get(0);
            trial.rollback().await.unwrap();
            assert_ne!(before, wanted, "{change} changes nothing that could be noticed");
            noticed.change(&scene, change, "item/1", |response| response.text() == wanted).await;
            // From then on events bring the new shape, and nothing of the old one is left.
            scene
                .write("UPDATE items SET moods = '{sad}' WHERE id = 2; UPDATE items SET moods = '{}' WHERE id = 1")
                .await;
            scene.verify().await;
        }
        assert_eq!(super::entity(&scene, "item").await["state"], "cached");
    }
}

/// A change and its reversal, between which rows were written: the same shape as before is no proof that nothing happened.
#[tokio::test]
async fn a_change_that_was_undone_is_noticed() {
    for noticed in BOTH {
        // One of which all columns can be made from their text in the stream, so that events refresh it.
        let columns = || ["id", "mood", "price"].map(toml::Value::from).to_vec();
        let plain = Entity::new("plain", "items").set("columns", columns());
        let entities = |config: Config| config.entity(Entity::new("item", "items")).entity(plain);
        let scene = noticed.scene("ddl_undone", SCHEMA, entities).await;
        for (there, back) in [
            ("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'", "ALTER TYPE mood RENAME VALUE 'fine' TO 'ok'"),
            ("ALTER TYPE size RENAME ATTRIBUTE x TO z", "ALTER TYPE size RENAME ATTRIBUTE z TO x"),
            ("ALTER TABLE items RENAME name TO label", "ALTER TABLE items RENAME label TO name"),
            ("ALTER TABLE items ADD extra int", "ALTER TABLE items DROP extra"),
        ] {
            for id in 1..5 {
                scene.warm(&format!("item/{id}")).await;
                scene.warm(&format!("plain/{id}")).await;
            }
            // All in one batch: the daemon looks when everything is over.
            scene.daemon.pause().await;
            scene.sql.batch_execute(there).await.unwrap();
            scene.sql.batch_execute("UPDATE items SET price = price + 1 WHERE id IN (1, 2)").await.unwrap();
            scene.sql.batch_execute(back).await.unwrap();
            scene.sql.batch_execute("UPDATE items SET price = price + 1 WHERE id IN (2, 3)").await.unwrap();
            scene.daemon.resume();
            scene.applied().await;
            crate::harness::eventually_within(super::BOUND, "serve what is there", || async {
                for id in 1..5 {
                    let response = scene.get(&format!("item/{id}")).await;
                    let wanted = in_postgres(&scene, id).await;
                    if response.text() != wanted {
                        return Err(format!("{there}: wanted {wanted}: {response:?}"));
                    }
                    let (plain, item) = (scene.get(&format!("plain/{id}")).await.json(), response.json());
                    if plain["mood"] != item["mood"] {
                        return Err(format!("{there}: {plain} and {item}"));
                    }
                }
                Ok(())
            })
            .await;
            scene.verify().await;
        }
    }
}
