//! Fault 14: the server behind `source.url` is another one: a promoted standby that lacks the last commits, where LSNs go
//! back, while the old primary is gone or runs on; one that has kept the slot; another cluster; or two by turns.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;
use walcache::lsn::Lsn;
use walcache::sandbox::{Postgres, PostgresOptions, RedisOptions};

use crate::harness::{Daemon, Histories, Proxy, ROWS, Shop, cli, current_lsn, eventually, eventually_within, version};

/// How long the synchronization of slots may sleep between two rounds.
const SLOTS_SYNCED: Duration = Duration::from_secs(60);

/// A primary and its standby; the daemon goes through `front`, the standby through `back`.
struct Pair {
    shop: Shop,
    standby: Postgres,
    front: Proxy,
    back: Proxy,
}

/// A shop whose daemon goes through a proxy.
async fn behind_proxy(name: &str, postgres: PostgresOptions) -> (Shop, Proxy) {
    let mut shop = Shop::with(name, postgres, RedisOptions::new()).await;
    let front = Proxy::start(shop.stage.postgres.port()).await;
    let url = shop.stage.postgres.url_at(front.port(), &shop.stage.name);
    shop.config = shop.config.set("source", "url", url);
    (shop, front)
}

async fn pair(name: &str, standby: PostgresOptions) -> Pair {
    let (shop, front) = behind_proxy(name, PostgresOptions::new().setting("wal_sender_timeout", "2s")).await;
    let primary = &shop.stage.postgres;
    let back = Proxy::start(primary.port()).await;
    let slot = "SELECT pg_create_physical_replication_slot('standby', true)";
    primary.execute("postgres", slot).await.unwrap();
    let standby = standby.setting("primary_slot_name", "standby").setting("hot_standby_feedback", "on");
    let standby = primary.standby(back.port(), &shop.stage.name, &standby).await.unwrap();
    Pair { shop, standby, front, back }
}

/// The same shop on another server; what was written before is not on record there.
fn moved_to(shop: &Shop, postgres: Postgres) -> Shop {
    let stage = shop.stage.moved_to(Arc::new(postgres), shop.stage.redis.clone());
    let (config, histories) = (shop.config.clone(), Arc::new(Histories::new(ROWS)));
    Shop { stage: Arc::new(stage), config, histories }
}

/// Until a standby has replayed everything up to `lsn`.
async fn replayed(standby: &Postgres, lsn: Lsn) {
    let sql = standby.connect("postgres").await.unwrap();
    eventually("have the standby catch up", || async {
        let at = sql.query_one("SELECT pg_last_wal_replay_lsn()::text", &[]).await.unwrap();
        let at: Lsn = at.get::<_, &str>(0).parse().unwrap();
        if at >= lsn { Ok(()) } else { Err(at) }
    })
    .await;
}

