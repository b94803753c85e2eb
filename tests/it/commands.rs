//! What applications say in the log: invalidations that no row change shows, and keys to warm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::AsyncCommands;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use walcache::entry::DUE;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Entity, Hidden, Http, Scene, Shop, current_lsn, eventually, version};

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
     INSERT INTO items SELECT i, i * 10 FROM generate_series(1, 9) i;
     CREATE TABLE lines (item int, code text, n int NOT NULL DEFAULT 0, PRIMARY KEY (item, code));
     INSERT INTO lines VALUES (7, '3'), (7, 'a/b,c'), (8, '100%');";

async fn scene(name: &str) -> Scene {
    Scene::open(name, SCHEMA, |config| {
        // Transactions of more than a few changes go in pieces.
        config
            .set("apply", "max_transaction_bytes", "1KiB")
            .set("apply", "max_batch_bytes", "1KiB")
            .entity(Entity::new("item", "public.items"))
            .entity(Entity::new("line", "public.lines"))
    })
    .await
}

/// The SQL of a message.
fn says(json: &str) -> String {
    format!("SELECT pg_logical_emit_message(true, 'walcache', '{json}')")
}

/// Puts a value into the entry that Postgres knows nothing of: there until something drops it.
async fn plant(scene: &Scene, key: &str) {
    let entry = scene.raw(key).await.expect("an entry to change");
    let text = std::str::from_utf8(&entry).unwrap().replace("\"n\":", "\"n\":-");
    assert_ne!(text.as_bytes(), &entry[..]);
    scene.l2.clone().set::<_, _, ()>(key, text).await.unwrap();
}

async fn count(scene: &Scene, command: &str, result: &str) -> u64 {
    let name = format!("walcache_commands_total{{command=\"{command}\",result=\"{result}\"}}");
    scene.metric(&name).await.unwrap_or_else(|| panic!("{name}")) as u64
}

async fn from(scene: &Scene, path: &str) -> String {
    scene.get(path).await.header("x-cache").to_owned()
}

