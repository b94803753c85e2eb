//! Fault 4: the slot is invalidated, or somebody puts another kind of slot in its place. It is never made anew as if
//! nothing was lost. (Dropped, and moved by somebody: see `postgres_faults`.)

use tokio_postgres::Client;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Daemon, Shop, current_lsn, eventually, plugin, version};

/// A server that keeps little log for a slot.
async fn forgetful(name: &str) -> Shop {
    let postgres = PostgresOptions::new()
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("max_wal_size", "32MB")
        .setting("wal_init_zero", "off")
        .setting("wal_sender_timeout", "2s");
    Shop::with(name, postgres, RedisOptions::new()).await
}

/// Goes on through the log until the server has given up the slot.
async fn outrun(shop: &Shop, sql: &Client) {
    eventually("have the slot lost", || async {
        sql.batch_execute("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal(); CHECKPOINT")
            .await
            .unwrap();
        let query = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
        // There is none for a moment where the daemon makes it anew: then that one is to be lost.
        let slot = sql.query_opt(query, &[&shop.stage.name]).await.unwrap();
        match slot.as_ref().and_then(|slot| slot.get::<_, Option<&str>>(0)) {
            Some("lost") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Rows 0 to 19 at this version, read by everybody.
async fn cached(shop: &Shop, sql: &Client, daemon: &Daemon, value: i64) {
    for id in 0..20 {
        shop.put(sql, id, value).await;
    }
    shop.equals_postgres(daemon).await;
}

/// The log of the daemon says why there is a new generation.
fn says_why(daemon: &Daemon) {
    let log = daemon.log();
    let line =
        log.lines().find(|line| line.contains("starting a new generation: everything cached so far is unservable"));
    assert!(line.is_some_and(|line| line.contains("the replication slot was lost, and changes with it")), "{log}");
}

/// 4: `wal_status = lost` while no daemon runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_while_no_daemon_runs() {
    let shop = forgetful("slot_lost_down").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    cached(&shop, &sql, &daemon, 1).await;
    let before = daemon.generation().await;
    daemon.kill().await;
    // In a stream that nobody will ever read.
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    outrun(&shop, &sql).await;
    let daemon = shop.daemon().await;
    assert!(daemon.generation().await > before);
    says_why(&daemon);
    assert_eq!(version(&daemon.http().get("/v1/counter/3").await.expect(200).json()), Some(2));
    shop.equals_postgres(&daemon).await;
}

/// 4: `wal_status = lost` while the daemon runs, and cannot apply: Redis hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_while_the_daemon_runs() {
    let mut shop = forgetful("slot_lost_up").await;
    shop.config = shop.config.set("l2", "response_timeout", "500ms");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let pid = daemon.pid();
    cached(&shop, &sql, &daemon, 1).await;
    let before = daemon.generation().await;
    shop.stage.redis.pause().await.unwrap();
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    outrun(&shop, &sql).await;
    shop.stage.redis.resume().unwrap();
    daemon.until_generation_beyond(before).await;
    says_why(&daemon);
    shop.equals_postgres(&daemon).await;
    assert_eq!(daemon.pid(), pid, "the daemon did not exit");
}

/// 4: `wal_status = lost` while the daemon stands still (SIGSTOP) in the middle of streaming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_while_the_daemon_is_paused() {
    let shop = forgetful("slot_lost_paused").await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    let pid = daemon.pid();
    cached(&shop, &sql, &daemon, 1).await;
    let before = daemon.generation().await;
    daemon.pause().await;
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    outrun(&shop, &sql).await;
    daemon.resume();
    daemon.until_generation_beyond(before).await;
    says_why(&daemon);
    shop.equals_postgres(&daemon).await;
    assert_eq!(daemon.pid(), pid, "the daemon did not exit");
}

/// What `/v1/status` says of the slot, once its state is `wanted`; the metrics say the same.
async fn slot_health(daemon: &Daemon, wanted: &str) -> serde_json::Value {
    let health = eventually(&format!("show the slot as {wanted}"), || async {
        let health = daemon.status().await["replication"]["slot_health"].clone();
        if health["status"] == wanted { Ok(health) } else { Err(health) }
    })
    .await;
    eventually(&format!("have metrics of a slot that is {wanted}"), || async {
        let gauge = format!("walcache_replication_slot_status{{status=\"{wanted}\"}}");
        if daemon.metric(&gauge).await == Some(1.0) { Ok(()) } else { Err(daemon.admin().get("/metrics").await.text()) }
    })
    .await;
    health
}

/// 4: the slot falls behind, while Redis hangs: each state is shown, and said once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shown_before_it_is_lost() {
    const MIB: i64 = 1 << 20;
    // No checkpoint but ours.
    let postgres = PostgresOptions::new()
        .setting("max_slot_wal_keep_size", "160MB")
        .setting("max_wal_size", "10GB")
        .setting("checkpoint_timeout", "1h")
        .setting("wal_init_zero", "off");
    let mut shop = Shop::with("slot_health", postgres, RedisOptions::new()).await;
    shop.config = shop.config.set("l2", "response_timeout", "500ms");
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    cached(&shop, &sql, &daemon, 1).await;
    let before = daemon.generation().await;
    let health = slot_health(&daemon, "reserved").await;
    let (retained, safe) = (health["retained_bytes"].as_i64().unwrap(), health["safe_bytes"].as_i64().unwrap());
    assert!((0..48 * MIB).contains(&retained) && safe > 100 * MIB, "{health}");
    shop.stage.redis.pause().await.unwrap();
    shop.put(&sql, 1, 2).await;

    let segment = "SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()";
    for _ in 0..5 {
        sql.batch_execute(segment).await.unwrap();
    }
    let max_wal_size = async |size| {
        sql.batch_execute(&format!("ALTER SYSTEM SET max_wal_size = '{size}'")).await.unwrap();
        sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    };
    max_wal_size("32MB").await;
    let health = slot_health(&daemon, "extended").await;
    assert!(health["retained_bytes"].as_i64().unwrap() > 64 * MIB, "{health}");
    let metric = daemon.metric("walcache_replication_lag_bytes{kind=\"retained\"}").await.unwrap();
    assert!(metric > 64e6, "{metric}");
    max_wal_size("10GB").await;
    slot_health(&daemon, "reserved").await;
    let left = slot_health(&daemon, "reserved").await["safe_bytes"].as_i64().unwrap();
    assert!(left < safe - 64 * MIB, "{left} of {safe}");
    for _ in 0..8 {
        sql.batch_execute(segment).await.unwrap();
    }
    let health = slot_health(&daemon, "unreserved").await;
    assert!(health["safe_bytes"].as_i64().unwrap() <= 0, "{health}");
    let check = crate::harness::cli(&shop.config, &["check"], &[]).await;
    assert!(check.stdout.contains("slot_unreserved"), "{check:?}");
    // A checkpoint waits for the sender to end, which it is told to.
    sql.batch_execute("CHECKPOINT").await.unwrap();
    eventually("be told that it is lost", || async {
        let log = daemon.log();
        if log.contains("the server has invalidated the slot") { Ok(()) } else { Err(log) }
    })
    .await;
    shop.stage.redis.resume().unwrap();
    daemon.until_generation_beyond(before).await;
    slot_health(&daemon, "reserved").await;
    shop.equals_postgres(&daemon).await;
    let log = daemon.log();
    for said in ["the slot keeps more log than max_wal_size", "the slot is about to be lost"] {
        assert_eq!(log.matches(said).count(), 1, "{said}: once\n{log}");
    }
}

