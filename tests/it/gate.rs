//! A commit that is streamed but not yet visible: a synchronous standby that never answers.

use std::time::Duration;

use walcache::failpoint::{HOLD, KILLS, Point};
use walcache::lsn::Lsn;
use walcache::sandbox::RedisOptions;

use crate::harness::{Daemon, Entity, Hidden, Raw, Shop, cli, current_lsn, eventually, servable, version};

async fn reconnects(daemon: &crate::harness::Daemon) -> String {
    let text = daemon.admin().get("/metrics").await.text();
    text.lines().find(|l| l.starts_with("walcache_replication_reconnects_total")).unwrap_or_default().to_owned()
}

async fn stage(name: &str) -> Shop {
    let postgres = Hidden::postgres().setting("wal_sender_timeout", "4s");
    let mut shop = Shop::with(name, postgres, RedisOptions::new()).await;
    shop.config = shop.config.set("source", "dead_after", "30s");
    shop
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_visible_is_not_applied() {
    let shop = stage("gate").await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 1), (2, 1)").await.unwrap();
    let daemon = shop.daemon().await;
    let http = daemon.http();
    assert_eq!(version(&http.get("/v1/counter/1").await.expect(200).json()), Some(1));
    let before_reconnects = reconnects(&daemon).await;
    let before = current_lsn(&sql).await;
    let hidden = Hidden::write(&shop, &daemon, &["UPDATE counters SET version = 2 WHERE id IN (1, 2)"]).await;
    let hanging = hidden.lsn;
    // Longer than the walsender's patience, and counted in its own messages: a slot that is still held by the same
    // process was kept alive.
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let pid: i32 = sql.query_one(walsender, &[&shop.stage.name]).await.unwrap().get(0);
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(9);
    eventually("outlast wal_sender_timeout twice", || async {
        let response = http.get("/v1/counter/1").await.expect(200);
        assert_eq!(version(&response.json()), Some(1), "the update is not visible yet");
        // Missed before, so filled while the commit hangs: with what is visible, which is the old row.
        let filled = http.get("/v1/counter/2").await.expect(200);
        assert_eq!(version(&filled.json()), Some(1));
        let applied = response.header("x-applied-lsn").parse::<Lsn>().unwrap();
        assert!(applied < hanging, "{applied} has passed the commit that hangs ({before}..{hanging})");
        if std::time::Instant::now() >= until { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert_eq!(sql.query_one(walsender, &[&shop.stage.name]).await.unwrap().get::<_, i32>(0), pid);
    assert_eq!(reconnects(&daemon).await, before_reconnects);
    assert!(shop.confirmed().await < hanging);

    hidden.show(&sql).await;
    let end = current_lsn(&sql).await;
    for id in [1, 2] {
        let min = end.to_string();
        let response = http.get_with(&format!("/v1/counter/{id}"), &[("x-min-lsn", &min)]).await.expect(200);
        assert_eq!(version(&response.json()), Some(2));
    }
    shop.equals_postgres(&daemon).await;
    let stored = raw.look("counter:2").await.unwrap().unwrap();
    assert_eq!(servable(&stored, "counter").and_then(|e| e.version()), Some(2), "{stored:?}");
}

/// Commits that hang for a moment while readers miss, over and over: evictions make them miss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fills_race_with_commits_that_are_not_visible() {
    let shop = stage("gate_race").await;
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters SELECT i, 0 FROM generate_series(0, 7) i").await.unwrap();
    // No L1: every read asks Redis, and fills what was evicted.
    let mut shop = shop;
    shop.config = shop.config.set("l1", "enabled", false);
    let daemon = shop.daemon().await;
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    for round in 1..=8 {
        let update = format!("UPDATE counters SET version = {round}");
        let hidden = Hidden::write(&shop, &daemon, &[&update]).await;
        // Evicted, and filled again with the old row, for as long as the commit hangs and a little longer.
        let stop = tokio_util::sync::CancellationToken::new();
        let readers: Vec<_> = (0..8)
            .map(|id| {
                let (http, stop, stage) = (daemon.http(), stop.clone(), shop.stage.clone());
                tokio::spawn(async move {
                    let mut raw = Raw::connect(&stage).await.unwrap();
                    let mut reads = 0;
                    while reads == 0 || !stop.is_cancelled() {
                        raw.run(&["UNLINK", &format!("counter:{id}")]).await.unwrap();
                        let found = version(&http.get(&format!("/v1/counter/{id}")).await.expect(200).json()).unwrap();
                        assert!(found == round || found == round - 1, "{found} in round {round}");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        hidden.show(&sql).await;
        let end = current_lsn(&sql).await;
        sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        daemon.wait_applied(end).await;
        stop.cancel();
        for reader in readers {
            assert!(reader.await.unwrap() > 0);
        }
        for id in 0..8 {
            let stored = raw.look(&format!("counter:{id}")).await.unwrap().unwrap();
            if let Some(entry) = servable(&stored, "counter") {
                assert_eq!(entry.version(), Some(round), "left stale in Redis: {stored:?}");
            }
            assert_eq!(version(&daemon.http().get(&format!("/v1/counter/{id}")).await.expect(200).json()), Some(round));
        }
    }
    shop.equals_postgres(&daemon).await;
}

/// An insert hangs that was planned before it was known that the primary key is of other columns: what is read meanwhile does not
/// outlive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_planned_under_another_key_is_not_lost() {
    let mut shop = stage("gate_key").await;
    let sql = shop.sql().await;
    shop.stage.execute("CREATE TABLE pairs (a int PRIMARY KEY, b int NOT NULL); INSERT INTO pairs VALUES (1, 1)").await;
    shop.config = shop
        .config
        .entity(Entity::new("pair", "public.pairs"))
        .set("apply", "max_batch_events", 1)
        .set("audit", "rate", 0);
    sql.batch_execute("INSERT INTO counters VALUES (1, 1)").await.unwrap();
    let done = cli(&shop.config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    let hold = shop.stage.redis.dir().join("hold");
    std::fs::write(&hold, "").unwrap();
    let at = format!("{}=wait@20", Point::BeforeWrite.name());
    let daemon = Daemon::start_with(&shop.config, &[(KILLS, &at), (HOLD, hold.to_str().unwrap())]).await;
    daemon.wait_ready().await;
    let http = daemon.http();
    http.get("/v1/pair/1").await.expect(200);
    let generation = async || daemon.status().await["entities"][1]["generation"].as_u64().unwrap();
    let before = generation().await;
    // One batch is held up. What comes after it is planned, and waits.
    loop {
        sql.batch_execute("UPDATE counters SET version = version + 1").await.unwrap();
        let end = current_lsn(&sql).await;
        let is_held = eventually("be applied, or held up", || async {
            let applied = daemon.status().await["applied_lsn"].as_str().unwrap().parse::<Lsn>().unwrap();
            let is_held = daemon.log().contains("failpoint: this task waits");
            if is_held || applied >= end { Ok(is_held) } else { Err(applied) }
        })
        .await;
        if is_held {
            break;
        }
    }
    sql.batch_execute("ALTER TABLE pairs DROP CONSTRAINT pairs_pkey, ADD PRIMARY KEY (a, b)").await.unwrap();
    let hidden = Hidden::write(&shop, &daemon, &["INSERT INTO pairs VALUES (2, 5)"]).await;
    let hanging = hidden.lsn;
    std::fs::remove_file(&hold).unwrap();
    // The change of the key may be applied by itself, or wait in one batch with what hangs: nobody knows. In the first case what is
    // read now bears the new generation.
    let began = std::time::Instant::now();
    while generation().await == before && began.elapsed() < Duration::from_secs(3) {}
    let absent = http.get("/v1/pair/2,5").await;
    assert_ne!(absent.status, 200, "nobody sees it yet: {absent:?}");
    hidden.show(&sql).await;
    daemon.wait_applied(hanging).await;
    eventually("be cached under the new key", || async {
        let response = http.get("/v1/pair/1,1").await;
        if response.status == 200 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    daemon.wait_applied(current_lsn(&sql).await).await;
    let there = http.get("/v1/pair/2,5").await;
    assert_eq!(there.status, 200, "{there:?}");
}
