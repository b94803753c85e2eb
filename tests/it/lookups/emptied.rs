//! Tables that lookups read are emptied, rewritten or replaced after the round's snapshot was taken, and before it has read
//! them. Postgres lets that snapshot find nothing there, though it sees the change that is looked up.

use walcache::failpoint::{HOLD, Point};

use super::*;

/// As [`BOUGHT`], while what a customer has ordered has its order's number: only a lookup reads the lines, which no rule names.
const TIED: &str = r#"
    name = "bought"
    params = { customer_id = "int4" }
    query = "SELECT p.id, p.version FROM orders o JOIN products p ON p.id = o.id WHERE o.customer_id = $1 ORDER BY p.id"
    depends_on = [
        { table = "public.orders", lookup = "SELECT $1::int4", from = ["customer_id"] },
        { table = "public.products", lookup = "SELECT o.customer_id FROM orders o JOIN lines l ON l.order_id = o.id WHERE l.product_id = $1", from = ["id"] },
    ]"#;

/// 6, 7: `meanwhile` is run once a round is open whose snapshot sees a change, and before that is looked up. Says whether all of
/// the entity was voided for it.
async fn is_noticed(name: &str, meanwhile: &str) -> bool {
    is_noticed_of(name, (BOUGHT, "DELETE FROM lines WHERE product_id = 50"), meanwhile).await
}

/// As [`is_noticed`], of an entity and a change that is looked up elsewhere than in the table.
async fn is_noticed_of(name: &str, (entity, first): (&str, &str), meanwhile: &str) -> bool {
    let mut market = Market::on(Stage::shared(name).await, Entity::written(entity)).await;
    market.config = market.config.set("apply", "max_batch_events", 1);
    let hold = market.stage.redis.dir().join(&market.stage.name);
    std::fs::write(&hold, "").unwrap();
    let at = format!("{}=wait@1", Point::Held.name());
    let daemon = market.daemon(&[(KILLS, &at), (HOLD, hold.to_str().unwrap())]).await;
    market.is_right(&daemon).await;
    // The first batch opens the round; it looks up nothing in the table.
    market.behind(&daemon, &[first, APART, CHANGED]).await;
    eventually("have the round open", || async {
        if daemon.log().contains("this task waits") { Ok(()) } else { Err("not yet") }
    })
    .await;
    market.stage.execute(meanwhile).await;
    std::fs::remove_file(&hold).unwrap();
    market.is_right(&daemon).await;
    assert_eq!(voided_at_all(&daemon, "bought").await, voided(&daemon, "emptied").await, "{meanwhile}");
    voided(&daemon, "emptied").await > 0.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_truncated_is_not_taken_for_empty() {
    assert!(is_noticed("emptied_truncate", "TRUNCATE lines").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_rewritten_is_not_taken_for_empty() {
    let rewrite = "ALTER TABLE lines ADD COLUMN added timestamptz DEFAULT clock_timestamp()";
    assert!(is_noticed("emptied_rewrite", rewrite).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_no_rule_names_is_watched_too() {
    let rewrite = "ALTER TABLE lines ADD COLUMN added timestamptz DEFAULT clock_timestamp()";
    assert!(is_noticed_of("emptied_unnamed", (TIED, "UPDATE orders SET note = 'y' WHERE id = 49"), rewrite).await);
}

/// What leaves the rows where they are costs no entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_written_to_or_vacuumed_is_read_as_ever() {
    assert!(!is_noticed("emptied_not", "INSERT INTO lines VALUES (2, 1)").await);
    assert!(!is_noticed("emptied_vacuum", "VACUUM (ANALYZE) lines").await);
}
