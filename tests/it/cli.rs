//! What an operator may do wrong: each has its exit code and says what to do. And `setup`, which puts it right.

use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use tokio::process::Command;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Config, Daemon, Entity, Stage, cli, needs_publications};

const SCHEMA: &str = "CREATE TABLE products (id int PRIMARY KEY, name text); CREATE TABLE bare (id int, name text);
    INSERT INTO products VALUES (1, 'one')";

/// A port on which nobody listens, nor will.
const NOWHERE: u16 = 1;

async fn stage(name: &str) -> Stage {
    let stage = Stage::shared(name).await;
    stage.execute(SCHEMA).await;
    stage
}

fn product(config: Config) -> Config {
    config.entity(Entity::new("product", "public.products"))
}

/// Runs the binary with exactly these arguments.
async fn raw(args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walcache"));
    command.args(args).current_dir(dir).env_remove("WALCACHE_CONFIG").kill_on_drop(true).output().await.unwrap()
}

#[tokio::test]
async fn a_configuration_with_a_mistake_names_the_place_and_what_is_meant() {
    let config = || product(Config::new("postgres://u:p@127.0.0.1/d", "s", "p", "redis://127.0.0.1", ""));
    let cases: [(Config, &[&str]); 8] = [
        (config().set("l1", "max_sise", "1MiB"), &["walcache.toml:", "max_sise", "did you mean `max_size`?"]),
        (config().set("sorce", "slot", "x"), &["sorce", "did you mean `source`?"]),
        (config().set("l1", "max_size", "much"), &["walcache.toml:", "much"]),
        (config().set("source", "plugin", "decoderbufs"), &["decoderbufs", "wal2json", "pgoutput"]),
        (config().set("source", "slot", "Not A Slot"), &["source.slot", "a-z, 0-9 and _"]),
        (config().entity(Entity::new("product", "products")), &["entity[1].name", "unique"]),
        (config().entity(Entity::new("p2", "t").set("on_change", "refesh")), &["refesh", "did you mean `refresh`?"]),
        (config().entity(Entity::new("p2", "t").set("tll", "1h")), &["tll", "did you mean `ttl`?"]),
    ];
    for (config, said) in cases {
        for verb in [&["check"][..], &["setup"], &["run"]] {
            cli(&config, verb, &[]).await.ended(78, said);
        }
    }
    let env = [("WALCACHE__HTTP__LISTN", "127.0.0.1:1")];
    cli(&config(), &["check"], &env).await.ended(78, &["WALCACHE__HTTP__LISTN", "did you mean `listen`?"]);
    let offline = cli(&config(), &["check", "--offline"], &[]).await;
    offline.ended(0, &["configuration: entities 1, errors 0"]);
}

#[tokio::test]
async fn no_configuration_and_bad_usage() {
    let dir = tempfile::tempdir().unwrap();
    let missing = raw(&["run"], dir.path()).await;
    assert_eq!(missing.status.code(), Some(78));
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(said.contains("walcache.toml") && said.contains("No such file"), "{said}");
    let missing = raw(&["check", "--config", "other.toml"], dir.path()).await;
    assert_eq!(missing.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("other.toml"));
    for args in [&["rum"][..], &["run", "--fast"], &["check", "extra"], &["setup", "--url"]] {
        let output = raw(args, dir.path()).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--help"), "{args:?}: {output:?}");
    }
    // Without a verb it shows what there is.
    let bare = raw(&[], dir.path()).await;
    assert_eq!(bare.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bare.stderr).contains("Usage: walcache"), "{bare:?}");
    for args in [&["--help"][..], &["--version"], &["check", "--help"]] {
        assert_eq!(raw(args, dir.path()).await.status.code(), Some(0), "{args:?}");
    }
}

