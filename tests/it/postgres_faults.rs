//! Faults 2, 3 and 4: Postgres crashes, goes away and comes back, and loses the slot. (Away for long: see `away`; other
//! ways to lose the slot: see `slot_faults`.)

use std::time::{Duration, Instant};

use walcache::sandbox::{PostgresOptions, RedisOptions, StopMode};

use crate::harness::{Shop, eventually, plugin, version};

/// 2: killed, stopped at once and stopped in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_and_recovers_under_load() {
    let shop = Shop::new("pg_crash").await;
    let daemon = shop.daemon().await;
    let pid = daemon.pid();
    let load = shop.load(&daemon, 21);
    for stop in [None, Some(StopMode::Immediate), Some(StopMode::Fast)] {
        load.writes(80).await;
        load.reads(50).await;
        match stop {
            Some(mode) => shop.stage.postgres.stop(mode).await.unwrap(),
            None => shop.stage.postgres.kill().await.unwrap(),
        }
        shop.stage.postgres.start_again().await.unwrap();
        load.writes(20).await;
    }
    load.reads(50).await;
    load.stop().await;
    shop.equals_postgres(&daemon).await;
    assert_eq!(daemon.pid(), pid, "the daemon did not exit");
}

/// 3: hits are served and marked; misses fail fast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn away_hits_go_on_and_misses_fail_fast() {
    let mut shop = Shop::new("pg_away").await;
    shop.config = shop.config.set("freshness", "stale_after", "500ms");
    let sql = shop.sql().await;
    for id in 0..20 {
        shop.put(&sql, id, 1).await;
    }
    let daemon = shop.daemon().await;
    let http = daemon.http();
    for id in 0..10 {
        http.get(&format!("/v1/counter/{id}")).await.expect(200);
    }
    shop.stage.postgres.stop(StopMode::Immediate).await.unwrap();
    eventually("have hits marked as stale", || async {
        for id in 0..10 {
            let response = http.get(&format!("/v1/counter/{id}")).await;
            assert_eq!(response.status, 200, "{response:?}");
            assert_eq!(version(&response.json()), Some(1));
        }
        let response = http.get("/v1/counter/3").await;
        if response.header("x-cache") == "STALE" { Ok(()) } else { Err(format!("{:?}", response.headers)) }
    })
    .await;
    for id in 10..20 {
        let began = Instant::now();
        let response = http.get(&format!("/v1/counter/{id}")).await;
        assert_eq!(response.status, 503, "{response:?}");
        // `source.fill_timeout` is 10 s.
        assert!(began.elapsed() < Duration::from_secs(8), "a miss took {:?}", began.elapsed());
    }
    shop.stage.postgres.start_again().await.unwrap();
    let sql = shop.sql().await;
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    shop.equals_postgres(&daemon).await;
    eventually("mark hits no more", || async {
        let response = http.get("/v1/counter/3").await.expect(200);
        if response.header("x-cache").starts_with("HIT") { Ok(()) } else { Err(format!("{:?}", response.headers)) }
    })
    .await;
}

