//! Audits of queries: entries are compared with what the query gives, unless that changes by itself.

use serde_json::Value;

use super::{orders, shop};
use crate::harness::{Entity, Scene, cli};

/// A customer's orders, in no order, each with a number that is drawn.
const DRAWN: &str = r#"
params = { customer_id = "bigint" }
query = "select id, random() as drawn from orders where customer_id = $1"
depends_on = [{ table = "orders", key = { customer_id = "customer_id" } }]
"#;

/// What `verify` says of an entity, and the keys of what is wrong.
async fn verify(scene: &Scene, entity: &str) -> (Value, Vec<String>) {
    let arguments = ["verify", entity, "--no-repair", "--json", "--admin", scene.daemon.admin_address()];
    let done = cli(&scene.config, &arguments, &[]).await;
    let told: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    let keys = told["findings"].as_array().unwrap().iter().map(|finding| finding["key"].as_str().unwrap().to_owned());
    (told["entities"][0].clone(), keys.collect())
}

#[tokio::test]
async fn results_are_compared_unless_they_change_by_themselves() {
    let scene = shop("query_audit", |config| {
        config.set("audit", "rate", 0).entity(orders()).entity(Entity::query("drawn", DRAWN))
    })
    .await;
    for key in ["1", "2", "3"] {
        scene.warm(&format!("orders/{key}")).await;
        scene.warm(&format!("drawn/{key}")).await;
    }
    let (told, wrong) = verify(&scene, "orders").await;
    assert_eq!((told["l1"]["ok"].as_u64(), told["l2"]["ok"].as_u64()), (Some(3), Some(3)), "{told}");
    assert!(wrong.is_empty(), "{wrong:?}");
    let right = String::from_utf8(scene.raw("orders:2").await.expect("an entry").to_vec()).unwrap();
    let planted = right.replacen("\"status\":\"new\"", "\"status\":\"old\"", 1);
    assert_ne!(right, planted);
    redis::cmd("SET").arg("orders:2").arg(planted).arg("KEEPTTL").exec_async(&mut scene.l2.clone()).await.unwrap();
    let (told, wrong) = verify(&scene, "orders").await;
    assert_eq!((told["l1"]["ok"].as_u64(), told["l2"]["ok"].as_u64()), (Some(3), Some(2)), "{told}");
    assert_eq!(wrong, ["2"], "{told}");
    // Another number each time: nothing is wrong with that.
    let (told, wrong) = verify(&scene, "drawn").await;
    assert!(wrong.is_empty(), "{wrong:?}: {told}");
    assert_eq!((told["l1"]["ok"].as_u64(), told["l2"]["ok"].as_u64()), (Some(0), Some(0)), "{told}");
    // Unless something has gone wrong with the test: they are there, and differ.
    assert_eq!(scene.keys("drawn").await, ["1", "2", "3"]);
}