/// `system/timeline`, once the daemon streams from there.
async fn until_follows(daemon: &Daemon, wanted: &str) {
    eventually(&format!("follow {wanted}"), || async {
        let status = daemon.status().await;
        let replication = &status["replication"];
        let source = replication["source"].as_str().unwrap_or_default();
        let there = source.starts_with(&format!("{wanted}/")) && replication["connected"] == true;
        if there && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

async fn system(sql: &Client) -> String {
    sql.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await.unwrap().get(0)
}

async fn read(daemon: &Daemon, id: usize) -> Option<i64> {
    eventually("be answered", || async {
        let response = daemon.http().get(&format!("/v1/counter/{id}")).await;
        match response.status.as_u16() {
            200 => Ok(version(&response.json())),
            404 => Ok(None),
            // For a moment after it was refused a connection, Postgres is not asked.
            _ => Err(format!("{response:?}")),
        }
    })
    .await
}

/// Rows 0 to 39 at version 1, on the standby, too, and cached. Then commits that the standby never gets, cached as well, and
/// so much more log that its LSNs lie far behind. Gives the end of the log.
async fn with_lost_commits(pair: &Pair, daemon: &Daemon) -> Lsn {
    let Pair { shop, standby, back, .. } = pair;
    let sql = shop.sql().await;
    for id in 0..40 {
        shop.put(&sql, id, 1).await;
    }
    shop.equals_postgres(daemon).await;
    replayed(standby, current_lsn(&sql).await).await;
    back.refuse();
    back.cut();
    for id in (0..10).chain([50]) {
        shop.put(&sql, id, 2).await;
    }
    sql.batch_execute(
        "DELETE FROM counters WHERE id = 20;
         SELECT count(pg_logical_emit_message(false, 'filler', repeat('x', 1000))) FROM generate_series(1, 20000)",
    )
    .await
    .unwrap();
    let end = current_lsn(&sql).await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, 'end', '')").await.unwrap();
    daemon.wait_applied(end).await;
    for (id, wanted) in [(0, Some(2)), (9, Some(2)), (50, Some(2)), (20, None)] {
        assert_eq!(read(daemon, id).await, wanted, "{id}");
    }
    end
}

/// What was lost is gone, what is written now is not refused although its LSN is smaller, and all oracles hold.
async fn all_is_well(shop: &Shop, daemon: &Daemon, end_of_old: Lsn) {
    for (id, wanted) in [(0, Some(1)), (9, Some(1)), (50, None), (20, Some(1))] {
        assert_eq!(read(daemon, id).await, wanted, "{id}");
    }
    let sql = shop.sql().await;
    for id in 0..ROWS {
        let lsn = shop.put(&sql, id, 3).await;
        assert!(lsn < end_of_old, "LSNs go back: {lsn}, {end_of_old}");
        daemon.wait_applied(lsn).await;
        assert_eq!(read(daemon, id).await, Some(3), "{id}");
    }
    shop.equals_postgres(daemon).await;
    let load = shop.load(daemon, 141);
    load.writes(100).await;
    load.reads(300).await;
    load.stop().await;
    shop.recorded_equals_postgres().await;
    shop.equals_postgres(daemon).await;
    daemon.kill().await;
    assert!(shop.confirmed_is_applied().await > 0);
}

/// 14: the primary crashes; its standby lacks the last commits, and the slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_without_the_last_commits_is_promoted() {
    let pair = pair("promoted", PostgresOptions::new()).await;
    let daemon = pair.shop.daemon().await;
    let (system, pid) = (system(&pair.shop.sql().await).await, daemon.pid());
    let end = with_lost_commits(&pair, &daemon).await;
    let before = daemon.generation().await;
    pair.shop.stage.postgres.kill().await.unwrap();
    pair.standby.promote().await.unwrap();
    // To make a slot waits for this; what was cached is not served until then.
    let new = pair.standby.connect(&pair.shop.stage.name).await.unwrap();
    new.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    pair.front.lead_to(pair.standby.port());
    eventually("wait for the slot", || async {
        let log = daemon.log();
        let noticed = log.contains("the source is another system or timeline than before");
        if noticed && log.contains("creating the replication slot") { Ok(()) } else { Err(log) }
    })
    .await;
    for (id, wanted) in [(0, Some(1)), (9, Some(1)), (50, None), (20, Some(1))] {
        assert_eq!(read(&daemon, id).await, wanted, "{id}");
    }
    assert_eq!(daemon.status().await["replication"]["connected"], false, "the slot was not made yet");
    new.batch_execute("COMMIT").await.unwrap();
    until_follows(&daemon, &format!("{system}/2")).await;
    assert!(daemon.generation().await > before);
    let shop = moved_to(&pair.shop, pair.standby);
    all_is_well(&shop, &daemon, end).await;
    assert_eq!(daemon.pid(), None, "it was killed at the end, and had not exited before: {pid:?}");
}

/// 14: the same while no daemon runs: the next one finds entries of lost commits in Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_promoted_while_no_daemon_runs() {
    let pair = pair("promoted_down", PostgresOptions::new()).await;
    let daemon = pair.shop.daemon().await;
    let system = system(&pair.shop.sql().await).await;
    let end = with_lost_commits(&pair, &daemon).await;
    let before = daemon.generation().await;
    daemon.kill().await;
    pair.shop.stage.postgres.kill().await.unwrap();
    pair.standby.promote().await.unwrap();
    pair.front.lead_to(pair.standby.port());
    let shop = moved_to(&pair.shop, pair.standby);
    let daemon = shop.daemon().await;
    until_follows(&daemon, &format!("{system}/2")).await;
    assert!(daemon.generation().await > before);
    all_is_well(&shop, &daemon, end).await;
}