/// 3: paused rather than gone: connections stay open, and nothing answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_hits_go_on_and_all_is_well_afterwards() {
    let mut shop = Shop::new("pg_pause").await;
    shop.config = shop.config.set("source", "fill_timeout", "1s");
    let sql = shop.sql().await;
    for id in 0..20 {
        shop.put(&sql, id, 1).await;
    }
    let daemon = shop.daemon().await;
    let http = daemon.http();
    for id in 0..10 {
        http.warm(&format!("/v1/counter/{id}")).await;
    }
    shop.stage.postgres.pause().await.unwrap();
    for id in 0..10 {
        assert_eq!(version(&http.get(&format!("/v1/counter/{id}")).await.expect(200).json()), Some(1));
    }
    let began = Instant::now();
    assert_eq!(http.get("/v1/counter/15").await.status, 503);
    assert!(began.elapsed() < Duration::from_secs(8), "a miss took {:?}", began.elapsed());
    eventually("notice that the source is silent", || async {
        let status = daemon.status().await;
        if status["replication"]["connected"] == false { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    shop.stage.postgres.resume().unwrap();
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    shop.equals_postgres(&daemon).await;
}

/// 4: dropped, while the daemon runs and while none does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_is_dropped() {
    let shop = Shop::new("pg_slot").await;
    let sql = shop.sql().await;
    let slot = shop.stage.name.clone();
    // Until it is gone, or has been made anew by the daemon already: then it is not the one of before.
    let drop_slot = format!(
        "DO $$ BEGIN
             FOR i IN 1..10000 LOOP
                 PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active;
                 BEGIN
                     PERFORM pg_drop_replication_slot('{slot}');
                     RETURN;
                 EXCEPTION
                     WHEN object_in_use THEN PERFORM pg_sleep(0.002);
                     WHEN undefined_object THEN RETURN;
                 END;
             END LOOP;
             RAISE 'the slot is always in use';
         END $$"
    );
    let mut daemon = shop.daemon().await;
    let load = shop.load(&daemon, 22);
    let mut generation = 0;
    for down in [false, true, false, true] {
        load.reads(100).await;
        load.writes(30).await;
        if down {
            daemon.kill().await;
        }
        sql.batch_execute(&drop_slot).await.unwrap();
        // What is written now is in no stream.
        load.writes(60).await;
        if down {
            daemon = shop.daemon().await;
        }
        generation = eventually("start a new generation", || async {
            let now = daemon.status().await["entities"][0]["generation"].as_u64().unwrap_or(0);
            if now > generation { Ok(now) } else { Err(format!("{now} of {generation}")) }
        })
        .await;
    }
    load.reads(50).await;
    load.stop().await;
    shop.equals_postgres(&daemon).await;
}

/// 4: somebody drops the slot and makes it anew, or moves it on: what lies between is in no stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_is_moved_by_somebody_else() {
    let shop = Shop::new("pg_moved").await;
    let sql = shop.sql().await;
    let mut daemon = shop.daemon().await;
    let slot = shop.stage.name.clone();
    let anew = format!(
        "SELECT pg_drop_replication_slot('{slot}'); SELECT pg_create_logical_replication_slot('{slot}', '{}')",
        plugin()
    );
    let advance = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())");
    for how in [anew, advance] {
        let load = shop.load(&daemon, 23);
        load.reads(200).await;
        daemon.kill().await;
        load.writes(60).await;
        load.stop().await;
        shop.confirmed_when_free().await;
        sql.batch_execute(&how).await.unwrap();
        daemon = shop.daemon().await;
        shop.equals_postgres(&daemon).await;
    }
}

/// 2: a commit that did not wait for the disk is visible, is cached, and is gone after a crash: no event tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_takes_back_asynchronous_commits() {
    let postgres = PostgresOptions::new().setting("wal_writer_delay", "10s").setting("autovacuum", "off");
    let mut shop = Shop::with("pg_async", postgres, RedisOptions::new()).await;
    // Nothing else flushes the log meanwhile.
    shop.config = shop.config.set("source", "heartbeat_interval", "1h").set("source", "dead_after", "2h").set(
        "freshness",
        "max_staleness",
        "2h",
    );
    let sql = shop.sql().await;
    sql.batch_execute("INSERT INTO counters VALUES (1, 1)").await.unwrap();
    let daemon = shop.daemon().await;
    let http = daemon.http();
    sql.batch_execute("SET synchronous_commit = off; UPDATE counters SET version = 2").await.unwrap();
    assert_eq!(version(&http.get("/v1/counter/1").await.expect(200).json()), Some(2));
    shop.stage.postgres.kill().await.unwrap();
    shop.stage.postgres.start_again().await.unwrap();
    shop.equals_postgres(&daemon).await;
}
