//! Where lookups would cost too much, or fail, all of the entity's entries are voided: nothing waits, nothing is left out.

use std::time::Duration;

use walcache::failpoint::{HOLD, Point};

use super::*;
use crate::harness::{Hidden, LONG_LIMIT, eventually_within, plugin, wait_for};

/// As [`BOUGHT`]; but the lookup by product 7 fails, that by product 8 takes a minute, that by product 9 finds very many,
/// those by products 10 and 11 more than half as many as may be, that by product 12 ends its own connection, and that by product 13
/// finds what is wanted after very many rows of no key.
pub(super) fn odd() -> Entity {
    let lookup = "SELECT CASE WHEN $1 = 7 THEN 1 / ($1 - 7) WHEN $1 = 12 THEN pg_terminate_backend(pg_backend_pid())::int \
        WHEN $1 = 13 THEN CASE WHEN g = 20000 THEN o.customer_id END ELSE o.customer_id + g END FROM orders o \
        JOIN lines l ON l.order_id = o.id, \
        generate_series(0, CASE WHEN $1 = 9 THEN 10000 WHEN $1 IN (10, 11) THEN 5999 WHEN $1 = 13 THEN 20000 ELSE 0 END) g, \
        LATERAL (SELECT pg_sleep(CASE WHEN $1 = 8 THEN 60 ELSE 0 END)) s WHERE l.product_id = $1::int";
    let by = BOUGHT.rfind("SELECT o.customer_id").unwrap();
    let end = by + BOUGHT[by..].find('"').unwrap();
    Entity::written(&format!("{}{lookup}{}", &BOUGHT[..by], &BOUGHT[end..]))
}

/// A lookup that fails, one that takes too long, and one that finds too much; with others in the same batch and round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_that_fail() {
    let mut market = Market::on(Stage::shared("failing").await, odd()).await;
    for (id, reason) in [(7, "failed"), (8, "late"), (9, "keys"), (13, "keys")] {
        // One that takes too long; the others may take as long as they do.
        let limit = if reason == "late" { "1s" } else { "30s" };
        market.config = market.config.set("apply", "lookup_timeout", limit);
        let daemon = market.daemon(&[]).await;
        market.is_right(&daemon).await;
        let ids = format!("{id}, 1, 2, 3");
        market.stage.execute(&format!("UPDATE products SET version = version + 1 WHERE id IN ({ids})")).await;
        market.is_right(&daemon).await;
        let times = voided(&daemon, reason).await;
        assert!(times == 1.0 || reason == "late" && times > 1.0, "{reason}: {times}");
        // And the next one is as before; after a rest, if time was lost.
        eventually_within(LONG_LIMIT, "look up again", || async {
            let before = voided_at_all(&daemon, "bought").await;
            market.stage.execute("UPDATE products SET version = version + 1 WHERE id = 4").await;
            market.is_right(&daemon).await;
            if voided_at_all(&daemon, "bought").await == before { Ok(()) } else { Err("voided") }
        })
        .await;
        let later = voided(&daemon, reason).await;
        assert!(later == times || reason == "late", "{reason}: {times}, then {later}");
        assert!(daemon.log().contains("voiding all entries instead of looking up"), "{}", daemon.log());
        assert!(daemon.terminate().await.success());
    }
}

/// What a batch's lookups find is counted together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_keys_of_several_lookups() {
    let market = Market::on(Stage::shared("many_keys").await, odd()).await;
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    for (ids, times) in [("10", 0.0), ("11", 0.0), ("10, 11", 1.0)] {
        market.stage.execute(&format!("UPDATE products SET version = version + 1 WHERE id IN ({ids})")).await;
        market.is_right(&daemon).await;
        assert_eq!(voided(&daemon, "keys").await, times, "{ids}");
    }
    assert_eq!(voided_at_all(&daemon, "bought").await, 1.0);
}