/// 4: nobody reads the slot for longer than `idle_replication_slot_timeout`; Postgres 18 and later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_by_idleness() {
    let shop = Shop::new("slot_idle").await;
    let sql = shop.sql().await;
    let server = shop.stage.version().await;
    if server < 18 {
        println!("SKIPPED: slots time out from Postgres 18 on, and this is {server}");
        return;
    }
    let daemon = shop.daemon().await;
    cached(&shop, &sql, &daemon, 1).await;
    let before = daemon.generation().await;
    daemon.kill().await;
    shop.confirmed_when_free().await;
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    sql.batch_execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'").await.unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("have the slot time out", || async {
        sql.batch_execute("CHECKPOINT").await.unwrap();
        let query = "SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = $1";
        let reason: Option<String> = sql.query_one(query, &[&shop.stage.name]).await.unwrap().get(0);
        if reason.as_deref() == Some("idle_timeout") { Ok(()) } else { Err(format!("{reason:?}")) }
    })
    .await;
    let check = crate::harness::cli(&shop.config, &["check"], &[]).await;
    assert!(check.stdout.contains("slot_lost") && check.stdout.contains("idle_replication_slot_timeout"), "{check:?}");
    let daemon = shop.daemon().await;
    assert!(daemon.generation().await > before);
    says_why(&daemon);
    assert!(daemon.log().contains("\"reason\":\"idle_timeout\""), "{}", daemon.log());
    assert_eq!(version(&daemon.http().get("/v1/counter/3").await.expect(200).json()), Some(2));
    shop.equals_postgres(&daemon).await;
    // Held, it does not time out.
    let until = current_lsn(&sql).await;
    sql.batch_execute("CHECKPOINT").await.unwrap();
    daemon.wait_applied(until).await;
    assert_eq!(slot_health(&daemon, "reserved").await["invalidation_reason"], serde_json::Value::Null);
}

