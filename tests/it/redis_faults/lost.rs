//! A Redis that lost what was acknowledged: emptied, back with an old dump, failed over; or changed by others.

use super::*;

/// 17: emptied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_empty_under_load() {
    let shop = Shop::new("redis_empty").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 11);
    for _ in 0..3 {
        load.writes(60).await;
        shop.stage.redis.kill().await.unwrap();
        shop.stage.redis.start_again(Restart::Empty).await.unwrap();
        load.reads(50).await;
        daemon.until_trusted(true).await;
    }
    load.reads(100).await;
    load.stop().await;
    daemon.until_trusted(true).await;
    let compared = shop.equals_postgres(&daemon).await;
    assert!(compared.entries > 0, "{compared:?}");
}

/// 17: an old dump.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_with_an_old_dump_under_load() {
    let shop = Shop::new("redis_dump").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 12);
    for _ in 0..3 {
        load.reads(100).await;
        shop.stage.redis.save().await.unwrap();
        load.writes(60).await;
        shop.stage.redis.kill().await.unwrap();
        shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
        load.reads(50).await;
        daemon.until_trusted(true).await;
    }
    load.writes(20).await;
    load.stop().await;
    daemon.until_trusted(true).await;
    shop.equals_postgres(&daemon).await;
}

/// 17: the dump is old, and nothing is written after the restart that would bring it to light.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_with_an_old_dump_while_nothing_is_written() {
    let shop = Shop::new("redis_dump_idle").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    shop.cached(&sql, &daemon, 1).await;
    shop.stage.redis.save().await.unwrap();
    let mut end = current_lsn(&sql).await;
    for id in 0..20 {
        end = shop.put(&sql, id, 2).await;
    }
    daemon.wait_applied(end).await;
    shop.stage.redis.kill().await.unwrap();
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    for id in 0..20 {
        let found = http.get(&format!("/v1/counter/{id}")).await.expect(200);
        assert_eq!(version(&found.json()), Some(2), "{:?}", found.headers);
    }
    daemon.until_trusted(true).await;
    shop.equals_postgres(&daemon).await;
}

/// 17: as above, and the daemon is killed with it: nobody remembers what was acknowledged but the slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_with_an_old_dump_while_no_daemon_runs() {
    let shop = Shop::new("redis_dump_down").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 13);
    load.reads(200).await;
    shop.stage.redis.save().await.unwrap();
    load.writes(100).await;
    load.reads(100).await;
    load.stop().await;
    daemon.kill().await;
    shop.stage.redis.kill().await.unwrap();
    shop.stage.redis.start_again(Restart::KeepData).await.unwrap();
    let daemon = shop.daemon().await;
    shop.equals_postgres(&daemon).await;
}

/// 17: emptied, or the fence alone evicted, while connections last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_under_load() {
    let shop = Shop::new("redis_flush").await;
    let daemon = shop.daemon().await;
    let load = shop.load(&daemon, 14);
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    for _ in 0..5 {
        load.writes(40).await;
        load.reads(40).await;
        raw.run(&["FLUSHALL"]).await.unwrap();
        load.reads(40).await;
    }
    // The fence alone is lost, as by eviction.
    for _ in 0..3 {
        load.writes(40).await;
        raw.run(&["UNLINK", "~walcache:fence"]).await.unwrap();
        load.reads(40).await;
    }
    load.stop().await;
    shop.equals_postgres(&daemon).await;
    daemon.until_trusted(true).await;
    shop.equals_postgres(&daemon).await;
}

/// 17: somebody else writes to our keys.
#[tokio::test]
async fn foreign_values_at_our_keys_are_healed() {
    let mut shop = Shop::new("redis_foreign").await;
    shop.config = shop.config.set("l1", "enabled", false);
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    let foreign: [&[&str]; 6] = [
        &["LPUSH", "counter:1", "x"],
        &["SET", "counter:1", "hello"],
        &["SET", "counter:1", "{\"lo\":\"garbage"],
        &["SET", "counter:1", ""],
        &["HSET", "counter:1", "a", "b"],
        &["SETBIT", "counter:1", "7", "1"],
    ];
    let mut value = 0;
    for written in foreign {
        for by_event in [false, true] {
            value += 1;
            let end = shop.put(&sql, 1, value).await;
            daemon.wait_applied(end).await;
            raw.run(&["UNLINK", "counter:1"]).await.unwrap();
            raw.run(written).await.unwrap();
            if by_event {
                value += 1;
                let end = shop.put(&sql, 1, value).await;
                sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
                daemon.wait_applied(end).await;
            }
            for read in 0..2 {
                let response = http.get("/v1/counter/1").await.expect(200);
                assert_eq!(version(&response.json()), Some(value), "{written:?}, {read}");
            }
            let entry = servable(&raw.look("counter:1").await.unwrap().unwrap(), "counter");
            assert_eq!(entry.and_then(|e| e.version()), Some(value), "{written:?}, by event: {by_event}: not healed");
        }
    }
}

