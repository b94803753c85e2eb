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
