//! What people are told: that nothing can match, what holds changes up, which command was refused.

use std::time::Duration;

use serde_json::{Value, json};
use walcache::sandbox::{PostgresOptions, RedisOptions, Restart};

use crate::harness::{Config, Daemon, Entity, Scene, Stage, cli, eventually, eventually_within};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, tenant int, n int NOT NULL DEFAULT 0);
    INSERT INTO items SELECT i, i % 3 FROM generate_series(1, 9) i;
    CREATE TABLE lines (item int, code text, PRIMARY KEY (item, code)); INSERT INTO lines VALUES (7, 'a'), (8, 'b')";

fn entities(config: Config) -> Config {
    let item = Entity::new("item", "items").set("tags", vec!["tenant:{tenant}".to_owned(), "all".to_owned()]);
    config.entity(item).entity(Entity::new("line", "lines"))
}

async fn invalidate(scene: &Scene, args: &[&str]) -> crate::harness::Finished {
    let mut all = vec!["invalidate", "--admin", scene.daemon.admin_address()];
    all.extend(args);
    cli(&scene.config, &all, &[]).await
}

#[tokio::test]
async fn an_invalidation_that_can_match_nothing_says_so() {
    let scene = Scene::open("words_match", SCHEMA, entities).await;
    let done = invalidate(&scene, &["--tag", "teannt:1"]).await;
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.stderr.contains("tag \"teannt:1\": no entry can bear it"), "{done:?}");
    let done = invalidate(&scene, &["--tag", "all", "--tag", "al", "--dry-run", "--json"]).await;
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let answer: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(answer["unmatched"], json!(["al"]), "{answer}");
    let done = invalidate(&scene, &["--tag", "tenant:1", "--tag", "all"]).await;
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    for (pattern, said) in [
        ("item:42,*", "can match no key: one of item is item:id, with 0 comma(s)"),
        ("line:[78]", "can match no key: one of line is line:item,code, with 1 comma(s)"),
        ("item:[4", "has a [ without its ]"),
        ("itm:*", "the pattern \"itm:*\" can match no key of any entity"),
    ] {
        let refused = invalidate(&scene, &[pattern]).await;
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(refused.stderr.contains(said), "{pattern}: {refused:?}");
    }
    for (args, said) in [
        (&["itm:1"][..], "there is no entity \"itm\"; configured: item, line"),
        (&["item:x"], "\"x\" can be no key of item: key column id is"),
        (&["--tag", ""], "--tag: a tag must not be empty"),
    ] {
        let refused = invalidate(&scene, args).await;
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(refused.stderr.contains(said), "{args:?}: {refused:?}");
    }
    let misspelled = scene.daemon.admin().post("/v1/invalidate", &json!({"tag": "all", "dryrun": true}), &[]).await;
    assert!(misspelled.expect(400).text().contains("did you mean \\\"dry_run\\\"?"));
    scene.warm("line/7,a").await;
    scene.warm("line/8,b").await;
    let done = invalidate(&scene, &["line:7,*"]).await;
    assert!(done.status.success(), "{done:?}");
    assert_ne!(scene.get("line/7,a").await.header("x-cache"), "HIT-L1");
    assert_eq!(scene.get("line/8,b").await.header("x-cache"), "HIT-L1");
}

/// The first is told at once, the others ten seconds later at the latest, each kind with its place in the log.
#[tokio::test]
async fn refused_commands_are_found_in_the_log() {
    let scene = Scene::open("words_refused", SCHEMA, entities).await;
    let says = |json: &str| format!("SELECT pg_logical_emit_message(true, 'walcache', '{json}')");
    for json in [
        r#"{"invalidate":{"entity":"itm","key":1}}"#,
        r#"{"invalidate":{"entity":"item","key":"x"}}"#,
        r#"{"invalidate":{"entity":"item","key":"y"}}"#,
        r#"{"tag":"teannt:1"}"#,
    ] {
        scene.write(&says(json)).await;
    }
    assert_eq!(scene.metric("walcache_commands_total{command=\"tag\",result=\"unknown_tag\"}").await, Some(1.0));
    let told = eventually_within(Duration::from_secs(60), "tell of all", || async {
        let log = scene.daemon.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told: Vec<Value> = lines
            .filter(|f| {
                f["message"].as_str().is_some_and(|m| m.starts_with("an application's command in the log was refused"))
            })
            .collect();
        if told.len() >= 3 { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    let of = |line: &Value| (line["command"].clone(), line["reason"].clone(), line["times"].clone());
    let found: Vec<_> = told.iter().map(of).collect();
    let wanted = [("invalidate", "unknown_entity", 1), ("invalidate", "bad_key", 2), ("tag", "unknown_tag", 1)];
    assert_eq!(found, wanted.map(|(command, reason, times)| (json!(command), json!(reason), json!(times))));
    assert!(told.iter().all(|line| line["lsn"].as_str().is_some_and(|lsn| lsn.contains('/'))), "{told:?}");
}

/// 16: without Redis nothing is applied for a while. Whoever asks is told that it is Redis.
#[tokio::test]
async fn whoever_asks_is_told_that_redis_is_away() {
    let stage = Stage::private("words_redis", PostgresOptions::new(), RedisOptions::new()).await;
    stage.execute(SCHEMA).await;
    // It is waited for all the while.
    let config = entities(stage.config().set("l2", "max_backlog_age", "10m"));
    let setup = cli(&config, &["setup", "--apply"], &[]).await;
    assert!(setup.status.success(), "{setup:?}");
    stage.redis.kill().await.unwrap();
    let daemon = Daemon::start(&config).await;
    let status = eventually("know that Redis is away", || async {
        let status = daemon.status().await;
        if status["problem"].is_string() { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    let names = |text: &str| text.contains("Redis (l2.url) has not answered for ");
    assert!(names(status["problem"].as_str().unwrap()), "{status}");
    let ready = daemon.admin().get("/readyz").await.expect(503).json();
    assert!(ready["reasons"].as_array().unwrap().iter().any(|reason| names(reason.as_str().unwrap())), "{ready}");
    for verb in [&["resync"][..], &["warm", "item"]] {
        let refused = cli(&config, &[verb, &["--admin", daemon.admin_address()]].concat(), &[]).await;
        assert_eq!(refused.status.code(), Some(69), "{refused:?}");
        assert!(names(&refused.stderr), "{verb:?}: {refused:?}");
    }
    let written = daemon.admin().post("/v1/invalidate", &json!({"tag": "all"}), &[]).await.expect(202).json();
    assert!(names(written["waits_for"].as_str().unwrap()), "{written}");
    let said = cli(&config, &["invalidate", "--tag", "all", "--admin", daemon.admin_address()], &[]).await;
    assert_eq!(said.status.code(), Some(69), "{said:?}");
    assert!(names(&said.stdout), "{said:?}");
    stage.redis.start_again(Restart::Empty).await.unwrap();
    daemon.wait_ready().await;
    eventually("be well again", || async {
        let problem = daemon.status().await["problem"].clone();
        if problem.is_null() { Ok(()) } else { Err(problem.to_string()) }
    })
    .await;
}
