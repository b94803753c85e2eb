//! What wal2json sends less of than pgoutput, and must not be noticed. Whatever plugin the run is with, these daemons stream
//! through wal2json, and their look at the catalog is due in an hour: only the stream can tell them.

use serde_json::json;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Config, Entity, Scene, Stage, cli, needs_wal2json};

async fn scene(name: &str, schema: &str, configure: impl FnOnce(Config) -> Config) -> Scene {
    Scene::open(name, schema, |config| {
        let config = config.set("source", "plugin", "wal2json").set("source", "schema_check_interval", "1h");
        configure(config.set("source", "reconnect_max", "200ms"))
    })
    .await
}

async fn items(name: &str) -> Scene {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, a text, b text, body text, n numeric);
                  ALTER TABLE items ALTER body SET STORAGE EXTERNAL;
                  INSERT INTO items SELECT i, 'a' || i, 'b' || i, repeat('x', 3000), i FROM generate_series(1, 5) i";
    scene(name, schema, |config| config.entity(Entity::new("item", "items"))).await
}

/// 11: rows are streamed under the names of partitions, which come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_their_table() {
    if needs_wal2json("wal2json::partitions_are_their_table").await {
        return;
    }
    let schema = "CREATE TABLE split (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
                  CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (10);
                  CREATE TABLE split_2 (note text, gone int, id int NOT NULL);
                  ALTER TABLE split_2 DROP gone;
                  ALTER TABLE split ATTACH PARTITION split_2 FOR VALUES FROM (10) TO (20);
                  CREATE TABLE other (id int PRIMARY KEY);
                  INSERT INTO split VALUES (1, 'one'), (11, 'eleven')";
    let scene = scene("w2j_split", schema, |config| config.entity(Entity::new("part", "split"))).await;
    for key in [1, 11, 2, 12] {
        scene.get(&format!("part/{key}")).await;
    }
    // In the columns' order of the table, whichever partition it comes from.
    scene.write("UPDATE split SET note = note || '!'").await;
    assert_eq!(scene.stored("part:11").await.unwrap().value, r#"{"id":11,"note":"eleven!"}"#);
    scene.write("UPDATE split SET id = 12 WHERE id = 1").await;
    assert_eq!(scene.stored("part:1").await.unwrap().value, "null");
    assert_eq!(scene.stored("part:12").await.unwrap().value, r#"{"id":12,"note":"one!"}"#);
    scene.verify().await;

    // Tables that belong to no entity do not disturb it.
    let before = scene.daemon.generation().await;
    scene.write("INSERT INTO other VALUES (1); CREATE TABLE later (id int); INSERT INTO later VALUES (1)").await;
    scene.write("INSERT INTO other VALUES (2); INSERT INTO later VALUES (2)").await;
    assert_eq!(scene.daemon.generation().await, before);
    assert_eq!(scene.get("part/12").await.json()["note"], "one!");

    // Known to be absent, and then there, in a partition that did not exist.
    assert_eq!(scene.warm("part/25").await.status, 404);
    scene
        .write("CREATE TABLE split_3 PARTITION OF split FOR VALUES FROM (20) TO (30); INSERT INTO split VALUES (25, 'new')")
        .await;
    assert_eq!(scene.get("part/25").await.json()["note"], "new");
    scene.warm("part/25").await;
    scene.write("UPDATE split SET note = 'newer' WHERE id = 25").await;
    assert_eq!(scene.stored("part:25").await.unwrap().value, r#"{"id":25,"note":"newer"}"#);

    // One that was made, written and dropped before anybody could look.
    assert_eq!(scene.warm("part/35").await.status, 404);
    scene.daemon.terminate().await;
    let scene = {
        scene
            .sql
            .batch_execute(
                "CREATE TABLE split_4 PARTITION OF split FOR VALUES FROM (30) TO (40); INSERT INTO split VALUES (35, 'brief');
                 DROP TABLE split_4; INSERT INTO split VALUES (26, 'after')",
            )
            .await
            .unwrap();
        Scene::on(scene.stage, |_| scene.config.clone()).await
    };
    scene.applied().await;
    assert_eq!(scene.get("part/35").await.status, 404);
    scene.write("TRUNCATE split_3").await;
    assert_eq!(scene.get("part/25").await.status, 404);
    scene.verify().await;
}

/// 10: without a replica identity wal2json leaves changes out, where pgoutput's publication would forbid them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_are_left_out_are_noticed() {
    if needs_wal2json("wal2json::changes_that_are_left_out_are_noticed").await {
        return;
    }
    let scene = items("w2j_identity").await;
    for identity in ["NOTHING", "FULL", "DEFAULT"] {
        scene.daemon.wait_joined().await;
        for key in 1..=5 {
            scene.warm(&format!("item/{key}")).await;
        }
        scene
            .write(&format!(
                "ALTER TABLE items REPLICA IDENTITY {identity}; UPDATE items SET a = '{identity}' WHERE id = 1;
                 DELETE FROM items WHERE id = 2; INSERT INTO items VALUES (2, 'again')"
            ))
            .await;
        assert_eq!(scene.get("item/1").await.json()["a"], identity);
        assert_eq!(scene.get("item/2").await.json()["a"], "again");
        scene.verify().await;
        // Without one that has the key the entity is not cached.
        scene.write("ALTER TABLE items REPLICA IDENTITY DEFAULT").await;
    }
}

/// 7: a value that is left out is not of a column that was dropped, and a name may have come to mean another column.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_are_told_apart() {
    if needs_wal2json("wal2json::columns_are_told_apart").await {
        return;
    }
    let scene = items("w2j_columns").await;
    scene.warm("item/1").await;
    scene.write("UPDATE items SET a = 'A' WHERE id = 1").await;
    let stored: serde_json::Value = serde_json::from_str(&scene.stored("item:1").await.unwrap().value).unwrap();
    assert_eq!((&stored["a"], &stored["body"]), (&json!("A"), &json!("x".repeat(3000))), "merged");

    scene
        .write(
            "ALTER TABLE items RENAME a TO c; ALTER TABLE items RENAME b TO a; ALTER TABLE items RENAME c TO b;
             UPDATE items SET n = 7 WHERE id = 1",
        )
        .await;
    let row = scene.get("item/1").await.json();
    assert_eq!((&row["a"], &row["b"], &row["n"]), (&json!("b1"), &json!("A"), &json!(7)));
    scene.verify().await;

    scene.warm("item/1").await;
    scene.write("ALTER TABLE items DROP body; UPDATE items SET n = 8 WHERE id = 1").await;
    let row = scene.get("item/1").await.json();
    assert_eq!((row.get("body"), &row["n"]), (None, &json!(8)));
    scene.warm("item/1").await;
    scene.write("ALTER TABLE items ADD body text DEFAULT 'y'; UPDATE items SET n = 9 WHERE id = 1").await;
    assert_eq!(scene.get("item/1").await.json()["body"], "y");
    scene.verify().await;
}

