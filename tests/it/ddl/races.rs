//! Schema changes beside changes of rows: in one transaction, in one batch, and under load.

use std::collections::BTreeSet;
use std::process::Command;

use walcache::sandbox::{PostgresOptions, RedisOptions};

use super::{BOTH, BOUND, Noticed, items};
use crate::harness::{Entity, Scene, Shop, Stage, assert_none, current_lsn, eventually_within};

#[tokio::test]
async fn rows_before_between_and_after_changes_in_one_transaction() {
    for noticed in BOTH {
        let scene = items("ddl_transaction", noticed).await;
        for transaction in [
            "UPDATE items SET name = 'a' WHERE id = 1; ALTER TABLE items ADD added int DEFAULT 4;
             UPDATE items SET name = 'b' WHERE id = 2; INSERT INTO items VALUES (3, 'three', 3, 3)",
            "INSERT INTO items VALUES (4, 'four', 4, 4); ALTER TABLE items DROP added; ALTER TABLE items RENAME price TO cost;
             DELETE FROM items WHERE id = 3; UPDATE items SET cost = 7",
            "ALTER TABLE items ALTER cost TYPE int; UPDATE items SET cost = 8 WHERE id = 1; ALTER TABLE items ALTER cost TYPE text
             USING 'costs ' || cost; UPDATE items SET id = 5 WHERE id = 4",
            "ALTER TABLE items RENAME TO goods; UPDATE goods SET name = 'renamed' WHERE id = 1; DELETE FROM goods WHERE id = 5;
             ALTER TABLE goods RENAME TO items; UPDATE items SET name = 'and back' WHERE id = 2",
            "SAVEPOINT s; ALTER TABLE items ADD undone int; UPDATE items SET undone = 1; ROLLBACK TO SAVEPOINT s;
             UPDATE items SET name = 'done' WHERE id = 1",
        ] {
            for id in 1..6 {
                scene.get(&format!("item/{id}")).await;
            }
            scene.write(&format!("BEGIN; {transaction}; COMMIT")).await;
            if noticed == Noticed::Polled {
                // Rows tell of some of these; of the rest the catalog does.
                settles(&scene).await;
            }
            scene.verify().await;
        }
    }
}

/// Waits until all rows of `items` are answered as they are.
async fn settles(scene: &Scene) {
    eventually_within(BOUND, "serve what is there", || async {
        let rows = scene.sql.query("SELECT id, row_to_json(t)::text FROM items t", &[]).await.unwrap();
        for row in rows {
            let response = scene.get(&format!("item/{}", row.get::<_, i32>(0))).await;
            if response.text() != row.get::<_, &str>(1) {
                return Err(format!("{response:?}"));
            }
        }
        Ok(())
    })
    .await;
}

/// The daemon hears of everything at once, when it is over.
#[tokio::test]
async fn what_came_and_went_within_one_batch() {
    for noticed in BOTH {
        let scene = items("ddl_batch", noticed).await;
        let table = "CREATE TABLE items_new (id int PRIMARY KEY, name text, price numeric(10,2));
            INSERT INTO items_new VALUES (1, 'eins', 1), (7, 'sieben', 7)";
        scene.write(table).await;
        let statements: [&[&str]; 4] = [
            &[
                "ALTER TABLE items ADD added int DEFAULT 4",
                "UPDATE items SET name = 'between' WHERE id = 1",
                "ALTER TABLE items DROP added",
                "UPDATE items SET name = 'after' WHERE id = 2",
            ],
            &[
                "ALTER TABLE items RENAME TO goods",
                "UPDATE goods SET name = 'away' WHERE id = 1",
                "DELETE FROM goods WHERE id = 2",
                "ALTER TABLE goods RENAME TO items",
            ],
            &[
                "ALTER TABLE items RENAME TO items_old",
                "ALTER TABLE items_new RENAME TO items",
                "UPDATE items_old SET name = 'while away' WHERE id = 1",
                "ALTER TABLE items RENAME TO items_new",
                "ALTER TABLE items_old RENAME TO items",
            ],
            &[
                "ALTER TABLE items ALTER price TYPE int",
                "UPDATE items SET price = price + 1 WHERE id = 1",
                "ALTER TABLE items ALTER price TYPE numeric(10,2)",
                "INSERT INTO items VALUES (2, 'new', 2)",
            ],
        ];
        for statements in statements {
            scene.warm("item/1").await;
            scene.warm("item/2").await;
            scene.daemon.pause().await;
            for statement in statements {
                scene.sql.batch_execute(statement).await.unwrap();
            }
            scene.daemon.resume();
            scene.applied().await;
            if noticed == Noticed::Polled {
                settles(&scene).await;
            }
            scene.verify().await;
        }
    }
}