/// What the slot is, to the last detail that a new one would not share.
async fn identity(shop: &Shop, sql: &Client) -> String {
    let query = "SELECT row_to_json(s)::text FROM (SELECT slot_type, plugin, database, catalog_xmin::text, restart_lsn::text, \
                 confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1) s";
    sql.query_one(query, &[&shop.stage.name]).await.unwrap().get(0)
}

/// Ends whoever reads the slot, drops it, and at once makes another in its place. `create` is one expression.
fn replace(slot: &str, create: &str) -> String {
    format!(
        "DO $$ BEGIN
             FOR i IN 1..10000 LOOP
                 PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active;
                 BEGIN
                     PERFORM pg_drop_replication_slot('{slot}');
                     PERFORM {create};
                     RETURN;
                 EXCEPTION WHEN object_in_use THEN PERFORM pg_sleep(0.002);
                 END;
             END LOOP;
             RAISE 'the slot is always in use';
         END $$"
    )
}

/// A slot that is not ours stands under our name: refused at the start, with what to do; never dropped, never read.
async fn foreign(name: &str, create: impl Fn(&str) -> String, elsewhere: bool, said: &str) {
    let shop = Shop::new(name).await;
    let sql = shop.sql().await;
    let slot = shop.stage.name.clone();
    shop.stage.postgres.create_database("elsewhere").await.unwrap();
    let maker = if elsewhere { shop.stage.postgres.connect("elsewhere").await.unwrap() } else { shop.sql().await };
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");

    let daemon = shop.daemon().await;
    cached(&shop, &sql, &daemon, 1).await;
    let before = daemon.generation().await;
    // Under the daemon's feet: it must not make one itself where it finds none.
    daemon.pause().await;
    if elsewhere {
        // Only a session of its database may make a slot there.
        shop.stage.execute(&replace(&slot, "1")).await;
        maker.batch_execute(&format!("SELECT {}", create(&slot))).await.unwrap();
    } else {
        maker.batch_execute(&replace(&slot, &create(&slot))).await.unwrap();
    }
    daemon.resume();
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    let it = identity(&shop, &sql).await;
    eventually("say what is wrong with the slot", || async {
        let status = daemon.status().await;
        let problem = status["problem"].as_str().unwrap_or_default().to_owned();
        let told = daemon.log().lines().any(|line| line.contains("\"ERROR\"") && line.contains(said));
        if !problem.is_empty() && told { Ok(()) } else { Err(format!("{problem:?}\n{}", daemon.log())) }
    })
    .await;
    assert_eq!(daemon.status().await["replication"]["connected"], false);
    assert_eq!(identity(&shop, &sql).await, it, "somebody else's slot was touched");
    daemon.kill().await;

    // And at the start.
    let daemon = Daemon::spawn(&shop.config, &[]);
    let ended = daemon.wait().await;
    let log = daemon.log();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains(said) && log.contains("choose another source.slot"), "{log}");
    assert_eq!(identity(&shop, &sql).await, it, "somebody else's slot was touched");

    // Once the operator has made room, nothing that was missed is served.
    maker.batch_execute(&drop).await.unwrap();
    let daemon = shop.daemon().await;
    assert!(daemon.generation().await > before);
    assert_eq!(version(&daemon.http().get("/v1/counter/3").await.expect(200).json()), Some(2));
    shop.equals_postgres(&daemon).await;
}

/// 4: a slot of another plugin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_another_plugin() {
    let create = |slot: &str| format!("pg_create_logical_replication_slot('{slot}', 'test_decoding')");
    foreign("slot_plugin", create, false, "test_decoding").await;
}

/// 4: a slot of another database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_another_database() {
    let create = |slot: &str| format!("pg_create_logical_replication_slot('{slot}', '{}')", plugin());
    foreign("slot_database", create, true, "database").await;
}

/// 4: a physical slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_another_kind() {
    let create = |slot: &str| format!("pg_create_physical_replication_slot('{slot}')");
    foreign("slot_physical", create, false, "physical").await;
}