/// More lookups than are run; in one transaction, and in one that is applied in pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_lookups() {
    let mut market = Market::new("many").await;
    market.config = market.config.set("apply", "max_lookups", 5);
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    market.stage.execute("UPDATE products SET version = version + 1 WHERE id <= 5").await;
    market.is_right(&daemon).await;
    assert_eq!(voided(&daemon, "many").await, 0.0);
    market.stage.execute("UPDATE products SET version = version + 1 WHERE id <= 6").await;
    market.is_right(&daemon).await;
    assert_eq!(voided(&daemon, "many").await, 1.0);
    daemon.terminate().await;
    market.config = market.config.set("apply", "max_transaction_bytes", "1KiB").set("apply", "max_batch_events", 8);
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    market.stage.execute("UPDATE products SET version = version + 1").await;
    market.is_right(&daemon).await;
    let many = voided(&daemon, "many").await;
    assert!((1.0..=2.0).contains(&many), "the pieces that follow need no lookups: voided {many} times");
}

/// What several batches of a round want is asked once, and counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_lookup_is_run_once_in_a_round() {
    let mut market = Market::new("once").await;
    market.config = market.config.set("apply", "max_lookups", 1).set("apply", "max_batch_events", 1);
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    let again = "UPDATE products SET version = version + 1 WHERE id = 1";
    market.behind(&daemon, &[again, APART, again, APART, again]).await;
    market.is_right(&daemon).await;
    assert_eq!(voided_at_all(&daemon, "bought").await, 0.0);
}

/// A daemon that is far behind does not look up what it sees of the future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_far_behind() {
    if plugin() != "pgoutput" {
        println!("SKIPPED: {} does not stream what puts batches far apart here", plugin());
        return;
    }
    // On servers of its own: what other tests write is log, too.
    let stage = Stage::private("distance", PostgresOptions::new(), RedisOptions::new()).await;
    let mut market = Market::on(stage, Entity::written(BOUGHT)).await;
    market.config = market.config.set("apply", "max_lookup_distance", "64KiB").set("apply", "max_batch_events", 1);
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    // Much log.
    let much = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000000))";
    let changes = "UPDATE products SET version = version + 1 WHERE id = 2";
    market.behind(&daemon, &[CHANGED, changes, LEFT_ORDER, much, APART, changes]).await;
    market.is_right(&daemon).await;
    assert_eq!(voided(&daemon, "distance").await, 1.0, "what was seen then needs no lookups");
}

/// Batches that a round has seen keep coming when its time is over: nobody waits for them. The first of them is held up until
/// then, and the process dies as it gives the round up: the second is not written yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_is_given_up_while_batches_keep_coming() {
    let market = Market::alone("hold_load").await;
    let config = market.config.clone().set("apply", "max_batch_events", 1).set("apply", "lookup_hold", "1ms");
    let market = Market { config: config.entity(Entity::new("order", "public.orders")), ..market };
    let hold = market.stage.redis.dir().join(&market.stage.name);
    std::fs::write(&hold, "").unwrap();
    let at = format!("{}=wait@1,{}=kill@1", Point::Held.name(), Point::BeforeRaise.name());
    let daemon = market.daemon(&[(KILLS, &at), (HOLD, hold.to_str().unwrap())]).await;
    let note = async |daemon: &Daemon| daemon.http().get("/v1/order/50").await.expect(200).json()["note"].clone();
    assert_eq!(
        (bought(&daemon.http(), 1).await, note(&daemon).await),
        (json!([{ "id": 1, "version": 1 }]), Value::Null)
    );
    let before = market.behind(&daemon, &[CHANGED, APART]).await;
    let end = current_lsn(&market.stage.sql().await).await;
    eventually("have the first batch, and receive the second", || async {
        let status = daemon.status().await;
        let received = status["replication"]["received_lsn"].as_str().and_then(|lsn| lsn.parse().ok());
        let is_there = daemon.log().contains("this task waits") && received >= Some(end);
        if is_there { Ok(()) } else { Err(status["replication"].to_string()) }
    })
    .await;
    std::fs::remove_file(&hold).unwrap();
    daemon.wait().await;
    let mut raw = Raw::connect(&market.stage).await.unwrap();
    let stored = raw.look("order:50").await.unwrap().unwrap();
    let order = servable(&stored, "order").map(|entry| entry.value);
    assert_eq!(order.map(|order| order["note"].clone()), Some(Value::Null), "the second batch was written first");
    let (done, _) = market.stands().await;
    assert!(done <= before && market.confirmed().await <= before, "done up to {done}, and before {before}");
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    assert_eq!(note(&daemon).await.as_str().map(str::len), Some(1_000_000));
}

