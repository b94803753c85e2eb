//! Row-level security: neither the stream nor fills obey policies, so a table that has them is refused, unless the entity
//! says that every reader may see every row.

use crate::harness::{Daemon, Entity, Scene, Stage, cli, codes, eventually, findings, mend};

const SCHEMA: &str = "CREATE TABLE notes (id int PRIMARY KEY, owner text, body text);
    INSERT INTO notes VALUES (1, 'ann', 'of ann'), (2, 'bob', 'of bob');";

/// 10: refused by `check` and `run`, in words that name the key; and let through by it.
#[tokio::test]
async fn a_table_with_row_security_is_refused_unless_the_entity_says_otherwise() {
    let stage = Stage::shared("rls").await;
    stage.execute(&format!("{SCHEMA} ALTER TABLE notes ENABLE ROW LEVEL SECURITY")).await;
    let plain = stage.config().entity(Entity::new("note", "notes"));
    for verb in [&["check"][..], &["run"], &["setup", "--apply"]] {
        let finished = cli(&plain, verb, &[]).await;
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.status.code(), Some(1), "{said}");
        for words in ["row_security", "every reader would see every row", "bypass_rls = true"] {
            assert!(said.contains(words), "lacks {words:?}: {said}");
        }
    }
    let meant = stage.config().entity(Entity::new("note", "notes").set("bypass_rls", true));
    let done = cli(&meant, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(codes(&findings(&meant).await, "error"), [""; 0]);
    let daemon = Daemon::start(&meant).await;
    daemon.wait_ready().await;
    for id in [1, 2] {
        daemon.http().get(&format!("/v1/note/{id}")).await.expect(200);
    }
}

/// 10: with `bypass_rls` the role must see every row, or what it does not see would be cached as absent.
#[tokio::test]
async fn a_role_that_policies_bind_is_refused_even_then() {
    let stage = Stage::shared("rls_role").await;
    let role = &stage.name;
    stage.execute(&format!("{SCHEMA} CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'right'")).await;
    let url = format!("postgres://{role}:right@127.0.0.1:{}/{role}", stage.postgres.port());
    let entity = Entity::new("note", "notes").set("bypass_rls", true);
    let config = stage.config().set("source", "url", url).entity(entity);
    let admin = stage.source_url();
    let done = cli(&config, &["setup", "--apply", "--url", &admin], &[]).await;
    assert!(done.status.success(), "{done:?}");
    stage.execute("ALTER TABLE notes ENABLE ROW LEVEL SECURITY").await;
    assert_eq!(codes(&findings(&config).await, "error"), ["row_security_role"]);
    assert_eq!(mend(&stage, &config).await, ["row_security_role"]);
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    daemon.http().get("/v1/note/1").await.expect(200);
    // An owner is bound only where that is forced.
    stage.execute(&format!("ALTER ROLE {role} NOBYPASSRLS; ALTER TABLE notes OWNER TO {role}")).await;
    assert_eq!(codes(&findings(&config).await, "error"), [""; 0]);
    stage.execute("ALTER TABLE notes FORCE ROW LEVEL SECURITY").await;
    assert_eq!(codes(&findings(&config).await, "error"), ["row_security_role"]);
}