/// Readers and writers go on while columns come and go. Whatever is answered is judged; and an answer that claims to contain
/// a change of the schema has the new shape.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_come_and_go_under_load() {
    for noticed in BOTH {
        let mut shop = Shop::new("ddl_load").await;
        shop.config = noticed.configure(shop.config.clone());
        if noticed == Noticed::Polled {
            shop.sql().await.batch_execute("DROP FUNCTION walcache.announce_ddl CASCADE").await.unwrap();
        }
        let daemon = shop.daemon().await;
        let load = shop.load(&daemon, 81);
        let sql = shop.sql().await;
        let http = daemon.http();
        load.reads(100).await;
        for round in 0..12 {
            let (change, columns) = match round % 4 {
                0 => ("ALTER TABLE counters ADD COLUMN added int DEFAULT 3", 4),
                1 => ("ALTER TABLE counters ALTER added TYPE text USING 'x' || added", 4),
                2 => ("ALTER TABLE counters DROP COLUMN added", 3),
                _ => ("ALTER TABLE counters ALTER note TYPE text USING note || '!'", 3),
            };
            sql.batch_execute(change).await.unwrap();
            let after = current_lsn(&sql).await;
            let demand = after.to_string();
            let headers = [("x-min-lsn", demand.as_str()), ("prefer", "wait=10000")];
            eventually_within(BOUND, change, || async {
                for row in 0..16 {
                    let response = http.get_with(&format!("/v1/counter/{row}"), &headers).await;
                    if response.status == 404 {
                        continue;
                    }
                    if response.status == 503 && noticed == Noticed::Polled {
                        // A miss that names a column which is gone.
                        return Err(format!("{response:?}"));
                    }
                    let row = response.clone().expect(200).json();
                    let keys: BTreeSet<&String> = row.as_object().unwrap().keys().collect();
                    let text = row["added"].is_string();
                    if keys.len() != columns || (round % 4 == 1) != text {
                        assert_eq!(noticed, Noticed::Polled, "after {change}: {response:?}");
                        return Err(format!("{response:?}"));
                    }
                }
                Ok(())
            })
            .await;
            load.writes(20).await;
            load.reads(40).await;
        }
        assert_none(&load.end().await.1);
        shop.equals_postgres(&daemon).await;
        assert_eq!(daemon.audit_findings().await, 0.0);
    }
}

/// Stops the walsender of a slot, so that the daemon serves and hears of nothing; lets it go on when dropped.
struct Silenced(String);

impl Silenced {
    async fn of(scene: &Scene) -> Silenced {
        let query = "SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = $1";
        let pid: String = scene.sql.query_one(query, &[&scene.stage.name]).await.unwrap().get(0);
        assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
        Silenced(pid)
    }
}

impl Drop for Silenced {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

/// Another table has the entity's name for a while, and rows of it are read; no row is written, and when the daemon hears of
/// it, all is as it was.
#[tokio::test]
async fn rows_of_a_table_that_had_the_name_for_a_while() {
    for (away, back) in [
        (
            "ALTER TABLE shop.items RENAME TO items_old; ALTER TABLE shop.items_new RENAME TO items",
            "ALTER TABLE shop.items RENAME TO items_new; ALTER TABLE shop.items_old RENAME TO items",
        ),
        (
            "ALTER SCHEMA shop RENAME TO shop_old; ALTER SCHEMA store RENAME TO shop",
            "ALTER SCHEMA shop RENAME TO store; ALTER SCHEMA shop_old RENAME TO shop",
        ),
    ] {
        let schema = "CREATE SCHEMA shop; CREATE SCHEMA store; CREATE TABLE shop.items (id int PRIMARY KEY, name text);
            CREATE TABLE shop.items_new (LIKE shop.items INCLUDING ALL); CREATE TABLE store.items (LIKE shop.items INCLUDING ALL);
            INSERT INTO shop.items VALUES (1, 'one'); INSERT INTO shop.items_new VALUES (7, 'seven');
            INSERT INTO store.items VALUES (7, 'seven')";
        let entity = Entity::new("item", "shop.items");
        // On servers of its own: whatever the process has locked that is stopped here, others would wait for.
        let stage = Stage::private("ddl_while", PostgresOptions::new(), RedisOptions::new()).await;
        stage.execute(schema).await;
        let scene = Scene::on(stage, |config| Noticed::Announced.configure(config).entity(entity)).await;
        scene.warm("item/1").await;
        let silenced = Silenced::of(&scene).await;
        scene.sql.batch_execute(away).await.unwrap();
        assert_eq!(scene.warm("item/7").await.json()["name"], "seven");
        scene.sql.batch_execute(back).await.unwrap();
        drop(silenced);
        scene.applied().await;
        scene.get("item/7").await.expect(404);
        scene.verify().await;
    }
}

/// Several entities of one table, and one of a table that changes all the time: the other stays cached.
#[tokio::test]
async fn what_happens_to_other_tables_changes_nothing() {
    let schema =
        "CREATE TABLE items (id int PRIMARY KEY, name text); CREATE TABLE others (id int PRIMARY KEY, name text);
        INSERT INTO items VALUES (1, 'one'); INSERT INTO others VALUES (1, 'other')";
    let entities = |config: crate::harness::Config| {
        config.entity(Entity::new("item", "items")).entity(Entity::new("other", "others"))
    };
    let scene = Noticed::Announced.scene("ddl_others", schema, entities).await;
    scene.warm("item/1").await;
    let generation = super::entity(&scene, "item").await["generation"].clone();
    for n in 0..5 {
        scene
            .write(&format!(
                "ALTER TABLE others ADD c{n} int; CREATE TABLE t{n} (id int PRIMARY KEY); DROP TABLE t{n};
                 CREATE INDEX ON items (name); CREATE TYPE e{n} AS ENUM ('a'); CREATE VIEW v{n} AS SELECT * FROM items"
            ))
            .await;
    }
    assert_eq!(scene.get("item/1").await.header("x-cache"), "HIT-L1");
    assert_eq!(super::entity(&scene, "item").await["generation"], generation);
    scene.write("UPDATE others SET c4 = 1").await;
    scene.verify().await;
}
