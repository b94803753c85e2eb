//! Values of every type, through the stream and through a fill, against `row_to_json` in Postgres; and out-of-line
//! values that the stream leaves out.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::harness::{Entity, Scene, Stage, pinned};

/// What nobody should depend on: the defaults of the database that print values otherwise.
const ODD_DEFAULTS: &str = "DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kolkata''', current_database());
    EXECUTE format('ALTER DATABASE %I SET DateStyle = ''German, DMY''', current_database());
    EXECUTE format('ALTER DATABASE %I SET IntervalStyle = ''sql_standard''', current_database());
    EXECUTE format('ALTER DATABASE %I SET extra_float_digits = 0', current_database());
    EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
    EXECUTE format('ALTER DATABASE %I SET array_nulls = off', current_database());
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

#[tokio::test]
async fn every_type_reads_as_in_postgres_through_stream_and_fill() {
    let stage = Stage::shared("types").await;
    stage.execute(include_str!("../data/types.sql")).await;
    stage.execute(ODD_DEFAULTS).await;
    let scene = Scene::on(stage, |config| {
        config
            .entity(Entity::new("streamed", "types.types").set("populate", true))
            .entity(Entity::new("filled", "types.types").set("on_change", "invalidate"))
            .entity(Entity::new("refetched", "types.types_refetched").set("populate", true))
    })
    .await;
    let rows = wanted(&scene, "types.types").await;
    assert!(rows.len() >= 11, "{} rows", rows.len());

    assert_eq!(scene.keys("streamed").await, Vec::<String>::new(), "nothing has been read or written yet");
    // Not by updates: the longer rows have values out of line, which an update that does not touch them leaves out.
    let insert = "BEGIN; CREATE TEMP TABLE kept AS TABLE types.types; DELETE FROM types.types;
        INSERT INTO types.types TABLE kept; COMMIT";
    // Unless the old row is in the stream, too.
    let update = "ALTER TABLE types.types REPLICA IDENTITY FULL; UPDATE types.types SET id = id";
    for write in [insert, update] {
        scene.write(write).await;
        for (id, row) in &rows {
            let entry =
                scene.stored(&format!("streamed:{id}")).await.unwrap_or_else(|| panic!("row {id} did not come"));
            assert_eq!(entry.lo, entry.hi, "an event's label");
            same(&format!("row {id} from the stream"), &entry.value, row);
            let response = scene.get(&format!("streamed/{id}")).await;
            assert_eq!((response.header("x-cache"), &response.text()), ("HIT-L2", row));

            let response = scene.get(&format!("filled/{id}")).await;
            assert_eq!(response.header("x-cache"), "MISS");
            same(&format!("row {id} from a fill"), &response.text(), row);
            assert_eq!(&scene.stored(&format!("filled:{id}")).await.unwrap().value, row);
        }
    }
    scene.write("UPDATE types.types_refetched SET id = id").await;

    // Types that cannot be rendered from the stream: the event drops the entry, and a fill brings it.
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
            // With the whole old row in the stream the new image is complete, else the entry is dropped.
            let (complete, in_l2) = (entity.starts_with("whole"), scene.stored(&format!("{entity}:1")).await);
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
    let toast = "walcache_cache_invalidations_total{entity=\"doc\",cause=\"toast\"}";
    assert!(scene.metric(toast).await.is_some_and(|n| n >= 3.0), "{toast}");
    // The key changes, the body does not; then the body does.
    scene.write("UPDATE docs SET id = 11 WHERE id = 1; UPDATE whole SET id = 11 WHERE id = 1").await;
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