/// NaN and the infinities read as null before wal2json 2.6, and are not taken for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_are_not_told_are_read() {
    if needs_wal2json("wal2json::values_that_are_not_told_are_read").await {
        return;
    }
    let schema = "CREATE TABLE readings (at int PRIMARY KEY, f float8, r real, n numeric);
                  INSERT INTO readings VALUES (1, 1, 1, 1), (2, 'NaN', NULL, NULL)";
    let scene = scene("w2j_nan", schema, |config| config.entity(Entity::new("reading", "readings"))).await;
    for key in [1, 2] {
        scene.warm(&format!("reading/{key}")).await;
    }
    scene.write("UPDATE readings SET f = '-Infinity', r = 'NaN' WHERE at = 1").await;
    let row = scene.get("reading/1").await.json();
    assert_eq!((&row["f"], &row["r"]), (&json!("-Infinity"), &json!("NaN")));
    scene.write("UPDATE readings SET f = 3, n = 'NaN' WHERE at = 2").await;
    let row = scene.get("reading/2").await.json();
    assert_eq!((&row["f"], &row["r"], &row["n"]), (&json!(3), &json!(null), &json!("NaN")));
    scene.verify().await;
}

/// Only the entities' tables are asked for, whatever they are called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_any_name() {
    if needs_wal2json("wal2json::tables_of_any_name").await {
        return;
    }
    let names = [r#""we.ird, \ "" * ' name""#, r#""sch,em.a *"."t""#, r#""*""#, r#""ünï cödé""#];
    let mut schema = r#"CREATE SCHEMA "sch,em.a *"; CREATE TABLE other (id int PRIMARY KEY);"#.to_owned();
    for name in names {
        schema.push_str(&format!(
            r#"CREATE TABLE {name} ("the, ""id" int PRIMARY KEY, "\" text); INSERT INTO {name} VALUES (1, 'old');"#
        ));
    }
    let scene = scene("w2j_names", &schema, |config| {
        names.iter().enumerate().fold(config, |config, (i, name)| config.entity(Entity::new(&format!("e{i}"), name)))
    })
    .await;
    for (i, name) in names.iter().enumerate() {
        scene.warm(&format!("e{i}/1")).await;
        scene.write(&format!(r#"UPDATE {name} SET "\" = E'new\t"\\'"#)).await;
        let stored = scene.stored(&format!("e{i}:1")).await.unwrap();
        assert_eq!(stored.value, r#"{"the, \"id":1,"\\":"new\t\"\\"}"#, "{name}");
    }
    scene.write("INSERT INTO other VALUES (1)").await;
    scene.verify().await;
}

/// 28: what is missing is said before anything is changed, with what mends it.
#[tokio::test]
async fn what_it_needs_is_checked() {
    if needs_wal2json("wal2json::what_it_needs_is_checked").await {
        return;
    }
    let nowhere = PostgresOptions::new().setting("dynamic_library_path", "/nonexistent");
    let stage = Stage::private("w2j_check", nowhere, RedisOptions::new()).await;
    let table = "CREATE TABLE products (id int PRIMARY KEY, name text)";
    stage.execute(table).await;
    let config = |url: &str, plugin: &str| {
        let config = stage.config().set("source", "url", url).set("source", "plugin", plugin);
        config.entity(Entity::new("product", "products"))
    };
    let url = stage.source_url();
    let wal2json = config(&url, "wal2json");
    let said = ["plugin_missing", "could not access file", "postgresql-NN-wal2json"];
    for verb in [&["check"][..], &["setup"], &["setup", "--apply"], &["run"]] {
        cli(&wal2json, verb, &[]).await.ended(1, &said);
    }
    let reset = "ALTER SYSTEM SET dynamic_library_path = '$libdir'";
    stage.execute(reset).await;
    stage.execute("SELECT pg_reload_conf()").await;

    // No publication is made, nor missed.
    let applied = cli(&wal2json, &["setup", "--apply"], &[]).await;
    let slot = format!("pg_create_logical_replication_slot('{}', 'wal2json')", stage.name);
    applied.ended(0, &[&slot, "check: errors 0"]);
    let publications = stage.sql().await.query("SELECT FROM pg_publication", &[]).await.unwrap();
    assert!(publications.is_empty());
    cli(&wal2json, &["check"], &[]).await.ended(0, &["errors 0"]);

    // The slot is not one of pgoutput.
    let said = ["slot_plugin", "decodes with \"wal2json\", not \"pgoutput\"", "pg_drop_replication_slot"];
    cli(&config(&url, "pgoutput"), &["check"], &[]).await.ended(1, &said);

    let latin = "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'";
    stage.execute(latin).await;
    let latin = config(&stage.postgres.url("latin"), "wal2json").set("source", "slot", "latin");
    cli(&latin, &["check"], &[]).await.ended(1, &["encoding", "LATIN1", "wal2json does not convert it"]);
}