#[tokio::test]
async fn tables_that_cannot_be_cached() {
    let stage = stage("tables").await;
    let config = |table| stage.config().entity(Entity::new("product", table));
    let said = ["table_missing", "public.product does not exist", "did you mean public.products?"];
    cli(&config("public.product"), &["check"], &[]).await.ended(1, &said);
    cli(&config("product"), &["run"], &[]).await.ended(1, &said);
    cli(&config("product"), &["setup", "--apply"], &[]).await.ended(1, &said);
    let said = ["primary_key_missing", "public.bare", "ALTER TABLE \"public\".\"bare\" ADD PRIMARY KEY"];
    cli(&config("bare"), &["check"], &[]).await.ended(1, &said);
    cli(&config("bare"), &["run"], &[]).await.ended(1, &said[..2]);
    let key = || vec![toml::Value::from("id")];
    let keyed = stage.config().entity(Entity::new("bare", "bare").set("key", key()));
    cli(&keyed, &["check"], &[]).await.ended(1, &["key_not_unique", "bare"]);
    let columns = vec![toml::Value::from("nam")];
    let columns = stage.config().entity(Entity::new("product", "products").set("columns", columns));
    cli(&columns, &["check"], &[]).await.ended(1, &["column_missing", "did you mean name?"]);

    let json = cli(&config("public.product"), &["check", "--json"], &[]).await;
    assert_eq!((json.status.code(), json.stderr.as_str()), (Some(1), ""));
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert!(json["findings"].as_array().unwrap().iter().any(|finding| finding["code"] == "table_missing"), "{json}");
}

#[tokio::test]
async fn a_server_without_logical_decoding() {
    let postgres = PostgresOptions::new().setting("wal_level", "replica");
    let stage = Stage::private("replica", postgres, RedisOptions::new()).await;
    stage.execute(SCHEMA).await;
    let said = ["wal_level", "wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'", "restart the server"];
    for verb in [&["check"][..], &["run"], &["setup", "--apply"]] {
        cli(&product(stage.config()), verb, &[]).await.ended(1, &said);
    }
}

#[tokio::test]
async fn a_role_without_replication() {
    let stage = stage("role").await;
    stage.execute(&format!("CREATE ROLE {} LOGIN PASSWORD 'right'", stage.name)).await;
    let url = format!("postgres://{0}:right@127.0.0.1:{1}/{0}", stage.name, stage.postgres.port());
    let config = product(stage.config().set("source", "url", url));
    let alter = format!("ALTER ROLE \"{}\" REPLICATION", stage.name);
    let said = ["role_replication", alter.as_str(), "GRANT SELECT ON \"public\".\"products\""];
    cli(&config, &["check"], &[]).await.ended(1, &said);
    cli(&config, &["run"], &[]).await.ended(1, &said);
    // It cannot give itself what it lacks; an administrator can.
    cli(&config, &["setup", "--apply"], &[]).await.ended(77, &["42501", "--url"]);
    let admin = stage.source_url();
    cli(&config, &["setup", "--apply", "--url", &admin], &[]).await.ended(0, &[&alter, "errors 0"]);
    cli(&config, &["check"], &[]).await.ended(0, &["errors 0"]);
}

#[tokio::test]
async fn a_wrong_password_and_a_server_that_is_not_there() {
    let stage = stage("password").await;
    let wrong = stage.source_url().replace(stage.postgres.password(), "mistaken123");
    let config = product(stage.config().set("source", "url", wrong));
    for verb in [&["check"][..], &["run"], &["setup"]] {
        let finished = cli(&config, verb, &[]).await;
        finished.ended(77, &["28P01", "source.url"]);
        assert!(!format!("{finished:?}").contains("mistaken123"), "{finished:?}");
    }
    let json = cli(&config, &["check", "--json"], &[]).await;
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["error"]["exit_code"], 77);

    let nowhere = product(stage.config().set("source", "url", stage.postgres.url_at(NOWHERE, "x")));
    for verb in [&["check"][..], &["setup"]] {
        cli(&nowhere, verb, &[]).await.ended(69, &["connect", "source.url"]);
    }
    let database = product(stage.config().set("source", "url", stage.postgres.url("no_such_database")));
    cli(&database, &["check"], &[]).await.ended(78, &["no_such_database", "3D000"]);
}

