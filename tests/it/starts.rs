//! Starts and looks at the catalog with many entities: none waits for what another one waits for.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::Client;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{
    Config, Daemon, Entity, Proxy, Stage, WAIT_LIMIT, brisk, cli, current_lsn, eventually, needs_publications, plugin,
};

/// Within this a change is applied while a transaction is open: it would not be at all, were that waited for.
const OPEN: Duration = Duration::from_secs(15);
/// Within this a change is applied while a table is locked: 25 looks that wait for it one after the other take 5 s, always.
const LOCKED: Duration = Duration::from_millis(4500);
/// A look that waits for a lock takes for as long as that is held.
const HELD: Duration = Duration::from_secs(12);

/// A query of a table that is going to be locked.
const OF_LOCKED: &str = r#"
params = { id = "int" }
query = "select n from t0 where id = $1"
depends_on = [{ table = "t0", key = { id = "id" } }]
"#;

/// Servers of its own: a transaction that is open holds up every other test that looks for one.
async fn stage(name: &str, tables: usize) -> Stage {
    let stage = Stage::private(name, PostgresOptions::new(), RedisOptions::new()).await;
    let mut schema =
        String::from("CREATE TABLE unrelated (id int PRIMARY KEY, n int); INSERT INTO unrelated VALUES (1, 0);");
    for n in 0..tables {
        write!(schema, "CREATE TABLE t{n} (id int PRIMARY KEY, n int); INSERT INTO t{n} VALUES (1, 0);").unwrap();
    }
    stage.execute(&schema).await;
    stage
}

fn entities(config: Config, tables: usize) -> Config {
    let config = config.set("freshness", "stale_after", "60s").set("source", "fill_timeout", "10s");
    (0..tables).fold(config, |config, n| config.entity(Entity::new(&format!("e{n}"), &format!("t{n}"))))
}

