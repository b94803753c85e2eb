//! The event triggers: who makes them, what they tell, and that they stand in nobody's way.

use super::Noticed;
use crate::harness::{Entity, Finished, Scene, Stage, cli};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'one')";

fn said(finished: &Finished, code: i32, wanted: &str) {
    assert_eq!(finished.status.code(), Some(code), "{finished:?}");
    assert!(finished.stdout.contains(wanted), "lacks {wanted:?}: {finished:?}");
}

#[tokio::test]
async fn setup_makes_them_once_and_check_says_whether_they_are_there() {
    let stage = Stage::shared("ddl_setup").await;
    stage.execute(SCHEMA).await;
    let config = stage.config().entity(Entity::new("item", "items"));
    let printed = cli(&config, &["setup"], &[]).await;
    said(&printed, 0, "CREATE EVENT TRIGGER walcache_ddl ON ddl_command_end");
    said(&cli(&config, &["setup", "--apply"], &[]).await, 0, "applied: CREATE EVENT TRIGGER walcache_drop ON sql_drop");
    let polled = config.clone().set("source", "event_triggers", false);
    for config in [&config, &polled] {
        said(&cli(config, &["setup", "--apply"], &[]).await, 0, "nothing to do");
        said(
            &cli(config, &["check"], &[]).await,
            0,
            "schema changes: announced by event triggers, and looked for every 1s",
        );
    }
    for damage in [
        "ALTER EVENT TRIGGER walcache_ddl DISABLE",
        "DROP EVENT TRIGGER walcache_drop",
        "CREATE OR REPLACE FUNCTION walcache.announce_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "DROP FUNCTION walcache.announce_ddl CASCADE",
    ] {
        stage.execute(damage).await;
        said(&cli(&config, &["check"], &[]).await, 0, "warning[ddl_not_announced]");
        let json = cli(&config, &["check", "--json"], &[]).await;
        let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!((&json["ok"], &json["schema_changes"]), (&true.into(), &"poll".into()), "{json}");
        let without = cli(&polled, &["check"], &[]).await;
        said(&without, 0, "schema changes: looked for every 1s");
        assert!(!without.stdout.contains("ddl_not_announced"), "{without:?}");
        said(&cli(&config, &["setup", "--apply"], &[]).await, 0, "applied: CREATE EVENT TRIGGER walcache_ddl");
        said(&cli(&config, &["setup", "--apply"], &[]).await, 0, "nothing to do");
    }
}

/// A role that owns everything but is no superuser: setup succeeds, says what it has left out, and walcache looks.
#[tokio::test]
async fn a_role_that_may_not_make_them_does_without() {
    let stage = Stage::shared("ddl_role").await;
    let url = format!("postgres://{0}:right@127.0.0.1:{1}/{0}", stage.name, stage.postgres.port());
    stage
        .execute(&format!(
            "CREATE ROLE {0} LOGIN REPLICATION PASSWORD 'right'; GRANT ALL ON DATABASE {0} TO {0}; GRANT ALL ON SCHEMA public TO {0};
             SET ROLE {0}; {SCHEMA}",
            stage.name
        ))
        .await;
    let config = stage.config().set("source", "url", url).entity(Entity::new("item", "items"));
    let done = cli(&config, &["setup", "--apply"], &[]).await;
    said(&done, 0, "left out, since the role may not do it");
    said(&done, 0, "42501");
    said(&done, 0, "errors 0, warnings 1");
    said(&cli(&config, &["setup", "--apply"], &[]).await, 0, "nothing to do");
    said(&cli(&config, &["check"], &[]).await, 0, "schema changes: looked for every 1s");
    // An administrator can, and the role is none the wiser: it is not its function.
    let admin = stage.source_url();
    said(&cli(&config, &["setup", "--apply", "--url", &admin], &[]).await, 0, "applied: CREATE EVENT TRIGGER");
    said(&cli(&config, &["check"], &[]).await, 0, "schema changes: announced by event triggers");
}

async fn messages(scene: &Scene) -> i64 {
    let query = "SELECT count(*) FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', \
                 'publication_names', $2, 'messages', 'true') WHERE position('walcache.ddl'::bytea IN data) > 0";
    let slot = format!("{}_listener", scene.stage.name);
    scene.sql.query_one(query, &[&slot, &scene.stage.name]).await.unwrap().get(0)
}

#[tokio::test]
async fn they_tell_what_matters_and_stand_in_nobodys_way() {
    let scene = super::items("ddl_tell", Noticed::Announced).await;
    let slot = format!("{}_listener", scene.stage.name);
    let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
    scene.sql.execute(create, &[&slot]).await.unwrap();
    scene
        .write(
            "CREATE TEMP TABLE mine (id serial PRIMARY KEY, name text DEFAULT 'x'); ALTER TABLE mine ADD n int;
             CREATE INDEX ON mine (n); DROP TABLE mine; CREATE TEMP TABLE mine AS SELECT 1; DROP TABLE mine;
             CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION one(); COMMENT ON TABLE items IS 'x';
             CREATE SEQUENCE numbers; DROP SEQUENCE numbers; ANALYZE items",
        )
        .await;
    assert_eq!(messages(&scene).await, 0);
    scene.write("BEGIN; ALTER TABLE items ADD undone int; ROLLBACK").await;
    assert_eq!(messages(&scene).await, 0);
    scene.write("ALTER TABLE items ADD added int").await;
    assert_eq!(messages(&scene).await, 1);
    // Whatever session_replication_role says; and where the message cannot be written, the statement goes through.
    scene
        .write("SET session_replication_role = 'replica'; ALTER TABLE items DROP added; RESET session_replication_role")
        .await;
    assert_eq!(messages(&scene).await, 2, "the command and what it dropped");
    scene.sql.batch_execute(&emit_message("REVOKE", "FROM")).await.unwrap();
    scene
        .sql
        .batch_execute(
            "CREATE ROLE ddl_tell_owner; ALTER TABLE items OWNER TO ddl_tell_owner; GRANT ALL ON SCHEMA public TO ddl_tell_owner",
        )
        .await
        .unwrap();
    messages(&scene).await;
    scene
        .sql
        .batch_execute("SET ROLE ddl_tell_owner; ALTER TABLE items ADD more int DEFAULT 5; RESET ROLE")
        .await
        .unwrap();
    assert_eq!(messages(&scene).await, 0);
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    scene.sql.batch_execute(&drop).await.unwrap();
    // A row tells of it, too.
    scene.write("UPDATE items SET name = 'ONE' WHERE id = 1").await;
    scene.verify().await;
    scene.sql.batch_execute(&emit_message("GRANT", "TO")).await.unwrap();
    scene
        .sql
        .batch_execute("ALTER TABLE items OWNER TO postgres; DROP OWNED BY ddl_tell_owner; DROP ROLE ddl_tell_owner")
        .await
        .unwrap();
}

/// Gives or takes everybody's right to write messages; from Postgres 17 on the function has one more argument.
fn emit_message(verb: &str, whom: &str) -> String {
    format!(
        "DO $$ DECLARE f regprocedure; BEGIN
           FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
             EXECUTE format('{verb} EXECUTE ON FUNCTION %s {whom} PUBLIC', f);
           END LOOP;
         END $$"
    )
}