#[tokio::test]
async fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = || product(Config::new("postgres://u:p@127.0.0.1:1/d", "s", "p", "redis://127.0.0.1:1", ""));
    for section in ["http", "admin"] {
        let finished = cli(&config().set(section, "listen", address.as_str()), &["run"], &[]).await;
        assert_ne!(finished.status.code(), Some(0));
        let code = finished.status.code().unwrap();
        finished.ended(code, &[&address, &format!("[{section}] listen"), "in use", "choose another address"]);
    }
}

#[tokio::test]
async fn setup_prints_then_applies_then_has_nothing_to_do() {
    if needs_publications("cli::setup_prints_then_applies_then_has_nothing_to_do") {
        return;
    }
    let stage = stage("setup").await;
    let config = product(stage.config());
    let publication = format!("CREATE PUBLICATION \"{}\" FOR TABLE \"public\".\"products\"", stage.name);
    // From Postgres 17 on more follows.
    let slot = format!("pg_create_logical_replication_slot('{}', 'pgoutput'", stage.name);
    let said = ["publication_missing", publication.as_str(), "setup"];
    cli(&config, &["run"], &[]).await.ended(1, &said);
    cli(&config, &["check"], &[]).await.ended(1, &said);

    let printed = cli(&config, &["setup"], &[]).await;
    printed.ended(0, &[&publication, &slot, "CREATE SCHEMA IF NOT EXISTS walcache"]);
    cli(&config, &["check"], &[]).await.ended(1, &said);
    // What is printed is what psql takes: on another database it is all that is needed.
    let copy = self::stage("setup_copy").await;
    let sql = printed.stdout.replace(&stage.name, &copy.name);
    let psql = Command::new(copy.postgres.bindir().join("psql"))
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-q", "-d", &copy.source_url(), "-c", "SELECT 1", "-f", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let mut psql = psql.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut psql.stdin.take().unwrap(), sql.as_bytes()).await.unwrap();
    let psql = psql.wait_with_output().await.unwrap();
    assert!(psql.status.success(), "{psql:?}\n{sql}");
    cli(&product(copy.config()), &["check"], &[]).await.ended(0, &["errors 0"]);

    let applied = cli(&config, &["setup", "--apply"], &[]).await;
    applied.ended(0, &[&format!("applied: {publication}"), &slot, "check: errors 0"]);
    cli(&config, &["check"], &[]).await.ended(0, &["configuration, database and Redis: entities 1, errors 0"]);
    cli(&config, &["setup", "--apply"], &[]).await.ended(0, &["nothing to do"]);
    cli(&config, &["setup"], &[]).await.ended(0, &["nothing to do"]);

    // A table more: only it is missing.
    let config = config.entity(Entity::new("other", "others"));
    stage.execute("CREATE TABLE others (id int PRIMARY KEY)").await;
    let add = format!("ALTER PUBLICATION \"{}\" ADD TABLE \"public\".\"others\"", stage.name);
    let added = cli(&config, &["setup", "--apply"], &[]).await;
    added.ended(0, &[&add]);
    assert!(!added.stdout.contains("CREATE"), "{added:?}");
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    daemon.http().get("/v1/product/1").await.expect(200);
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn a_redis_that_cannot_be_asked() {
    let stage = stage("no_redis").await;
    let config = product(stage.config());
    cli(&config, &["setup", "--apply"], &[]).await.ended(0, &["errors 0"]);
    let nowhere = format!("redis://:hidden@127.0.0.1:{NOWHERE}");
    let finished = cli(&config.clone().set("l2", "url", nowhere), &["check"], &[]).await;
    finished.ended(1, &["l2_unavailable", "l2.url"]);
    assert!(!format!("{finished:?}").contains("hidden"), "{finished:?}");
    cli(&config.without("l2"), &["check"], &[]).await.ended(0, &["cached in process only", "errors 0"]);
}
