//! What `check` says of the statements that name the keys to warm, and what `setup` grants for them.

use serde_json::{Value, json};

use super::{ended, warm};
use crate::harness::{Daemon, Entity, Stage, cli, codes, eventually, findings};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL, code text);
    CREATE TABLE pairs (a int, b text, PRIMARY KEY (a, b));
    CREATE TABLE best (id int, code text);
    INSERT INTO items SELECT i, i, 'c' || i FROM generate_series(1, 10) i";

fn refused(found: &[Value]) -> &Value {
    found.iter().find(|finding| finding["code"] == "warm_refused").unwrap_or_else(|| panic!("{found:#?}"))
}

#[tokio::test]
async fn what_the_database_would_refuse_is_found_before() {
    let stage = Stage::shared("warm_check").await;
    stage.execute(SCHEMA).await;
    let config = |table: &str, how: Value| stage.config().entity(Entity::new("it", table).set("warm", warm(how)));
    let done = cli(&config("items", json!({})), &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    for (table, how, said) in [
        ("items", json!({"where": "nope = 1"}), "warm.where: column \"nope\" does not exist"),
        ("items", json!({"where": "n"}), "must be type boolean"),
        ("items", json!({"where": "n > $1"}), "warm.where has a parameter"),
        ("items", json!({"keys": "selct id from best"}), "syntax error at or near \"selct\""),
        (
            "items",
            json!({"keys": "select code from best"}),
            "warm.keys gives (text), and a key is (id pg_catalog.int4)",
        ),
        (
            "items",
            json!({"keys": "select id, code from best"}),
            "warm.keys gives (int4, text), and a key is (id pg_catalog.int4)",
        ),
        ("items", json!({"keys": "delete from best returning id"}), "warm.keys: "),
        ("items", json!({"keys": "select id from bets"}), "relation \"bets\" does not exist"),
        (
            "pairs",
            json!({"keys": "select id from best"}),
            "warm.keys gives (int4), and a key is (a pg_catalog.int4, b pg_catalog.text)",
        ),
    ] {
        let config = config(table, how.clone());
        let found = findings(&config).await;
        let refused = refused(&found);
        assert_eq!((&refused["severity"], &refused["setup"]), (&json!("error"), &Value::Null), "{how}: {refused}");
        assert!(refused["what"].as_str().unwrap().contains(said), "{how}: {refused}");
        assert_eq!(cli(&config, &["check"], &[]).await.status.code(), Some(1));
        assert_eq!(cli(&config, &["setup", "--apply"], &[]).await.status.code(), Some(1), "{how}");
    }
    for (table, how) in [
        ("items", json!({"where": "n > 3 -- and so on"})),
        ("items", json!({"keys": "select id from best order by code desc limit 5;"})),
        ("items", json!({"keys": "with b as (select id from best) select id::bigint from b"})),
        ("pairs", json!({"keys": "select id, code from best"})),
        ("pairs", json!({"keys": "select 1, 'x'::varchar(3)"})),
    ] {
        let found = findings(&config(table, how.clone())).await;
        assert!(!codes(&found, "error").contains(&"warm_refused"), "{how}: {found:#?}");
    }
}

/// Whoever reads the keys to warm needs rights that nothing else needs. And a daemon whose statement is refused runs, and
/// counts that.
#[tokio::test]
async fn rights_to_read_keys_are_granted_by_setup() {
    let stage = Stage::shared("warm_rights").await;
    stage.execute(SCHEMA).await;
    let role = &stage.name;
    stage.execute(&format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'right'")).await;
    let url = format!("postgres://{role}:right@127.0.0.1:{}/{role}", stage.postgres.port());
    let how = json!({"on": ["start"], "keys": "select id from best"});
    let config = stage.config().set("source", "url", url);
    let config = config.entity(Entity::new("it", "items").set("warm", warm(how)));
    let admin = stage.source_url();
    let apply = ["setup", "--apply", "--url", admin.as_str()];
    let done = cli(&config, &apply, &[]).await;
    let grant = format!("GRANT SELECT ON \"public\".\"best\" TO \"{role}\"");
    assert!(done.status.success() && done.stdout.contains(&grant), "{done:?}");
    assert_eq!(codes(&findings(&config).await, "error"), [""; 0]);

    stage.execute(&format!("REVOKE SELECT ON best FROM {role}")).await;
    let found = findings(&config).await;
    let refused = refused(&found);
    assert_eq!((&refused["sql"], &refused["setup"]), (&json!(grant), &json!("grant")), "{refused}");
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let job = ended(&daemon, "it", |_| true).await;
    assert_eq!(job["state"], "failed", "{job}");
    eventually("count it", || async {
        let text = daemon.admin().get("/metrics").await.expect(200).text();
        let line = text.lines().find(|line| line.starts_with("walcache_warming_failures_total{entity=\"it\"}"));
        if line.is_some_and(|line| line.ends_with(" 1")) { Ok(()) } else { Err(format!("{line:?}")) }
    })
    .await;
}
