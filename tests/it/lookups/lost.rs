//! Lookups that fail, and connections that are lost in the middle of a round: whatever is not answered is voided, of all
//! entities that it concerns, and of no others.

use super::bounds::odd;
use super::*;
use crate::harness::Proxy;

/// Two entities of one shop: lookups of the first are odd.
async fn two(name: &str) -> Market {
    let mut market = Market::on(Stage::shared(name).await, odd()).await;
    market.config = market
        .config
        .set("apply", "lookup_timeout", "10s")
        .set("apply", "lookup_hold", "10m")
        .entity(Entity::written(&BOUGHT.replace("\"bought\"", "\"other\"")));
    market
}

const BOTH: [&str; 2] = ["bought", "other"];

/// What one entity's lookups cost it costs no other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_that_fails_voids_nobody_elses_entries() {
    let market = two("failing_other").await;
    let daemon = market.daemon(&[]).await;
    for ids in ["7, 1, 2, 3", "9, 4, 5, 6", "1, 2, 7, 3"] {
        market.are_right(&daemon, &BOTH).await;
        market.stage.execute(&format!("UPDATE products SET version = version + 1 WHERE id IN ({ids})")).await;
        market.are_right(&daemon, &BOTH).await;
    }
    assert_eq!((voided(&daemon, "failed").await, voided(&daemon, "keys").await), (2.0, 1.0));
    assert_eq!(voided_at_all(&daemon, "other").await, 0.0);
}

/// The server ends the connection while it answers: nothing of the round can be counted on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_lost_voids_all_of_the_round() {
    let market = two("lost_middle").await;
    let daemon = market.daemon(&[]).await;
    market.are_right(&daemon, &BOTH).await;
    market.stage.execute("UPDATE products SET version = version + 1 WHERE id IN (12, 1, 2, 3)").await;
    market.are_right(&daemon, &BOTH).await;
    for entity in BOTH {
        assert_eq!(voided_of(&daemon, entity, "failed").await, 1.0, "{entity}");
    }
    // The next round has another one.
    market.stage.execute("UPDATE products SET version = version + 1 WHERE id IN (1, 2, 3)").await;
    market.are_right(&daemon, &BOTH).await;
    assert_eq!((voided_at_all(&daemon, "bought").await, voided_at_all(&daemon, "other").await), (1.0, 1.0));
}

/// 19: a lookup has failed, and the server is silent when that is to be taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_after_a_failed_lookup_is_not_waited_out() {
    let mut market = two("mute_mend").await;
    let proxy = Proxy::start(market.stage.postgres.port()).await;
    let url = market.stage.postgres.url_at(proxy.port(), &market.stage.name);
    market.config = market.config.set("source", "url", url).set("apply", "lookup_timeout", "5s");
    let daemon = market.daemon(&[]).await;
    market.are_right(&daemon, &BOTH).await;
    proxy.mute_at("ROLLBACK TO SAVEPOINT lookups");
    market.stage.execute("UPDATE products SET version = version + 1 WHERE id IN (7, 1, 2, 3)").await;
    market.are_right(&daemon, &BOTH).await;
    for entity in BOTH {
        assert_eq!(voided_of(&daemon, entity, "failed").await, 1.0, "{entity}");
    }
    // It was not taken back.
    let query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction (aborted)' AND datname = $1";
    let aborted: i64 = market.stage.sql().await.query_one(query, &[&market.stage.name]).await.unwrap().get(0);
    assert_eq!(aborted, 1);
    proxy.heal();
    market.stage.execute("UPDATE products SET version = version + 1 WHERE id IN (1, 2, 3)").await;
    market.are_right(&daemon, &BOTH).await;
    assert_eq!(voided_at_all(&daemon, "other").await, 1.0);
}

/// 14: the way to the source leads to another server by the time that lookups connect, one where nobody has bought anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_than_the_one_that_is_streamed_is_not_asked() {
    let mut market = Market::new("elsewhere").await;
    let other = Stage::private("elsewhere", PostgresOptions::new(), RedisOptions::new()).await;
    other.postgres.create_database(&market.stage.name).await.unwrap();
    let there = other.postgres.connect(&market.stage.name).await.unwrap();
    let password = market.stage.source_url().split(['/', ':', '@']).nth(4).expect("a password").to_owned();
    let role = format!("ALTER ROLE current_user PASSWORD '{password}'");
    there.batch_execute(&format!("{SCHEMA}; TRUNCATE lines; {role}")).await.unwrap();
    let proxy = Proxy::start(market.stage.postgres.port()).await;
    let url = market.stage.postgres.url_at(proxy.port(), &market.stage.name);
    // A check would open a connection there, to stay for what comes after.
    market.config = market.config.set("source", "url", url).set("audit", "rate", 0);
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    proxy.lead_to(other.postgres.port());
    let end = market.stage.execute(CHANGED).await;
    daemon.wait_applied(end).await;
    assert_eq!(market.stands().await.1, None, "its product has changed");
    assert_eq!(voided(&daemon, "failed").await, 1.0);
    let log = daemon.log();
    assert!(log.contains("source.url leads to another server than the one that is streamed"), "{log}");
    proxy.lead_to(market.stage.postgres.port());
    market.is_right(&daemon).await;
}
