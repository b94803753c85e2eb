//! What takes time in vain is not tried with each batch: others go on meanwhile.

use std::time::{Duration, Instant};

use super::*;
use crate::harness::{LONG_LIMIT, Proxy, eventually_within};

const RECOMMENDED: &str =
    "CREATE TABLE recommended (customer_id int, product_id int, PRIMARY KEY (customer_id, product_id));
    INSERT INTO recommended SELECT i, i FROM generate_series(1, 50) i";

/// By way of another table than [`BOUGHT`].
fn recommended() -> Entity {
    Entity::query(
        "recommended",
        r#"
params = { customer_id = "int4" }
query = "SELECT p.id, p.version FROM recommended r JOIN products p ON p.id = r.product_id WHERE r.customer_id = $1 ORDER BY p.id"
depends_on = [
    { table = "recommended", key = { customer_id = "customer_id" } },
    { table = "products", lookup = "SELECT customer_id FROM recommended WHERE product_id = $1", from = ["id"] },
]
"#,
    )
}

/// Changes products, one after the other, and waits each time until that is applied.
async fn change(market: &Market, daemon: &Daemon, times: usize) -> Duration {
    let began = Instant::now();
    for n in 0..times {
        let id = 1 + n % 5;
        let lsn = market.stage.execute(&format!("UPDATE products SET version = version + 1 WHERE id = {id}")).await;
        daemon.wait_applied(lsn).await;
    }
    began.elapsed()
}

async fn until_looked_up(market: &Market, daemon: &Daemon, entity: &str) {
    eventually_within(LONG_LIMIT, "look up again", || async {
        let before = voided_at_all(daemon, entity).await;
        change(market, daemon, 1).await;
        if voided_at_all(daemon, entity).await == before { Ok(()) } else { Err("voided") }
    })
    .await;
}

/// The entities whose lookups wait for a lock are voided, each; not those whose lookups do not, and nobody waits for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_costs_others_next_to_nothing() {
    let stage = Stage::shared("locked_link").await;
    stage.execute(RECOMMENDED).await;
    let mut market = Market::on(stage, Entity::written(BOUGHT)).await;
    for n in 0..3 {
        market.config =
            market.config.entity(Entity::written(&BOUGHT.replace("\"bought\"", &format!("\"bought_{n}\""))));
    }
    market.config = market.config.entity(recommended());
    let setup = cli(&market.config, &["setup", "--apply"], &[]).await;
    assert!(setup.status.success(), "{setup:?}");
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    change(&market, &daemon, 2).await;
    assert_eq!(voided_at_all(&daemon, "bought").await, 0.0);

    let mut other = market.stage.sql().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK TABLE lines IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let took = change(&market, &daemon, 20).await;
    for entity in ["bought", "bought_0", "bought_1", "bought_2"] {
        // A lock is waited for a tenth of a second, and then not for a second.
        let locked = voided_of(&daemon, entity, "locked").await;
        assert!(locked >= 1.0 && locked <= 1.0 + took.as_secs_f64(), "{entity}: {locked} times in {took:?}");
        assert!(voided_of(&daemon, entity, "resting").await >= 1.0, "{entity}");
        assert_eq!(voided_of(&daemon, entity, "late").await, 0.0, "{entity}");
    }
    assert_eq!(voided_at_all(&daemon, "recommended").await, 0.0);
    locked.commit().await.unwrap();
    market.is_right(&daemon).await;
    until_looked_up(&market, &daemon, "bought_2").await;
    market.is_right(&daemon).await;
}

/// No connection for lookups can be made: that is tried every now and then, not with each batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_cannot_be_made_costs_little() {
    let mut market = Market::new("unreachable").await;
    let proxy = Proxy::start(market.stage.postgres.port()).await;
    let url = market.stage.source_url().replace(&market.stage.postgres.port().to_string(), &proxy.port().to_string());
    market.config = market.config.set("source", "url", url).set("source", "connect_timeout", "500ms");
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    proxy.mute_after(0);
    let took = change(&market, &daemon, 20).await;
    let (failed, resting) =
        (voided(&daemon, "failed").await + voided(&daemon, "late").await, voided(&daemon, "resting").await);
    // Half a second is lost, and then none for five.
    let most = 1.0 + took.as_secs_f64() / 5.0;
    assert!((1.0..=most).contains(&failed), "failed {failed} times in {took:?}");
    assert_eq!(failed + resting, 20.0, "failed {failed} times, and not tried {resting} times");
    proxy.heal();
    until_looked_up(&market, &daemon, "bought").await;
    market.is_right(&daemon).await;
}