/// A replica of the shop's Redis, in step with it.
async fn replica(shop: &Shop) -> Redis {
    let replica = Redis::start(RedisOptions::new()).await.unwrap();
    let mut connection = replica.connect().await.unwrap();
    let port = shop.stage.redis.port().to_string();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port).exec_async(&mut connection).await.unwrap();
    eventually("be in step with the master", || async {
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection.clone()).await.unwrap();
        if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
    })
    .await;
    replica
}

/// 17: failed over to a replica that missed writes; the daemon's connections are cut, or not even that: the old master
/// goes on behind some of them for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_over_to_a_replica_that_missed_writes() {
    let mut shop = Shop::new("redis_failover").await;
    let proxy = Proxy::start(shop.stage.redis.port()).await;
    let url = shop.stage.redis.url_at(proxy.port(), shop.stage.redis_database);
    shop.config = shop.config.set("l2", "url", url);
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    let load = shop.load(&daemon, 19);
    load.reads(200).await;
    load.writes(50).await;
    let replica = replica(&shop).await;
    load.writes(30).await;
    let mut promoted = replica.connect().await.unwrap();
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut promoted).await.unwrap();
    // Acknowledged by the old master, and known to it alone.
    load.writes(80).await;
    load.reads(50).await;
    let done = load.stop().await;
    assert_eq!(done.failed_reads, 0, "{done:?}");
    let end = current_lsn(&sql).await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
    daemon.wait_applied(end).await;

    let generation = async || daemon.status().await["entities"][0]["generation"].as_u64().unwrap();
    let before = generation().await;
    proxy.lead_to(replica.port());
    proxy.cut();
    // Nothing is written meanwhile: the first who may notice is a reader.
    for id in 0..64 {
        http.get(&format!("/v1/counter/{id}")).await;
    }
    eventually("notice that writes are lost", || async {
        let now = generation().await;
        if now > before { Ok(()) } else { Err(daemon.log()) }
    })
    .await;
    daemon.until_trusted(true).await;
    let on_replica = Shop {
        stage: Arc::new(shop.stage.moved_to(shop.stage.postgres.clone(), Arc::new(replica))),
        config: shop.config.clone(),
        histories: shop.histories.clone(),
    };
    on_replica.equals_postgres(&daemon).await;
    let load = on_replica.load(&daemon, 20);
    load.writes(50).await;
    load.reads(100).await;
    on_replica.ends_well(load, &daemon).await;
}

/// 17, 18: the master is made a replica of one that missed writes. It refuses writes at once, and has its own data still; some
/// seconds later it has the other's, behind connections that stand. Whoever asks for what was applied is given that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_under_one_that_missed_writes() {
    let mut shop = Shop::new("redis_demoted").await;
    shop.config = shop.config.set("l1", "enabled", false).set("freshness", "stale_after", "60s");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let http = daemon.http();
    let end = shop.put(&sql, 1, 1).await;
    daemon.wait_applied(end).await;
    assert_eq!(version(&http.get("/v1/counter/1").await.expect(200).json()), Some(1));
    let replica = replica(&shop).await;
    let mut promoted = replica.connect().await.unwrap();
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut promoted).await.unwrap();
    let end = shop.put(&sql, 1, 2).await;
    daemon.wait_applied(end).await;
    let mut raw = Raw::connect(&shop.stage).await.unwrap();
    raw.run(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]).await.unwrap();
    let headers = [("x-min-lsn", &*end.to_string())];
    let reads = async || {
        let response = http.get_with("/v1/counter/1", &headers).await;
        assert!(response.status != 200 || version(&response.json()) == Some(2), "{response:?}");
    };
    let master = tokio::sync::Mutex::new(raw);
    eventually("go back", || async {
        reads().await;
        let stored = master.lock().await.look("counter:1").await.map_err(|error| error.to_string())?;
        let stands = stored.and_then(|stored| servable(&stored, "counter")?.version());
        if stands == Some(1) { Ok(()) } else { Err(format!("{stands:?}")) }
    })
    .await;
    for _ in 0..50 {
        reads().await;
    }
    master.into_inner().run(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    daemon.until_trusted(true).await;
    shop.equals_postgres(&daemon).await;
}