#[tokio::test]
async fn an_invalidation_drops_what_no_row_change_shows() {
    let scene = scene("command_drop").await;
    let lines = ["line/7,3", "line/7,a%2Fb%2Cc", "line/8,100%25"];
    for path in ["item/1", "item/2", "item/3"].into_iter().chain(lines) {
        scene.warm(path).await;
    }
    // Of L2 alone, then of L1.
    scene.get("item/4").await.expect(200);
    plant(&scene, "item:4").await;
    scene.write(&says(r#"{"invalidate":{"entity":"item","key":4}}"#)).await;
    assert_eq!(scene.get("item/4").await.json(), json!({"id": 4, "n": 40}));
    for command in [
        r#"{"invalidate":{"entity":"item","key":1}}"#,
        r#"{"invalidate":{"entity":"item","key":"001"}}"#,
        r#"[{"invalidate":{"entity":"item","keys":["1"]}}]"#,
    ] {
        scene.warm("item/1").await;
        scene.write(&says(command)).await;
        assert_eq!(scene.stored("item:1").await, None, "{command}");
        assert_eq!(from(&scene, "item/1").await, "MISS", "{command}");
        assert_eq!(from(&scene, "item/2").await, "HIT-L1", "{command}");
    }
    for (command, path) in [
        (r#"{"invalidate":{"entity":"line","key":[7,3]}}"#, lines[0]),
        (r#"{"invalidate":{"entity":"line","key":"07,a%2Fb%2Cc"}}"#, lines[1]),
        (r#"{"invalidate":{"entity":"line","keys":[["8","100%"]]}}"#, lines[2]),
    ] {
        scene.write(&says(command)).await;
        assert_eq!(from(&scene, path).await, "MISS", "{command}");
    }
    assert_eq!(scene.keys("line").await, ["7,3", "7,a/b%2Cc", "8,100%25"], "no second entry of any key");
    // All of an entity, and nothing of another.
    scene.warm("line/7,3").await;
    scene.write("SELECT walcache.invalidate_all('item')").await;
    for path in ["item/2", "item/3"] {
        assert_eq!(from(&scene, path).await, "MISS", "{path}");
    }
    assert_eq!(from(&scene, "line/7,3").await, "HIT-L1");
    assert_eq!(count(&scene, "invalidate", "done").await, 8);
    assert_eq!(scene.metric("walcache_cache_invalidations_total{entity=\"item\",cause=\"command\"}").await, Some(5.0));
    scene.verify().await;
}

#[tokio::test]
async fn an_invalidation_keeps_its_place_and_ends_with_its_transaction() {
    let scene = scene("command_place").await;
    let invalidate = |key: i32| says(&format!("{{\"invalidate\":{{\"entity\":\"item\",\"key\":{key}}}}}"));
    for key in 1..=5 {
        scene.warm(&format!("item/{key}")).await;
    }
    let before = scene.raw("item:3").await;
    scene
        .write(&format!(
            "BEGIN; UPDATE items SET n = 11 WHERE id = 1; {}; {}; UPDATE items SET n = 22 WHERE id = 2;
             SAVEPOINT s; {}; ROLLBACK TO s; SAVEPOINT t; {}; RELEASE t; COMMIT;
             BEGIN; {}; SELECT walcache.invalidate_all('item'); ROLLBACK",
            invalidate(1),
            invalidate(2),
            invalidate(3),
            invalidate(4),
            invalidate(3),
        ))
        .await;
    assert_eq!(scene.stored("item:1").await, None, "it came after the image");
    assert_eq!(scene.stored("item:2").await.unwrap().value, r#"{"id":2,"n":22}"#, "the image came after it");
    assert_eq!(scene.raw("item:3").await, before, "rolled back: not a byte was touched");
    assert_eq!(from(&scene, "item/3").await, "HIT-L1");
    assert_eq!(scene.stored("item:4").await, None);
    assert_eq!(from(&scene, "item/4").await, "MISS");
    // In pieces: of each key the last word counts, and what came before an invalidation of all is not written after it.
    for key in 1..=5 {
        scene.warm(&format!("item/{key}")).await;
    }
    let mut sql = "BEGIN;".to_owned();
    for n in 0..40 {
        sql += &format!("UPDATE items SET n = {n} WHERE id < 5; {};", invalidate(1 + n % 2));
    }
    scene.write(&(sql + "UPDATE items SET n = 99 WHERE id = 1; COMMIT")).await;
    assert_eq!(scene.get("item/1").await.json()["n"], 99);
    assert_eq!(scene.stored("item:2").await, None);
    assert_eq!(scene.stored("item:3").await.unwrap().value, r#"{"id":3,"n":39}"#);
    assert_eq!(from(&scene, "item/5").await, "HIT-L1");
    let sql = "BEGIN; UPDATE items SET n = 1; SELECT walcache.invalidate_all('item'); UPDATE items SET n = 2 WHERE id = 5; COMMIT";
    scene.write(sql).await;
    for key in 1..=4 {
        assert_eq!(from(&scene, &format!("item/{key}")).await, "MISS", "{key}");
    }
    // Its last image may have been planned before the generation was raised, or after.
    assert_eq!(scene.get("item/5").await.json()["n"], 2);
    scene.verify().await;
}

/// Planted values spread through both tiers while clients read; a client that passes its commit's LSN never sees one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_passes_its_lsn_never_sees_what_it_invalidated() {
    let scene = Scene::open("command_ryw", SCHEMA, |config| {
        // L1 soon forgets, so that planted values come there; the auditor would find them, too.
        config
            .set("audit", "rate", 0)
            .entity(Entity::new("item", "public.items").set("ttl", "50ms"))
            .entity(Entity::new("line", "public.lines"))
    })
    .await;
    let (stop, planted) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (http, stop, planted) = (Http::new(scene.daemon.http_address()), stop.clone(), planted.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let item = http.get("/v1/item/1").await.expect(200).json();
                    planted.fetch_add(u64::from(item["n"] == -10), Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..60 {
        let stored = eventually("have an entry to plant a value in", || async {
            scene.get("item/1").await;
            let entry = scene.raw("item:1").await.filter(|text| text.windows(6).any(|at| at == b"\"n\":10"));
            entry.ok_or("none")
        })
        .await;
        let mut text = String::from_utf8(stored.to_vec()).unwrap().replace("\"n\":", "\"n\":-");
        // It is never due: only the command ends it.
        text.replace_range(DUE, "0000000000000");
        scene.l2.clone().set::<_, _, ()>("item:1", text).await.unwrap();
        let before = planted.load(Ordering::Relaxed);
        eventually("have the planted value read", || async {
            if planted.load(Ordering::Relaxed) > before + 20 { Ok(()) } else { Err("not yet") }
        })
        .await;
        let command =
            if round % 5 == 4 { "walcache.invalidate_all('item')" } else { "walcache.invalidate('item', '1')" };
        scene.sql.batch_execute(&format!("SELECT {command}")).await.unwrap();
        let lsn = current_lsn(&scene.sql).await.to_string();
        let response = scene.http.get_with("/v1/item/1", &[("x-min-lsn", &lsn)]).await.expect(200);
        assert_eq!(response.json(), json!({"id": 1, "n": 10}), "round {round}: {response:?}");
    }
    stop.cancel();
    for reader in readers {
        reader.await.unwrap();
    }
    let planted = planted.load(Ordering::Relaxed);
    println!("planted values that others read: {planted}");
    assert!(planted > 0, "nobody ever saw a planted value: nothing was tried");
    scene.applied().await;
    scene.verify().await;
}

/// An invalidation of a transaction that is not visible yet waits: whoever fills now would fill the state of before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_waits_for_the_gate() {
    let shop = Shop::with("command_gate", Hidden::postgres(), RedisOptions::new()).await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 1)").await.unwrap();
    let daemon = shop.daemon().await;
    let http = daemon.http();
    http.get("/v1/counter/1").await.expect(200);
    let hidden = Hidden::write(&shop, &daemon, &["SELECT walcache.invalidate('counter', '1')"]).await;
    let hanging = hidden.lsn;
    for _ in 0..20 {
        assert_ne!(http.get("/v1/counter/1").await.header("x-cache"), "MISS", "it was dropped before it was visible");
    }
    let applied: walcache::lsn::Lsn = daemon.status().await["applied_lsn"].as_str().unwrap().parse().unwrap();
    assert!(applied < hanging, "{applied}");
    hidden.show(&sql).await;
    daemon.wait_applied(hanging).await;
    assert_eq!(http.get("/v1/counter/1").await.header("x-cache"), "MISS");
    shop.equals_postgres(&daemon).await;
}

#[tokio::test]
async fn what_is_refused_is_counted_and_never_stops_the_stream() {
    let scene = scene("command_refused").await;
    scene.warm("item/1").await;
    let secret = "hunter2";
    let refused = [
        ("not json", "unknown", "malformed"),
        ("{\"drop\":{\"entity\":\"item\"}}", "unknown", "malformed"),
        ("{\"invalidate\":{\"entity\":\"item\",\"kye\":\"1\"}}", "invalidate", "malformed"),
        ("{\"invalidate\":{\"entity\":\"hunter2\",\"key\":\"1\"}}", "invalidate", "unknown_entity"),
        ("{\"invalidate\":{\"entity\":\"item\",\"key\":\"hunter2\"}}", "invalidate", "bad_key"),
        ("{\"invalidate\":{\"entity\":\"item\",\"key\":null}}", "invalidate", "bad_key"),
        ("{\"invalidate\":{\"tag\":[\"\"]}}", "tag", "malformed"),
        ("{\"tag\":{\"entity\":\"item\",\"key\":1,\"tags\":[\"hunter2\"]}}", "tag", "malformed"),
        ("{\"invalidate\":{\"pattern\":\"hunter2:*\"}}", "pattern", "unknown_entity"),
        ("{\"warm\":{\"entity\":\"item\",\"key\":[1,2]}}", "warm", "bad_key"),
        ("{\"warm\":{\"entity\":\"item\",\"where\":\"n > 1\"}}", "warm", "malformed"),
    ];
    for (message, command, result) in refused {
        let before = count(&scene, command, result).await;
        scene.write(&says(message)).await;
        assert_eq!(count(&scene, command, result).await, before + 1, "{message}");
        assert_eq!(from(&scene, "item/1").await, "HIT-L1", "{message}");
    }
    // Written whatever becomes of the transaction.
    let outside = "SELECT pg_logical_emit_message(false, 'walcache', '{\"invalidate\":{\"entity\":\"item\"}}')";
    scene.write(&format!("BEGIN; {outside}; ROLLBACK; UPDATE items SET n = n WHERE id = 9")).await;
    assert_eq!(count(&scene, "unknown", "not_transactional").await, 1);
    assert_eq!(from(&scene, "item/1").await, "HIT-L1");
    // Of another prefix, and too large, by content that would have been right.
    let other = "SELECT pg_logical_emit_message(true, 'walcache.other', '{\"invalidate\":{\"entity\":\"item\"}}')";
    let large = "SELECT pg_logical_emit_message(true, 'walcache', repeat(' ', 2000000) || '{\"invalidate\":{\"entity\":\"item\"}}')";
    scene.write(&format!("{other}; {large}")).await;
    assert_eq!(count(&scene, "unknown", "too_large").await, 1);
    assert_eq!(from(&scene, "item/1").await, "HIT-L1");
    // A good one beside bad ones has its effect, and the stream goes on.
    scene.write(&says("[{\"x\":1},{\"invalidate\":{\"entity\":\"item\",\"keys\":[\"x\",1]}}]")).await;
    assert_eq!(from(&scene, "item/1").await, "MISS");
    scene.write("UPDATE items SET n = 5 WHERE id = 1").await;
    assert_eq!(scene.get("item/1").await.json()["n"], 5);
    let log = scene.daemon.log();
    assert!(!log.contains(secret), "what messages say is not logged");
    let told = log.lines().filter(|line| line.contains("an application's command in the log was refused")).count();
    // The first at once, the others ten seconds later at the earliest: a line for each command and reason.
    assert!((1..=2 * refused.len()).contains(&told), "told {told} times");
    let reconnects = scene.metric("walcache_replication_reconnects_total").await;
    assert!(matches!(reconnects, None | Some(0.0)), "{reconnects:?}");
    scene.verify().await;
}

/// Any role that may connect can use the functions; what they do is no more than it could do without them.
#[tokio::test]
async fn any_role_may_invalidate_by_the_functions() {
    let scene = scene("command_role").await;
    scene.warm("item/1").await;
    let role = format!("{}_app", scene.stage.name);
    scene.sql.batch_execute(&format!("CREATE ROLE {role}; SET ROLE {role}")).await.unwrap();
    let denied = scene.sql.batch_execute("SELECT * FROM walcache.migrations").await.unwrap_err();
    assert_eq!(denied.code().unwrap().code(), "42501", "{denied:?}");
    // Whatever the search path holds.
    scene.write("SET search_path = ''; SELECT walcache.invalidate('item', '1', '2')").await;
    scene.sql.batch_execute("RESET ROLE; RESET search_path").await.unwrap();
    assert_eq!(from(&scene, "item/1").await, "MISS");
    // What is null is refused, not ignored.
    scene.write("SELECT walcache.invalidate(NULL, '1'), walcache.invalidate('item', NULL)").await;
    assert_eq!(count(&scene, "invalidate", "malformed").await + count(&scene, "invalidate", "bad_key").await, 2);
    scene.sql.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn keys_are_warmed_once_their_transaction_is_applied() {
    let scene = scene("command_warm").await;
    let sql = "BEGIN; SELECT walcache.warm('item', '1', '20', '099'); INSERT INTO items VALUES (20, 200);
        SELECT walcache.warm('line', '7,3'); SAVEPOINT s; SELECT walcache.warm('item', '5'); ROLLBACK TO s; COMMIT;
        BEGIN; SELECT walcache.warm('item', '6'); ROLLBACK";
    scene.write(sql).await;
    eventually("fill what was asked for", || async {
        let done = count(&scene, "warm", "done").await;
        if done == 4 { Ok(()) } else { Err(done) }
    })
    .await;
    assert_eq!(scene.keys("item").await, ["1", "20", "99"], "nothing of what was rolled back");
    assert_eq!(scene.stored("item:20").await.unwrap().value, r#"{"id":20,"n":200}"#);
    assert_eq!(scene.stored("item:99").await.unwrap().value, "null");
    for path in ["item/1", "item/20", "item/99", "line/7,3"] {
        assert_eq!(from(&scene, path).await, "HIT-L1", "{path}");
    }
    assert_eq!(
        scene.metric("walcache_cache_requests_total{tier=\"source\",entity=\"item\",result=\"hit\"}").await,
        Some(0.0)
    );
    scene.verify().await;
}

/// Fills that cannot go on hold up nothing else.
#[tokio::test]
async fn warming_never_holds_up_the_stream() {
    let scene = Scene::open("command_stuck", SCHEMA, |config| {
        config
            .set("source", "fill_timeout", "4s")
            .entity(Entity::new("item", "public.items"))
            .entity(Entity::new("line", "public.lines"))
    })
    .await;
    scene.warm("line/7,3").await;
    let locker = scene.stage.sql().await;
    locker.batch_execute("BEGIN; LOCK TABLE items").await.unwrap();
    scene
        .sql
        .batch_execute("SELECT walcache.warm('item', VARIADIC ARRAY(SELECT i::text FROM generate_series(1, 2000) i))")
        .await
        .unwrap();
    for n in 1..=5 {
        scene.write(&format!("UPDATE lines SET n = {n}")).await;
        assert_eq!(scene.get("line/7,3").await.expect(200).json()["n"], n);
    }
    eventually("give up a fill", || async {
        if count(&scene, "warm", "failed").await > 0 { Ok(()) } else { Err("none yet") }
    })
    .await;
    locker.batch_execute("ROLLBACK").await.unwrap();
    scene.sql.batch_execute("SELECT walcache.warm('item', '1', '2')").await.unwrap();
    eventually("be through with all", || async {
        let (done, failed) = (count(&scene, "warm", "done").await, count(&scene, "warm", "failed").await);
        if done + failed == 2002 && done >= 2 { Ok(()) } else { Err(format!("{done} done, {failed} failed")) }
    })
    .await;
    scene.verify().await;
}

/// 12: a message of 100 MB takes no more memory than one of 1 MB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_a_hundred_megabytes_in_bounded_memory() {
    let mut shop =
        Shop::with("command_huge", PostgresOptions::new().setting("max_wal_size", "2GB"), RedisOptions::new()).await;
    shop.config = shop.config.set("source", "max_message", "4MiB").set("l1", "max_size", "16MiB");
    // The stream is silent while it is read, and once only.
    shop.config = shop.config.set("source", "dead_after", "30s").set("freshness", "stale_after", "60s");
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 1)").await.unwrap();
    let daemon = shop.daemon().await;
    daemon.http().get("/v1/counter/1").await.expect(200);
    for prefix in ["walcache", "other"] {
        let message = format!("SELECT pg_logical_emit_message(true, '{prefix}', repeat('x', 100000000))");
        sql.batch_execute(&message).await.unwrap();
    }
    sql.batch_execute("UPDATE counters SET version = 2").await.unwrap();
    daemon.wait_applied_within(Duration::from_secs(60), current_lsn(&sql).await).await;
    let response = daemon.http().get("/v1/counter/1").await.expect(200);
    assert_eq!((version(&response.json()), response.header("x-cache")), (Some(2), "HIT-L2"), "nothing was dropped");
    let refused = daemon.metric("walcache_commands_total{command=\"unknown\",result=\"too_large\"}").await;
    assert_eq!(refused, Some(1.0));
    let peak = daemon.peak_mib();
    println!("messages of 100 MB: peak memory {peak} MiB");
    assert!(peak < 80, "peak memory {peak} MiB");
    shop.equals_postgres(&daemon).await;
}
