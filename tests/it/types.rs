//! Values of every type, through the stream and through a fill, against `row_to_json` in Postgres; and out-of-line
//! values that the stream leaves out.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::harness::{Entity, Scene, Stage, cli, pinned, plugin};

mod altered;
mod corpus;
mod random;

/// What nobody should depend on: the defaults of the database that print values otherwise.
const ODD_DEFAULTS: &str = "DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kolkata''', current_database());
    EXECUTE format('ALTER DATABASE %I SET DateStyle = ''German, DMY''', current_database());
    EXECUTE format('ALTER DATABASE %I SET IntervalStyle = ''sql_standard''', current_database());
    EXECUTE format('ALTER DATABASE %I SET extra_float_digits = 0', current_database());
    EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
    EXECUTE format('ALTER DATABASE %I SET array_nulls = off', current_database());
    EXECUTE format('ALTER DATABASE %I SET quote_all_identifiers = on', current_database());
    EXECUTE format('ALTER DATABASE %I SET xmloption = document', current_database());
    EXECUTE format('ALTER DATABASE %I SET xmlbinary = hex', current_database());
END $$";

/// The rows of a table as `row_to_json` prints them, by `id`.
async fn wanted(scene: &Scene, table: &str) -> BTreeMap<i32, String> {
    let sql = scene.stage.sql().await;
    let query = format!("SELECT id, row_to_json(t)::text FROM {table} t ORDER BY id");
    let rows = pinned(&sql).await.query(&query, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Panics with every column that differs; numbers and texts are compared as they are written.
fn same(what: &str, found: &str, wanted: &str) {
    if found == wanted {
        return;
    }
    let columns = |text| serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(text);
    let found_columns = columns(found).unwrap_or_else(|e| panic!("{what} is no JSON object ({e}): {found}"));
    let differ: Vec<String> = (columns(wanted).unwrap().iter())
        .filter(|(name, value)| found_columns.get(*name).map(|v| v.get()) != Some(value.get()))
        .map(|(name, value)| format!("{name}\n  is    {:?}\n  wants {}", found_columns.get(name), value.get()))
        .collect();
    panic!("{what}: {}\n{found}\n{wanted}", differ.join("\n"));
}

/// The columns of which wal2json before 2.6 writes NULL, NaN and the infinities alike.
async fn number_columns(scene: &Scene, table: &str) -> Vec<String> {
    let query = "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 \
                 AND atttypid IN ('float4'::regtype, 'float8'::regtype, 'numeric'::regtype)";
    scene.sql.query(query, &[&table]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Whether one of these columns is null or no number.
fn has_untold(row: &str, columns: &[String]) -> bool {
    let row: BTreeMap<String, Box<RawValue>> = serde_json::from_str(row).unwrap();
    columns.iter().any(|column| row[column].get().starts_with(['n', '"']))
}

/// Has the rows of a table come again through the stream, as inserts and as updates, and compares what comes of them in
/// an entity that is populated with changes, and what a fill reads in one that is not. Gives the number of rows.
async fn arrive(scene: &Scene, table: &str, streamed: &str, filled: &str) -> usize {
    let rows = wanted(scene, table).await;
    // Not by updates: the longer rows have values out of line, which an update that does not touch them leaves out.
    let insert = format!(
        "BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE {table}; DELETE FROM {table}; INSERT INTO {table} TABLE kept; COMMIT"
    );
    // Unless the old row is in the stream, too.
    let whole = format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
    let update = format!("UPDATE {table} SET id = id");
    let numbers = number_columns(scene, table).await;
    for (alter, write) in [(None, insert), (Some(whole), update)] {
        // By itself: changes of before a look at an altered table only drop entries.
        if let Some(alter) = alter {
            scene.write(&alter).await;
        }
        scene.write(&write).await;
        for (id, row) in &rows {
            if plugin() == "wal2json" && has_untold(row, &numbers) {
                assert_eq!(scene.stored(&format!("{streamed}:{id}")).await, None, "row {id} of {table} is not told");
                assert_eq!(&scene.get(&format!("{streamed}/{id}")).await.text(), row);
                continue;
            }
            let entry = scene.stored(&format!("{streamed}:{id}")).await;
            let entry = entry.unwrap_or_else(|| panic!("row {id} of {table} did not come"));
            assert_eq!(entry.lo, entry.hi, "an event's label");
            same(&format!("row {id} of {table} from the stream"), &entry.value, row);
            let response = scene.get(&format!("{streamed}/{id}")).await;
            assert_eq!((response.header("x-cache"), &response.text()), ("HIT-L2", row));

            let response = scene.get(&format!("{filled}/{id}")).await;
            assert_eq!(response.header("x-cache"), "MISS");
            same(&format!("row {id} of {table} from a fill"), &response.text(), row);
            assert_eq!(&scene.stored(&format!("{filled}:{id}")).await.unwrap().value, row);
        }
    }
    rows.len()
}

#[tokio::test]
async fn every_type_reads_as_in_postgres_through_stream_and_fill() {
    let stage = Stage::shared("types").await;
    stage.execute(include_str!("../data/types.sql")).await;
    stage.execute(ODD_DEFAULTS).await;
    let scene = Scene::on(stage, |config| {
        config
            .entity(Entity::new("streamed", "types.types").set("populate", true))
            .entity(Entity::new("filled", "types.types").set("on_change", "invalidate"))
            .entity(Entity::new("streamed-nested", "types.types_nested").set("populate", true))
            .entity(Entity::new("filled-nested", "types.types_nested").set("on_change", "invalidate"))
            .entity(Entity::new("refetched", "types.types_refetched").set("populate", true))
    })
    .await;
    assert_eq!(scene.keys("streamed").await, Vec::<String>::new(), "nothing has been read or written yet");
    assert!(arrive(&scene, "types.types", "streamed", "filled").await >= 11);
    assert!(arrive(&scene, "types.types_nested", "streamed-nested", "filled-nested").await >= 8);

    // Types that cannot be rendered from the stream: the event drops the entry, and a fill brings it.
    scene.write("UPDATE types.types_refetched SET id = id").await;
    assert_eq!(scene.keys("refetched").await, Vec::<String>::new());
    for (id, row) in wanted(&scene, "types.types_refetched").await {
        for _ in 0..2 {
            let response = scene.get(&format!("refetched/{id}")).await;
            assert_eq!(response.header("x-cache"), "MISS");
            same(&format!("row {id}"), &response.text(), &row);
            assert_eq!(scene.stored(&format!("refetched:{id}")).await.unwrap().value, row);
            scene.write("UPDATE types.types_refetched SET id = id").await;
            assert_eq!(scene.stored(&format!("refetched:{id}")).await, None);
        }
    }
    let opaque = "walcache_cache_invalidations_total{entity=\"refetched\",cause=\"opaque\"}";
    assert!(scene.metric(opaque).await.is_some_and(|n| n >= 2.0), "{opaque}");
    scene.verify().await;
}

/// What cannot be rendered from the stream is named, with the reason; where changes only drop entries it does not matter.
#[tokio::test]
async fn check_names_the_columns_whose_changes_are_refetched() {
    let mut schema = "
        CREATE TYPE mood AS ENUM ('sad');
        CREATE FUNCTION to_json_of(mood) RETURNS json LANGUAGE sql AS $$ SELECT json_build_object('is', $1::text) $$;
        CREATE CAST (mood AS json) WITH FUNCTION to_json_of(mood);
        CREATE TYPE t20 AS (a mood);
        CREATE DOMAIN d0 AS int;"
        .to_owned();
    for n in 1..=20 {
        schema.push_str(&format!("CREATE DOMAIN d{n} AS d{};", n - 1));
    }
    schema.push_str("CREATE TABLE t (id int PRIMARY KEY, m mood, ms t20[], deep d20, plain d1[])");
    let stage = Stage::shared("refetched").await;
    stage.execute(&schema).await;
    let config = stage
        .config()
        .entity(Entity::new("t", "t"))
        .entity(Entity::new("dropped", "t").set("on_change", "invalidate"))
        .entity(Entity::new("plain", "t").set("columns", vec!["id", "plain"]));
    assert!(cli(&config, &["setup", "--apply"], &[]).await.status.success());
    let checked = cli(&config, &["check"], &[]).await;
    assert!(checked.status.success(), "{checked:?}");
    let lines: Vec<&str> = checked.stdout.lines().filter(|line| line.contains("[type_refetched]")).collect();
    assert_eq!(lines.len(), 3, "{checked:?}");
    for (line, column) in lines.iter().zip([
        "column m is of type mood, whose JSON form cannot be made from its text in the stream: mood has a cast to json",
        "column ms is of type t20[], whose JSON form cannot be made from its text in the stream: mood has a cast to json",
        "column deep is of type d20, whose JSON form cannot be made from its text in the stream: it is nested deeper",
    ]) {
        assert!(line.starts_with("warning[type_refetched] entity t: ") && line.contains(column), "{line}");
        assert!(line.contains("Each change of a row drops its entry"), "{line}");
    }
    assert!(checked.stdout.contains("errors 0, warnings 3"), "{checked:?}");
}

/// A value that is stored out of line and that an update does not touch is not in the stream: it must never read as null.
#[tokio::test]
async fn untouched_out_of_line_values_are_never_null() {
    let schema = "
        CREATE TABLE docs (id int PRIMARY KEY, body text, n int);
        ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
        CREATE TABLE whole (LIKE docs INCLUDING ALL);
        ALTER TABLE whole REPLICA IDENTITY FULL;
        INSERT INTO docs SELECT i, CASE WHEN i < 4 THEN repeat('body ', 4000) END, 0 FROM generate_series(1, 4) i;
        INSERT INTO whole TABLE docs;";
    let scene = Scene::open("toast", schema, |config| {
        config
            .entity(Entity::new("doc", "public.docs"))
            .entity(Entity::new("doc-pop", "public.docs").set("populate", true))
            .entity(Entity::new("doc-inval", "public.docs").set("on_change", "invalidate"))
            .entity(Entity::new("whole", "public.whole"))
            .entity(Entity::new("whole-pop", "public.whole").set("populate", true))
    })
    .await;
    let body = "body ".repeat(4000);
    let all = ["doc", "doc-pop", "doc-inval", "whole", "whole-pop"];
    for entity in all {
        assert_eq!(scene.get(&format!("{entity}/1")).await.json()["body"], body.as_str());
        scene.warm(&format!("{entity}/1")).await;
    }
    for n in 1..=3 {
        scene.write(&format!("UPDATE docs SET n = {n}; UPDATE whole SET n = {n}")).await;
        for entity in all {
            // The value is in the whole old row, or in the entry that stands.
            let (complete, in_l2) = (entity != "doc-inval", scene.stored(&format!("{entity}:1")).await);
            assert_eq!(in_l2.is_some(), complete, "{entity}: {in_l2:?}");
            let response = scene.get(&format!("{entity}/1")).await;
            assert_eq!(response.header("x-cache"), if complete { "HIT-L2" } else { "MISS" }, "{entity}");
            let value = response.json();
            assert_eq!((value["n"].as_i64(), value["body"].as_str()), (Some(n), Some(body.as_str())), "{entity}");
            scene.warm(&format!("{entity}/1")).await;
        }
        // Null is null, not out of line.
        assert!(scene.stored("doc-pop:4").await.unwrap().value.contains("\"body\":null"));
    }
    // The key changes, the body does not; then the body does.
    scene.write("UPDATE docs SET id = 11 WHERE id = 1; UPDATE whole SET id = 11 WHERE id = 1").await;
    // What stands at the new key is not of this row.
    let toast = "walcache_cache_invalidations_total{entity=\"doc\",cause=\"toast\"}";
    assert!(scene.metric(toast).await.is_some_and(|n| n >= 1.0), "{toast}");
    for entity in all {
        assert_eq!(scene.get(&format!("{entity}/1")).await.status, 404, "{entity}");
        assert_eq!(scene.get(&format!("{entity}/11")).await.json()["body"], body.as_str(), "{entity}");
    }
    scene.write("UPDATE docs SET body = repeat('other', 4000); UPDATE whole SET body = repeat('other', 4000)").await;
    for entity in all {
        assert_eq!(scene.get(&format!("{entity}/11")).await.json()["body"], "other".repeat(4000), "{entity}");
    }
    scene.verify().await;
}