async fn set_up(config: &Config) {
    let done = cli(config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
}

/// Changes some rows, one after the other: each is applied within the limit.
async fn apply_within(limit: Duration, daemon: &Daemon, sql: &Client, tables: &[&str]) {
    for table in tables {
        sql.batch_execute(&format!("UPDATE {table} SET n = n + 1 WHERE id = 1")).await.unwrap();
        daemon.wait_applied_within(limit, current_lsn(sql).await).await;
    }
}

async fn all_cached(daemon: &Daemon, entities: usize) {
    for n in 0..entities {
        eventually(&format!("cache e{n}"), || async {
            let response = daemon.http().get(&format!("/v1/e{n}/1")).await.expect(200);
            if response.header("x-cache") == "HIT-L1" { Ok(()) } else { Err(format!("{response:?}")) }
        })
        .await;
    }
}

/// 13: without L2, nothing tells at a start which tables were published before: all wait for the transactions that run.
#[tokio::test]
async fn an_open_transaction_holds_up_no_change_after_a_start() {
    let stage = stage("starts_open", 20).await;
    let config = entities(stage.config().without("l2"), 20);
    set_up(&config).await;
    let (open, sql) = (stage.sql().await, stage.sql().await);
    open.batch_execute("BEGIN; UPDATE unrelated SET n = 1").await.unwrap();
    // A snapshot names what runs below the last that has ended.
    sql.batch_execute("UPDATE t1 SET n = n").await.unwrap();
    let daemon = Daemon::start(&config).await;
    daemon.wait_serving().await;
    apply_within(OPEN, &daemon, &sql, &["t0", "t1", "t2", "t0", "t19"]).await;
    let response = daemon.http().get("/v1/e0/1").await.expect(200);
    assert_eq!((response.header("x-cache"), response.json()["n"].as_i64()), ("BYPASS", Some(2)), "{response:?}");
    open.batch_execute("COMMIT").await.unwrap();
    all_cached(&daemon, 20).await;
    apply_within(OPEN, &daemon, &sql, &["t0"]).await;
    assert_eq!(daemon.http().get("/v1/e0/1").await.json()["n"], 3);
}

/// 5, 13: a publication that is altered concerns all of its tables.
#[tokio::test]
async fn an_open_transaction_holds_up_no_change_after_the_publication_was_altered() {
    if needs_publications("starts::an_open_transaction_holds_up_no_change_after_the_publication_was_altered") {
        return;
    }
    let stage = stage("starts_altered", 20).await;
    let config = entities(stage.config(), 20);
    set_up(&config).await;
    let (open, sql) = (stage.sql().await, stage.sql().await);
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    all_cached(&daemon, 20).await;
    open.batch_execute("BEGIN; UPDATE t3 SET n = 10").await.unwrap();
    for publish in ["insert, update, delete", "insert, update, delete, truncate"] {
        sql.batch_execute(&format!("ALTER PUBLICATION {} SET (publish = '{publish}')", stage.name)).await.unwrap();
        apply_within(OPEN, &daemon, &sql, &["t0", "t1", "t2", "t0", "t19"]).await;
    }
    let response = daemon.http().get("/v1/e3/1").await.expect(200);
    assert_eq!((response.header("x-cache"), response.json()["n"].as_i64()), ("BYPASS", Some(0)), "{response:?}");
    open.batch_execute("COMMIT").await.unwrap();
    all_cached(&daemon, 20).await;
    assert_eq!(daemon.http().get("/v1/e3/1").await.json()["n"], 10);
}

/// Each look at a query waits for locks on its tables: many of them wait together, and not with each look at others.
#[tokio::test]
async fn queries_of_a_locked_table_hold_up_no_change() {
    let stage = stage("starts_locked", 2).await;
    stage.execute("ALTER TABLE t0 REPLICA IDENTITY FULL").await;
    let config = entities(stage.config().set("source", "schema_check_interval", "200ms"), 2);
    let config = (0..25).fold(config, |config, n| config.entity(Entity::query(&format!("q{n}"), OF_LOCKED)));
    set_up(&config).await;
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let (mut other, sql) = (stage.sql().await, stage.sql().await);
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK TABLE t0 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // Any query might be made of it.
    sql.batch_execute("CREATE FUNCTION another() RETURNS int LANGUAGE sql AS 'SELECT 1'").await.unwrap();
    let mut fastest = Duration::MAX;
    for n in 0..10 {
        // Another entity is looked at each time.
        sql.batch_execute(&format!("ALTER TABLE t1 ADD COLUMN c{n} int")).await.unwrap();
        let began = Instant::now();
        apply_within(WAIT_LIMIT, &daemon, &sql, &["t1"]).await;
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < LOCKED, "no look took less than {fastest:?}");
    let status = daemon.status().await;
    let of = |name: &str| status["entities"].as_array().unwrap().iter().find(|e| e["name"] == name).unwrap().clone();
    for n in 0..25 {
        let of = of(&format!("q{n}"));
        assert!(of["cause"].as_str().is_some_and(|why| why.contains("query_locked")), "{of}");
    }
    locked.commit().await.unwrap();
    for n in 0..25 {
        eventually(&format!("cache q{n}"), || async {
            let response = daemon.http().get(&format!("/v1/q{n}/1")).await.expect(200);
            if response.header("x-cache") == "HIT-L1" { Ok(()) } else { Err(format!("{response:?}")) }
        })
        .await;
    }
}

/// What could not be looked at since the start has no key that a request could be judged by: that is no fault of the request.
#[tokio::test]
async fn a_query_of_a_table_that_is_locked_at_the_start_is_not_available() {
    let stage = stage("starts_unknown", 1).await;
    stage.execute("ALTER TABLE t0 REPLICA IDENTITY FULL").await;
    let config = stage.config().set("source", "schema_check_interval", "200ms");
    let config = entities(config, 1).entity(Entity::query("q", OF_LOCKED));
    set_up(&config).await;
    let mut other = stage.sql().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK TABLE t0 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let daemon = Daemon::start(&config).await;
    let refused = daemon.http().get("/v1/q/1").await.expect(503).json();
    assert!(refused["type"].as_str().unwrap().contains("entity-unavailable"), "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("is locked"), "{refused}");
    let batch = daemon.http().post("/v1/q/batch", &json!({ "keys": [1] }), &[]).await.expect(503).json();
    assert!(batch["type"].as_str().unwrap().contains("entity-unavailable"), "{batch}");
    locked.commit().await.unwrap();
    eventually("read it", || async {
        let response = daemon.http().get("/v1/q/1").await;
        if response.status == 200 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
}

/// From Postgres 16 on `pg_publication_tables` waits for whoever has locked any table that is published.
#[tokio::test]
async fn a_table_that_is_rewritten_holds_up_no_look_at_another() {
    let stage = stage("starts_rewritten", 2).await;
    let filtered = plugin() == "pgoutput" && stage.version().await >= 15;
    if filtered {
        let tables = "TABLE t0 WHERE (id < 100), TABLE t1 WITH (publish_via_partition_root = true)";
        stage.execute(&format!("CREATE PUBLICATION {} FOR {tables}", stage.name)).await;
    }
    let config = entities(brisk(stage.config()).set("source", "schema_check_interval", "200ms"), 2).set(
        "source",
        "dead_after",
        "15s",
    );
    set_up(&config).await;
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    all_cached(&daemon, 2).await;
    let (mut other, sql) = (stage.sql().await, stage.sql().await);
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK TABLE t0 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for change in ["ALTER TABLE t1 ADD COLUMN more int", "ALTER TABLE t1 DROP COLUMN more"] {
        sql.batch_execute(change).await.unwrap();
        apply_within(HELD, &daemon, &sql, &["t1", "t1"]).await;
    }
    if filtered {
        // Which of its rows are published now is not told without a lock, but by old versions.
        let publish = "SET (publish = 'insert, update, delete, truncate')";
        sql.batch_execute(&format!("ALTER PUBLICATION {} {publish}", stage.name)).await.unwrap();
        apply_within(HELD, &daemon, &sql, &["t1", "t1"]).await;
        let status = daemon.status().await;
        let of = status["entities"].as_array().unwrap().iter().find(|e| e["name"] == "e0").unwrap().clone();
        assert_eq!(of["state"], "uncached", "{of}");
    }
    assert!(!daemon.log().contains("the stream has ended"), "{}", daemon.log());
    locked.commit().await.unwrap();
    apply_within(HELD, &daemon, &sql, &["t0", "t1"]).await;
    all_cached(&daemon, 2).await;
}

/// 19: what one answer may take is limited, not what all of them take together.
#[tokio::test]
async fn many_entities_over_a_slow_network() {
    let stage = stage("starts_slow", 60).await;
    let config = brisk(stage.config()).set("source", "heartbeat_interval", "1s").set("source", "dead_after", "6s");
    let config = entities(config, 60);
    set_up(&config).await;
    let proxy = Proxy::start(stage.postgres.port()).await;
    proxy.delay(Duration::from_millis(10));
    let config = config.set("source", "url", stage.postgres.url_at(proxy.port(), &stage.name));
    let sql = stage.sql().await;
    for statement in ["UPDATE t0 SET n = n + 1", "DROP TABLE t59"] {
        sql.batch_execute(statement).await.unwrap();
        let daemon = Daemon::start(&config).await;
        daemon.wait_ready().await;
        daemon.wait_applied(current_lsn(&sql).await).await;
        assert!(!daemon.log().contains("is not available"), "{}", daemon.log());
        assert_eq!(daemon.http().get("/v1/e0/1").await.expect(200).json()["n"], 1);
        assert!(daemon.terminate().await.success());
    }
}

/// What is published of tables is told without the view that tells it: by all ways in which a publication may have them.
#[tokio::test]
async fn publications_of_every_kind() {
    if needs_publications("starts::publications_of_every_kind") {
        return;
    }
    let schema = "CREATE SCHEMA s;
        CREATE TABLE s.plain (id int PRIMARY KEY, n int);
        CREATE TABLE s.root (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
        CREATE TABLE s.part PARTITION OF s.root FOR VALUES FROM (0) TO (100);
        INSERT INTO s.plain VALUES (1, 0); INSERT INTO s.root VALUES (1, 0)";
    let stage = Stage::shared("starts_kinds").await;
    stage.execute(schema).await;
    let with_schemas = stage.version().await >= 15;
    let name = stage.name.clone();
    let mut kinds =
        vec![("FOR ALL TABLES", true), ("FOR TABLE s.plain, s.root", true), ("FOR TABLE s.plain, s.part", true)];
    kinds.extend([("FOR ALL TABLES", false), ("FOR TABLE s.plain, s.root", false)]);
    if with_schemas {
        kinds.extend([("FOR TABLES IN SCHEMA s", true), ("FOR TABLES IN SCHEMA s", false)]);
        kinds.push(("FOR TABLE s.plain (id), s.root WHERE (n < 5)", true));
    }
    let sql = stage.sql().await;
    for (kind, via_root) in kinds {
        sql.batch_execute(&format!("CREATE PUBLICATION {name} {kind} WITH (publish_via_partition_root = {via_root})"))
            .await
            .unwrap();
        let published = "SELECT tablename::text FROM pg_publication_tables WHERE pubname = $1";
        let rows = sql.query(published, &[&name]).await.unwrap();
        let shown: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        for table in ["plain", "root", "part"] {
            let config = stage.config().entity(Entity::new("it", &format!("s.{table}")));
            let checked = cli(&config, &["check", "--json"], &[]).await;
            let told: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
            let codes: Vec<&str> =
                told["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap()).collect();
            let refused = ["publication_table", "publication_via_root", "publication_partition"];
            let is_told = !codes.iter().any(|code| refused.contains(code));
            let is_shown = shown.iter().any(|shown| shown == table);
            assert_eq!(is_told, is_shown, "{kind} {via_root} {table}: {codes:?}, {shown:?}");
        }
        sql.batch_execute(&format!("DROP PUBLICATION {name}")).await.unwrap();
    }
}

/// 13: an entity that waits for open transactions at a start is said to be out of the tiers, by its name and its gauge. What
/// voids all of it meanwhile starts one generation, not one each time: nothing is cached of it.
#[tokio::test]
async fn entities_that_wait_at_a_start_are_told() {
    let stage = stage("starts_told", 2).await;
    for l2 in [true, false] {
        let mut config = entities(stage.config(), 2);
        if !l2 {
            config = config.without("l2");
        }
        set_up(&config).await;
        let (open, sql) = (stage.sql().await, stage.sql().await);
        open.batch_execute("BEGIN; UPDATE unrelated SET n = 1").await.unwrap();
        // A snapshot names what runs below the last that has ended.
        sql.batch_execute("UPDATE t1 SET n = n").await.unwrap();
        let daemon = Daemon::start(&config).await;
        daemon.wait_serving().await;
        let gauge = async |n: usize| daemon.metric(&format!("walcache_entity_servable{{entity=\"e{n}\"}}")).await;
        eventually("say that it waits", || async {
            let log = daemon.log();
            if log.contains("\"entities\":\"e0, e1\"") { Ok(()) } else { Err(log) }
        })
        .await;
        for n in 0..2 {
            eventually("have the gauge at 0", || async {
                let found = gauge(n).await;
                if found == Some(0.0) { Ok(()) } else { Err(format!("e{n}: {found:?}")) }
            })
            .await;
        }
        let generation = async || daemon.status().await["entities"][0]["generation"].as_u64().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let void = r#"SELECT pg_logical_emit_message(true, 'walcache', '{"invalidate":{"entity":"e0"}}')"#;
            sql.batch_execute(void).await.unwrap();
            daemon.wait_applied(current_lsn(&sql).await).await;
            seen.insert(generation().await);
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
        sql.batch_execute("UPDATE t0 SET n = 5").await.unwrap();
        open.batch_execute("COMMIT").await.unwrap();
        all_cached(&daemon, 2).await;
        assert_eq!(daemon.http().get("/v1/e0/1").await.json()["n"], 5);
        assert!(generation().await > *seen.last().unwrap(), "what was read meanwhile bears an older one");
        assert_eq!((gauge(0).await, gauge(1).await), (Some(1.0), Some(1.0)));
        assert!(daemon.terminate().await.success());
        eventually("drop the slot", || async {
            // The server may take it for used for a moment still.
            sql.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", stage.name)).await
        })
        .await;
    }
}

/// 1, 5, 13: a daemon ends while an entity waits for transactions that were open when its table was published. The next one
/// waits for them, too: they are not in the stream.
#[tokio::test]
async fn what_a_killed_daemon_waited_for_is_waited_for() {
    if needs_publications("starts::what_a_killed_daemon_waited_for_is_waited_for") {
        return;
    }
    let stage = stage("starts_killed", 2).await;
    let config = entities(stage.config(), 2);
    set_up(&config).await;
    let (open, sql) = (stage.sql().await, stage.sql().await);
    sql.batch_execute(&format!("ALTER PUBLICATION {} DROP TABLE t0", stage.name)).await.unwrap();
    open.batch_execute("BEGIN; UPDATE t0 SET n = 10 WHERE id = 1").await.unwrap();
    sql.batch_execute(&format!("ALTER PUBLICATION {} ADD TABLE t0", stage.name)).await.unwrap();
    let started = async || {
        let daemon = Daemon::start(&config).await;
        daemon.wait_serving().await;
        eventually("say that it waits", || async {
            let log = daemon.log();
            if log.contains("not cached before all transactions have ended") { Ok(()) } else { Err(log) }
        })
        .await;
        daemon.wait_applied(current_lsn(&sql).await).await;
        for _ in 0..2 {
            let response = daemon.http().get("/v1/e0/1").await.expect(200);
            assert_eq!(
                (response.header("x-cache"), response.json()["n"].as_i64()),
                ("BYPASS", Some(0)),
                "{response:?}"
            );
        }
        daemon
    };
    for _ in 0..2 {
        started().await.kill().await;
    }
    let daemon = started().await;
    open.batch_execute("COMMIT").await.unwrap();
    all_cached(&daemon, 2).await;
    assert_eq!(daemon.http().get("/v1/e0/1").await.json()["n"], 10);
    let generation = daemon.status().await["entities"][0]["generation"].clone();
    assert!(daemon.terminate().await.success());
    // What has joined is known to the next one.
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    assert_eq!(daemon.status().await["entities"][0]["generation"], generation);
}