/// 14: the old primary runs on, with all the connections that the daemon had: only the address leads elsewhere now. It is
/// noticed within `dead_after` (here 3 s), and nothing is read from the old one again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_primary_runs_on() {
    let pair = pair("old_runs_on", PostgresOptions::new()).await;
    let daemon = pair.shop.daemon().await;
    let old = pair.shop.sql().await;
    let system = system(&old).await;
    let end = with_lost_commits(&pair, &daemon).await;
    pair.standby.promote().await.unwrap();
    pair.front.lead_to(pair.standby.port());
    until_follows(&daemon, &format!("{system}/2")).await;
    // Whoever reads there shows it.
    old.batch_execute("UPDATE counters SET version = 999; INSERT INTO counters SELECT g, 999 FROM generate_series(40, 63) g ON CONFLICT DO NOTHING")
        .await
        .unwrap();
    for id in 0..ROWS {
        assert_ne!(read(&daemon, id).await, Some(999), "{id} was read from the old primary");
    }
    let connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walcache'";
    eventually("have no connection to the old primary", || async {
        let left: i64 = old.query_one(connected, &[]).await.unwrap().get(0);
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    let shop = moved_to(&pair.shop, pair.standby);
    all_is_well(&shop, &daemon, end).await;
}

/// 14: a failover slot is there after the promotion, and nothing that was in it is missed; Postgres 17 and later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_slot_goes_on_after_the_promotion() {
    let pair = pair("failover_slot", PostgresOptions::new()).await;
    let Pair { shop, standby, front, back: _back } = pair;
    let sql = shop.sql().await;
    let version = shop.stage.version().await;
    if version < 17 {
        println!("SKIPPED: failover slots need Postgres 17, and this is {version}");
        return;
    }
    sql.batch_execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await.unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let on_standby = standby.connect("postgres").await.unwrap();
    on_standby.batch_execute("ALTER SYSTEM SET sync_replication_slots = on").await.unwrap();
    on_standby.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let slot = &shop.stage.name;
    let failover = "SELECT failover FROM pg_replication_slots WHERE slot_name = $1";
    assert!(sql.query_one(failover, &[slot]).await.unwrap().get::<_, bool>(0), "made by `setup`");

    let daemon = shop.daemon().await;
    for id in 0..40 {
        shop.put(&sql, id, 1).await;
    }
    shop.equals_postgres(&daemon).await;
    let synced =
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary";
    let at_least = async |lsn: Lsn| {
        eventually_within(SLOTS_SYNCED, "have the slot on the standby", || async {
            let row = on_standby.query_opt(synced, &[slot]).await.unwrap().ok_or("not there yet".to_owned())?;
            let at: Lsn = row.get::<_, &str>(0).parse().unwrap();
            if at >= lsn { Ok(at) } else { Err(format!("{at} of {lsn}")) }
        })
        .await
    };
    at_least(current_lsn(&sql).await).await;
    // In the log, and not yet applied, when the primary is gone.
    daemon.kill().await;
    for id in 0..20 {
        shop.put(&sql, id, 2).await;
    }
    replayed(&standby, current_lsn(&sql).await).await;
    let (system, before) = (system(&sql).await, current_lsn(&sql).await);
    let stood = at_least(Lsn::ZERO).await;
    shop.stage.postgres.kill().await.unwrap();
    standby.promote().await.unwrap();
    front.lead_to(standby.port());
    let shop = moved_to(&shop, standby);
    let daemon = shop.daemon().await;
    until_follows(&daemon, &format!("{system}/2")).await;
    assert!(!daemon.log().contains("creating the replication slot"), "{}", daemon.log());
    assert!(shop.confirmed().await >= stood);
    daemon.wait_applied(before).await;
    for id in 0..40 {
        assert_eq!(read(&daemon, id).await, Some(if id < 20 { 2 } else { 1 }), "{id}");
    }
    shop.equals_postgres(&daemon).await;
    let sql = shop.sql().await;
    for id in 0..ROWS {
        let lsn = shop.put(&sql, id, 3).await;
        daemon.wait_applied(lsn).await;
    }
    let load = shop.load(&daemon, 142);
    load.writes(100).await;
    load.reads(200).await;
    load.stop().await;
    shop.equals_postgres(&daemon).await;
}

