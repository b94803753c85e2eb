//! Types that are altered while values of them are cached: no row changes, and yet every value reads otherwise.

use super::{same, wanted};
use crate::harness::{Daemon, Entity, Scene, current_lsn, eventually};

const SCHEMA: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN a_mood AS mood;
    CREATE TYPE mood_range AS RANGE (subtype = mood);
    CREATE TYPE pair AS (a int, b text, c bool);
    CREATE DOMAIN a_pair AS pair;
    CREATE TYPE holder AS (mood a_mood, pairs a_pair[]);
    CREATE TYPE pair_range AS RANGE (subtype = pair);
    CREATE TABLE row_type (x int, y text);
    CREATE TYPE casted AS ENUM ('one');
    CREATE FUNCTION casted_to_json(casted) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
    CREATE CAST (casted AS json) WITH FUNCTION casted_to_json(casted);
    CREATE TYPE opaque AS (d casted, e int);
    DO $$ BEGIN EXECUTE format('CREATE ROLE %I', current_database()); END $$;
    CREATE TABLE named (n int);
    CREATE TABLE items (id int PRIMARY KEY, moods a_mood[], mood_range mood_range, pair pair, holders holder[],
        pair_range pair_range, row_type row_type, opaque opaque, relation regclass, rights aclitem[]);
    INSERT INTO items SELECT i, '{sad,ok}', '[sad,ok]', (1, 'b', true)::pair,
        ARRAY[ROW('sad', ARRAY[ROW(1, '"', NULL)::a_pair]::a_pair[])::holder]::holder[],
        pair_range((1, 'b', true)::pair, (2, 'b', true)::pair), (1, 'y')::row_type, ('one', 2)::opaque, 'named',
        ARRAY[makeaclitem(current_database()::text::regrole, 0, 'SELECT', false)] FROM generate_series(1, 2) i;
"#;

/// Alterations, each of which changes how the row reads.
const ALTERATIONS: [&str; 9] = [
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'glum'",
    "ALTER TYPE pair RENAME ATTRIBUTE a TO first",
    "ALTER TYPE pair ADD ATTRIBUTE d date",
    "ALTER TYPE pair DROP ATTRIBUTE c",
    // As many attributes as before, and of the same name and type: but the values are gone.
    "ALTER TYPE pair DROP ATTRIBUTE b, ADD ATTRIBUTE b text",
    "ALTER TABLE row_type RENAME x TO z",
    "ALTER TABLE row_type ADD w int",
    "ALTER TYPE opaque RENAME ATTRIBUTE e TO f",
    "CREATE OR REPLACE FUNCTION casted_to_json(casted) RETURNS json LANGUAGE sql AS $$ SELECT '2'::json $$",
];

/// Alterations of what is not even part of a type: the frequent look at the tables does not show them, a full one does.
const RENAMES: [&str; 2] = [
    "ALTER TABLE named RENAME TO renamed",
    "DO $$ BEGIN EXECUTE format('ALTER ROLE %I RENAME TO %I', current_database(), current_database() || '_2'); END $$",
];

/// What the audit would find out by itself is to be known without it.
async fn unaudited(name: &str) -> Scene {
    Scene::open(name, SCHEMA, |config| {
        let config = config.set("source", "schema_check_interval", "200ms").set("audit", "rate", 0);
        config.entity(Entity::new("item", "items"))
    })
    .await
}

#[tokio::test]
async fn entries_of_before_a_rename_do_not_outlive_a_restart() {
    for (i, rename) in RENAMES.into_iter().enumerate() {
        let scene = unaudited(&format!("altered_name{i}")).await;
        scene.warm("item/1").await;
        let before = wanted(&scene, "items").await;
        scene.daemon.kill().await;
        scene.sql.batch_execute(rename).await.unwrap();
        let after = wanted(&scene, "items").await;
        assert_ne!(before, after, "{rename} changes nothing");
        let daemon = Daemon::start(&scene.config).await;
        daemon.wait_ready().await;
        daemon.wait_applied(current_lsn(&scene.sql).await).await;
        let response = daemon.http().get("/v1/item/1").await.expect(200);
        same(rename, &response.text(), &after[&1]);
    }
}

/// 7: DDL on types has no row events either.
#[tokio::test]
async fn entries_go_when_a_type_reads_otherwise() {
    let scene = unaudited("altered").await;
    for alteration in ALTERATIONS {
        let before = wanted(&scene, "items").await;
        scene.warm("item/1").await;
        scene.write(alteration).await;
        let after = wanted(&scene, "items").await;
        assert_ne!(before, after, "{alteration} changes nothing");
        eventually(&format!("read as it is after {alteration}"), || async {
            let response = scene.get("item/1").await;
            if response.text() == after[&1] { Ok(()) } else { Err(format!("{response:?}")) }
        })
        .await;
        scene.warm("item/1").await;
        // And the stream is rendered by the new type.
        scene.write("UPDATE items SET mood_range = mood_range").await;
        same(alteration, &scene.get("item/1").await.text(), &wanted(&scene, "items").await[&1]);
        scene.verify().await;
    }
}

/// What the stream brings of before the alteration has the old form, also where the daemon reads it afterwards.
#[tokio::test]
async fn changes_of_before_an_alteration_refresh_nothing() {
    let schema = "CREATE TYPE pair AS (a int, b text);
        CREATE TABLE items (id int PRIMARY KEY, pairs pair[]);
        INSERT INTO items VALUES (1, ARRAY[ROW(1, 'b')]::pair[]), (2, NULL);";
    let scene =
        Scene::open("altered_away", schema, |config| config.entity(Entity::new("item", "items").set("populate", true)))
            .await;
    scene.warm("item/1").await;
    scene.daemon.kill().await;
    for step in [
        "UPDATE items SET pairs = ARRAY[ROW(id, 'c')]::pair[]",
        "ALTER TYPE pair DROP ATTRIBUTE b, ADD ATTRIBUTE b text",
        "ALTER TYPE pair RENAME ATTRIBUTE a TO first",
    ] {
        scene.sql.batch_execute(step).await.unwrap();
    }
    let daemon = Daemon::start(&scene.config).await;
    daemon.wait_ready().await;
    daemon.wait_applied(current_lsn(&scene.sql).await).await;
    for (id, row) in wanted(&scene, "items").await {
        for _ in 0..2 {
            let response = daemon.http().get(&format!("/v1/item/{id}")).await.expect(200);
            same(&format!("row {id}"), &response.text(), &row);
        }
    }
}
