//! Lookups are given the values of the rule's columns, as these are now.

use super::*;

fn with_lookup(lookup: &str, from: &str) -> Entity {
    let by = BOUGHT.rfind("SELECT o.customer_id").unwrap();
    Entity::written(&format!("{}{lookup}\", from = {from} }},\n]", &BOUGHT[..by]))
}

/// What `check` has looked at is what is run: of itself, the server could not tell what `$1 + $2` is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_of_the_types_of_their_columns() {
    let lookup =
        "SELECT o.customer_id FROM orders o JOIN lines l ON l.order_id = o.id WHERE l.product_id = $1 + $2 - $2";
    let stage = Stage::shared("typed").await;
    stage.execute(SCHEMA).await;
    stage.execute("ALTER TABLE products REPLICA IDENTITY FULL").await;
    let market = Market::among(stage, with_lookup(lookup, "[\"id\", \"version\"]")).await;
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    market.stage.execute("UPDATE products SET version = version + 1 WHERE id = 1").await;
    market.is_right(&daemon).await;
    assert_eq!(voided_at_all(&daemon, "bought").await, 0.0);
    assert!(metric(&daemon, "walcache_cache_invalidations_total{entity=\"bought\",cause=\"lookup\"}").await >= 1.0);
    let explained = cli(&market.config, &["explain", "--sql", CHANGED], &[]).await;
    assert!(explained.stdout.contains("bought:1"), "{explained:?}");
}

/// Statements are prepared for the columns that there are: later ones may have values that the former cannot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_are_altered_are_looked_up_as_they_are() {
    let market = Market::new("altered_lookup").await;
    let daemon = market.daemon(&[]).await;
    market.is_right(&daemon).await;
    market.stage.execute(CHANGED).await;
    market.is_right(&daemon).await;
    market
        .stage
        .execute("ALTER TABLE lines ALTER product_id TYPE bigint; ALTER TABLE products ALTER id TYPE bigint")
        .await;
    market.stage.execute("INSERT INTO products VALUES (3000000000, 1); INSERT INTO lines VALUES (1, 3000000000)").await;
    market.is_right(&daemon).await;
    market.stage.execute("UPDATE products SET version = 7 WHERE id = 3000000000").await;
    market.is_right(&daemon).await;
    assert_eq!(voided_at_all(&daemon, "bought").await, 0.0);
}
