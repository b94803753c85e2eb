//! Tables that lookups read are emptied, rewritten or replaced after the round's snapshot was taken, and before it has read
//! them. Postgres lets that snapshot find nothing there, though it sees the change that is looked up.

use walcache::failpoint::{HOLD, Point};

use super::*;

/// 6, 7: `meanwhile` is run once a round is open whose snapshot sees a change, and before that is looked up. Says whether all of
/// the entity was voided for it.
async fn is_noticed(name: &str, meanwhile: &str) -> bool {
    let mut market = Market::new(name).await;
    market.config = market.config.set("apply", "max_batch_events", 1);
    let hold = market.stage.redis.dir().join(&market.stage.name);
    std::fs::write(&hold, "").unwrap();
    let at = format!("{}=wait@1", Point::Held.name());
    let daemon = market.daemon(&[(KILLS, &at), (HOLD, hold.to_str().unwrap())]).await;
    market.is_right(&daemon).await;
    // The first batch opens the round; it looks up nothing in the table.
    market.behind(&daemon, &["DELETE FROM lines WHERE product_id = 50", APART, CHANGED]).await;
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

/// What leaves the rows where they are costs no entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_written_to_or_vacuumed_is_read_as_ever() {
    assert!(!is_noticed("emptied_not", "INSERT INTO lines VALUES (2, 1)").await);
    assert!(!is_noticed("emptied_vacuum", "VACUUM (ANALYZE) lines").await);
}