/// 10: enabled while the daemon runs: reads are refused, from whichever tier, and not read from Postgres either.
#[tokio::test]
async fn row_security_that_is_enabled_while_running_ends_all_reads() {
    let scene = Scene::open("rls_enabled", SCHEMA, |config| {
        config
            .set("source", "schema_check_interval", "200ms")
            .entity(Entity::new("note", "notes"))
            .entity(Entity::new("open", "notes").set("bypass_rls", true))
    })
    .await;
    scene.warm("note/1").await;
    scene.warm("open/1").await;
    scene.write("ALTER TABLE notes ENABLE ROW LEVEL SECURITY").await;
    eventually("refuse reads", || async {
        let response = scene.get("note/1").await;
        if response.status == 503 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    let fresh: &[(&str, &str)] = &[("cache-control", "no-cache")];
    for (key, headers) in [("1", &[][..]), ("2", &[]), ("1", fresh), ("9", fresh)] {
        let response = scene.http.get_with(&format!("/v1/note/{key}"), headers).await.expect(503);
        let text = response.text();
        assert!(text.contains("row-level security") && !text.contains("of ann"), "{text}");
    }
    let batch = serde_json::json!({"keys": ["1", "2"]});
    scene.http.post("/v1/note/batch", &batch, &[]).await.expect(503);
    // The other entity of the table goes on.
    scene.write("UPDATE notes SET body = 'new' WHERE id = 1").await;
    assert_eq!(scene.get("open/1").await.expect(200).json()["body"], "new");
    // A policy may be lifted again.
    scene.write("ALTER TABLE notes DISABLE ROW LEVEL SECURITY").await;
    eventually("answer again", || async {
        let response = scene.get("note/1").await;
        if response.status == 200 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    assert_eq!(scene.warm("note/1").await.json()["body"], "new");
    scene.verify().await;
}

/// 10: what readers must not see they do not see either while something else that the entity is made of is locked, so that
/// it cannot be looked at further.
#[tokio::test]
async fn a_lock_on_another_table_opens_nothing() {
    let schema =
        format!("{SCHEMA} CREATE TABLE tags (id int PRIMARY KEY, note_id int); INSERT INTO tags VALUES (1, 1);");
    let of_notes = r#"
params = { id = "int" }
query = "select id, body from notes where id = $1"
shape = "one"
depends_on = [
  { table = "notes", key = { id = "id" } },
  { table = "tags", lookup = "select note_id from tags where id = $1", from = ["id"] },
]
"#;
    let scene = Scene::open("rls_locked", &schema, |config| {
        config.set("source", "schema_check_interval", "200ms").entity(Entity::query("note", of_notes))
    })
    .await;
    scene.warm("note/1").await;
    scene.write("ALTER TABLE notes ENABLE ROW LEVEL SECURITY").await;
    let standing = async || {
        let status = scene.daemon.status().await;
        let text = |name: &str| status["entities"][0][name].as_str().unwrap_or_default().to_owned();
        (text("state"), text("cause"))
    };
    let stands = async |state: &str, is_right: &dyn Fn(&str) -> bool| {
        eventually(&format!("be {state}"), || async {
            let now = standing().await;
            if now.0 == state && is_right(&now.1) { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    };
    stands("unreadable", &|cause| !cause.contains("query_locked")).await;
    let other = scene.stage.sql().await;
    other.batch_execute("BEGIN; LOCK TABLE tags IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // It is to be looked at again.
    scene.sql.batch_execute("ALTER TABLE notes ADD COLUMN more int").await.unwrap();
    stands("unreadable", &|cause| cause.contains("query_locked")).await;
    let refused = scene.get("note/1").await.expect(503).text();
    assert!(refused.contains("row-level security") && !refused.contains("of ann"), "{refused}");
    other.batch_execute("COMMIT").await.unwrap();
    stands("unreadable", &|cause| !cause.contains("query_locked")).await;
    scene.write("ALTER TABLE notes DISABLE ROW LEVEL SECURITY").await;
    stands("cached", &|_| true).await;
    assert_eq!(scene.warm("note/1").await.json()["body"], "of ann");
    scene.verify().await;
}

/// A query that reads a table with policies shows nobody its rows, whether or not it depends on it.
#[tokio::test]
async fn a_query_of_a_table_that_is_not_named_opens_nothing() {
    let stage = Stage::shared("rls_unnamed").await;
    stage
        .execute(&format!("{SCHEMA} CREATE TABLE owners (name text PRIMARY KEY); INSERT INTO owners VALUES ('ann')"))
        .await;
    let query = r#"
params = { name = "text" }
query = "select n.body from owners o join notes n on n.owner = o.name where o.name = $1"
depends_on = [{ table = "owners", key = { name = "name" } }]
"#;
    // As the daemon would run on: the table is not named, and so the entity is not cached.
    let config = stage.config().set("source", "schema_check_interval", "200ms");
    let config = config.entity(Entity::new("owner", "owners")).entity(Entity::query("bodies", query));
    let named = query.replace("depends_on = [", "depends_on = [{ table = \"notes\", all = true }, ");
    let at_first = stage.config().entity(Entity::new("owner", "owners")).entity(Entity::query("bodies", &named));
    let done = cli(&at_first, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    Daemon::start(&at_first).await.wait_ready().await;
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    assert_eq!(daemon.http().get("/v1/bodies/ann").await.expect(200).header("x-cache"), "BYPASS");
    stage.execute("ALTER TABLE notes ENABLE ROW LEVEL SECURITY; ALTER TABLE owners ADD COLUMN more int").await;
    eventually("refuse to read", || async {
        let response = daemon.http().get("/v1/bodies/ann").await;
        if response.status == 503 && response.text().contains("row-level security") {
            Ok(())
        } else {
            Err(response.text())
        }
    })
    .await;
    assert!(codes(&findings(&config).await, "error").contains(&"row_security"));
}