/// A slot is made one that standbys keep in step, and back, as the configuration says; before Postgres 17 it is left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_altered_as_configured() {
    let mut shop = Shop::new("slot_altered").await;
    let sql = shop.sql().await;
    let slot = shop.stage.name.clone();
    let failover = async || {
        let query = "SELECT (to_jsonb(s) ->> 'failover')::bool FROM pg_replication_slots s WHERE slot_name = $1";
        sql.query_one(query, &[&slot]).await.unwrap().get::<_, Option<bool>>(0)
    };
    let Some(made_by_setup) = failover().await else {
        println!("skipped: this Postgres has no failover slots");
        shop.config = shop.config.set("source", "failover_slot", true);
        shop.daemon().await;
        return;
    };
    assert!(made_by_setup);
    for wanted in [false, true] {
        let check = cli(&shop.config.clone().set("source", "failover_slot", true), &["check"], &[]).await;
        assert_eq!(check.stdout.contains("slot_failover"), !failover().await.unwrap(), "{check:?}");
        shop.config = shop.config.set("source", "failover_slot", wanted);
        let daemon = shop.daemon().await;
        assert_eq!(failover().await, Some(wanted), "{}", daemon.log());
        assert!(daemon.terminate().await.success());
    }
    // Made anew by the daemon itself.
    sql.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    let daemon = shop.daemon().await;
    assert_eq!(failover().await, Some(true), "{}", daemon.log());
}

/// 14: another cluster answers at the address, with other rows and smaller LSNs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_answers() {
    let (shop, front) = behind_proxy("other_cluster", PostgresOptions::new()).await;
    let sql = shop.sql().await;
    let daemon = shop.daemon().await;
    for id in 0..20 {
        shop.put(&sql, id, 1).await;
    }
    sql.batch_execute(
        "SELECT count(pg_logical_emit_message(true, 'filler', repeat('x', 1000))) FROM generate_series(1, 20000)",
    )
    .await
    .unwrap();
    shop.equals_postgres(&daemon).await;
    let before = daemon.generation().await;
    let end = current_lsn(&sql).await;

    let other = Postgres::start(PostgresOptions::new()).await.unwrap();
    other.create_database(&shop.stage.name).await.unwrap();
    let schema = "CREATE TABLE counters (id int PRIMARY KEY, version bigint NOT NULL, note text NOT NULL DEFAULT '');
                  CREATE TABLE outcomes (transaction bigint PRIMARY KEY, committed bool NOT NULL)";
    other.execute(&shop.stage.name, schema).await.unwrap();
    // Its password is another one: it has to be in the URL that both are asked with.
    let alike = format!("ALTER ROLE postgres PASSWORD '{}'", shop.stage.postgres.password());
    let direct = shop.config.clone().set("source", "url", other.url(&shop.stage.name));
    let setup = cli(&direct, &["setup", "--apply"], &[]).await;
    assert!(setup.status.success(), "{setup:?}");
    let there = other.connect(&shop.stage.name).await.unwrap();
    there.batch_execute(&alike).await.unwrap();
    there.batch_execute("INSERT INTO counters SELECT g, 7 FROM generate_series(0, 9) g").await.unwrap();
    let system = system(&there).await;
    front.lead_to(other.port());
    front.cut();
    until_follows(&daemon, &format!("{system}/1")).await;
    assert!(daemon.generation().await > before);
    for id in 0..20 {
        assert_eq!(read(&daemon, id).await, (id < 10).then_some(7), "{id}");
    }
    there.batch_execute("UPDATE counters SET version = 8").await.unwrap();
    let at = current_lsn(&there).await;
    assert!(at < end, "LSNs go back: {at}, {end}");
    there.batch_execute("SELECT pg_logical_emit_message(true, 'end', '')").await.unwrap();
    daemon.wait_applied(at).await;
    for id in 0..20 {
        assert_eq!(read(&daemon, id).await, (id < 10).then_some(8), "{id}");
    }
}

/// The address leads to two servers by turns: to gate, fill and stream from different ones would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_by_turns_are_refused() {
    let (shop, front) = behind_proxy("by_turns", PostgresOptions::new()).await;
    let other =
        shop.stage.postgres.standby(shop.stage.postgres.port(), &shop.stage.name, &PostgresOptions::new()).await;
    let other = other.unwrap();
    // A primary of its own: of the same cluster, with the same rows, slot and password.
    other.promote().await.unwrap();
    let slot = format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", shop.stage.name);
    other.execute(&shop.stage.name, &slot).await.unwrap();
    front.lead_by_turns_to(other.port());
    let daemon = Daemon::spawn(&shop.config, &[]);
    let ended = daemon.wait().await;
    let log = daemon.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let ports = [&shop.stage.postgres, &other].map(|server| server.port().to_string());
    assert!(log.contains("source.url leads to more than one server"), "{log}");
    assert!(ports.iter().all(|port| log.contains(port)), "names both: {ports:?}\n{log}");
    assert!(log.contains("let source.url lead to the primary alone"), "{log}");
}