/// A transaction is in the log before a round begins, and not visible: its lookups are left to the next round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_round_does_not_see_waits_for_the_next_one() {
    let stage = Stage::private("deferred", Hidden::postgres(), RedisOptions::new()).await;
    let mut market = Market::on(stage, Entity::written(BOUGHT)).await;
    market.config = market.config.set("apply", "max_batch_events", 1);
    let sql = market.stage.sql().await;
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    wait_for(&sql, "nobody").await;
    daemon.pause().await;
    market.stage.execute(CHANGED).await;
    market.stage.execute(APART).await;
    let hanging = hang(&market, &sql).await;
    daemon.resume();
    until_a_round_is_open(&sql).await;
    wait_for(&sql, "").await;
    hanging.await.unwrap();
    market.is_right(&daemon).await;
    assert_eq!(voided_at_all(&daemon, "bought").await, 0.0);
    assert!(metric(&daemon, "walcache_lookup_round_seconds_count").await >= 2.0);
}

/// What a lookup has seen does not become visible: what was applied before is published all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_does_not_wait_for_ever() {
    let stage = Stage::private("hold", Hidden::postgres(), RedisOptions::new()).await;
    let mut market = Market::on(stage, Entity::written(BOUGHT)).await;
    market.config = market.config.set("apply", "max_batch_events", 1).set("apply", "lookup_hold", "400ms");
    let sql = market.stage.sql().await;
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    wait_for(&sql, "nobody").await;

    daemon.pause().await;
    let changed = market.stage.execute(CHANGED).await;
    market.stage.execute(APART).await;
    let hanging = hang(&market, &sql).await;
    daemon.resume();
    daemon.wait_applied(changed).await;
    assert_eq!(voided(&daemon, "held").await, 1.0);
    assert_eq!(bought(&daemon.http(), 1).await, json!([{ "id": 1, "version": 2 }]));
    wait_for(&sql, "").await;
    hanging.await.unwrap();
    market.is_right(&daemon).await;
    daemon.terminate().await;

    // SIGTERM meanwhile: what is held is not confirmed.
    market.config = market.config.set("apply", "lookup_hold", "60s").set("http", "grace", "2s");
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    wait_for(&sql, "nobody").await;
    daemon.pause().await;
    let before = current_lsn(&sql).await;
    sql.batch_execute("UPDATE products SET version = 3 WHERE id = 1").await.unwrap();
    sql.batch_execute(APART).await.unwrap();
    let hanging = hang(&market, &sql).await;
    daemon.resume();
    until_a_round_is_open(&sql).await;
    let began = std::time::Instant::now();
    let status = daemon.terminate().await;
    assert!(status.success() && began.elapsed() < Duration::from_secs(15), "{status} after {:?}", began.elapsed());
    let confirmed = market.confirmed().await;
    assert!(confirmed <= before, "confirmed {confirmed}, and before {before}");
    wait_for(&sql, "").await;
    hanging.await.unwrap();
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
}

/// Waits until a round's transaction is open.
async fn until_a_round_is_open(sql: &tokio_postgres::Client) {
    eventually("open a round", || async {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND application_name = 'walcache'";
        let open: i64 = sql.query_one(query, &[]).await.unwrap().get(0);
        if open == 1 { Ok(()) } else { Err(format!("{open} transactions are open")) }
    })
    .await;
}

/// A commit that is in the log, and not visible.
async fn hang(market: &Market, sql: &tokio_postgres::Client) -> tokio::task::JoinHandle<()> {
    let writer = market.stage.sql().await;
    let commit = tokio::spawn(async move {
        let hidden = "SET synchronous_commit = on; UPDATE products SET version = 9 WHERE id = 9";
        writer.batch_execute(hidden).await.unwrap();
    });
    eventually("have the commit wait for the standby", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let waiting: i64 = sql.query_one(waiting, &[]).await.unwrap().get(0);
        if waiting == 1 { Ok(()) } else { Err("it does not wait") }
    })
    .await;
    commit
}
