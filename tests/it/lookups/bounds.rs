//! Where lookups would cost too much, or fail, all of the entity's entries are voided: nothing waits, nothing is left out.

use std::time::Duration;

use walcache::sandbox::RedisOptions;

use super::*;
use crate::harness::{Hidden, plugin, wait_for};

/// As [`BOUGHT`]; but the lookup by product 7 fails, that by product 8 takes five seconds, and that by product 9 finds very many.
fn odd() -> Entity {
    let lookup = "SELECT CASE WHEN $1 = 7 THEN 1 / ($1 - 7) ELSE o.customer_id + g END FROM orders o \
        JOIN lines l ON l.order_id = o.id, generate_series(0, CASE WHEN $1 = 9 THEN 10000 ELSE 0 END) g, \
        LATERAL (SELECT pg_sleep(CASE WHEN $1 = 8 THEN 5 ELSE 0 END)) s WHERE l.product_id = $1::int";
    let by = BOUGHT.rfind("SELECT o.customer_id").unwrap();
    let end = by + BOUGHT[by..].find('"').unwrap();
    Entity::written(&format!("{}{lookup}{}", &BOUGHT[..by], &BOUGHT[end..]))
}

async fn bounded(name: &str) -> Market {
    let mut market = Market::on(Stage::shared(name).await, odd()).await;
    market.config = market.config.set("apply", "lookup_timeout", "300ms");
    market
}

/// A lookup that fails, one that takes too long, and one that finds too much; with others in the same batch and round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_that_fail() {
    let market = bounded("failing").await;
    let daemon = market.daemon(&[]).await;
    for (id, reason) in [(7, "failed"), (8, "late"), (9, "keys")] {
        market.is_right(&daemon).await;
        let ids = format!("{id}, 1, 2, 3");
        market.stage.execute(&format!("UPDATE products SET version = version + 1 WHERE id IN ({ids})")).await;
        market.is_right(&daemon).await;
        assert_eq!(voided(&daemon, reason).await, 1.0, "{reason}");
        // And the next one is as before.
        market.stage.execute("UPDATE products SET version = version + 1 WHERE id = 4").await;
        market.is_right(&daemon).await;
        assert_eq!(voided(&daemon, reason).await, 1.0, "{reason}");
    }
    assert!(daemon.log().contains("voiding all entries instead of looking up"), "{}", daemon.log());
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

/// A daemon that is far behind does not look up what it sees of the future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_far_behind() {
    if plugin() != "pgoutput" {
        println!("SKIPPED: {} does not stream what puts batches far apart here", plugin());
        return;
    }
    let mut market = Market::new("distance").await;
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
    eventually("open a round", || async {
        // Its transaction is open.
        let query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND application_name = 'walcache'";
        let open: i64 = sql.query_one(query, &[]).await.unwrap().get(0);
        if open == 1 { Ok(()) } else { Err(format!("{open} transactions are open")) }
    })
    .await;
    let began = std::time::Instant::now();
    let status = daemon.terminate().await;
    assert!(status.success() && began.elapsed() < Duration::from_secs(5), "{status} after {:?}", began.elapsed());
    let confirmed = market.confirmed().await;
    assert!(confirmed <= before, "confirmed {confirmed}, and before {before}");
    wait_for(&sql, "").await;
    hanging.await.unwrap();
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
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
