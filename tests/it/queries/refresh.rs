//! `on_change = "refresh"`: what an event has dropped is read again, if it had been read.

use super::{orders, shop, wanted};
use crate::harness::{Entity, Scene, eventually};

/// Waits until L1 or L2 would answer with what Postgres has, without a read having brought it.
async fn is_requeried(scene: &Scene, key: &str) {
    let wanted = wanted(scene, "orders", key).await.expect("an array");
    eventually(&format!("read {key} again"), || async {
        match scene.stored(&format!("orders:{key}")).await {
            Some(stored) if stored.value == wanted => Ok(()),
            other => Err(format!("wanted {wanted}: {other:?}")),
        }
    })
    .await;
}

/// Waits until nothing waits to be read, or is being read.
async fn idle(scene: &Scene) {
    for _ in 0..2 {
        eventually("have read all again", || async {
            let left = async |of: &str| scene.metric(of).await.unwrap();
            let waiting = left("walcache_requeries_waiting").await + left("walcache_fills_waiting").await;
            let left = (waiting, left("walcache_fills_running").await);
            if left == (0.0, 0.0) { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_read_is_read_again_and_nothing_else() {
    let scene = shop("query_refresh", |config| {
        let plain = Entity::query("plain", super::ORDERS).set("on_change", "invalidate");
        config.entity(orders().set("on_change", "refresh")).entity(plain)
    })
    .await;
    for key in ["1", "2"] {
        scene.warm(&format!("orders/{key}")).await;
        scene.warm(&format!("plain/{key}")).await;
    }
    scene.write("UPDATE orders SET status = 'sent' WHERE customer_id IN (1, 2, 3)").await;
    is_requeried(&scene, "1").await;
    is_requeried(&scene, "2").await;
    idle(&scene).await;
    assert_eq!(scene.keys("orders").await, ["1", "2"], "nobody has read 3");
    assert_eq!(scene.keys("plain").await, [""; 0], "what is invalidated is read by the next reader");
    // From L1, too.
    assert_ne!(scene.get("orders/1").await.header("x-cache"), "MISS");
    // Many events on one key.
    for n in 0..50 {
        scene.sql.batch_execute(&format!("UPDATE orders SET status = 'n{n}' WHERE customer_id = 1")).await.unwrap();
    }
    scene.applied().await;
    is_requeried(&scene, "1").await;
    let fills = "walcache_fills_total{entity=\"orders\",result=\"published\"}";
    let before = scene.metric(fills).await.unwrap();
    // In one batch, one query answers them all.
    scene.sql.batch_execute("DO $$ BEGIN FOR i IN 1..200 LOOP UPDATE orders SET status = 's' || i WHERE customer_id = 1; END LOOP; END $$").await.unwrap();
    scene.applied().await;
    is_requeried(&scene, "1").await;
    let after = scene.metric(fills).await.unwrap();
    assert!(after - before <= 3.0, "{before} {after}");
    scene.verify().await;
}

#[tokio::test]
async fn without_l2_what_stood_in_l1_is_read_again() {
    let scene =
        shop("query_refresh_l1", |config| config.without("l2").entity(orders().set("on_change", "refresh"))).await;
    scene.warm("orders/1").await;
    let fills = "walcache_fills_total{entity=\"orders\",result=\"uncached\"}";
    let before = scene.metric(fills).await.unwrap();
    scene.write("UPDATE orders SET status = 'sent' WHERE customer_id IN (1, 2)").await;
    eventually("read it again", || async {
        let after = scene.metric(fills).await.unwrap();
        if after > before { Ok(()) } else { Err("no fill") }
    })
    .await;
    let wanted = wanted(&scene, "orders", "1").await;
    let response = eventually("answer from L1", || async {
        let response = scene.get("orders/1").await;
        if response.header("x-cache") == "HIT-L1" { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await;
    assert_eq!(Some(response.text()), wanted);
}
