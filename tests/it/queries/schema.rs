//! The schema changes while the daemon runs: of tables, views and functions that a query reads.

use super::{SHOP, orders, status, wanted};
use crate::harness::{Config, Entity, Response, Scene, eventually};

async fn scene(name: &str, schema: &str, entity: Entity) -> Scene {
    Scene::open(name, schema, |config: Config| config.set("source", "schema_check_interval", "200ms").entity(entity))
        .await
}

/// Reads a path until the answer is as it should be.
async fn until(scene: &Scene, path: &str, is_right: impl Fn(&Response) -> bool) -> Response {
    eventually(&format!("answer {path} as it should"), || async {
        let response = scene.get(path).await;
        if is_right(&response) { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await
}

async fn until_right(scene: &Scene, entity: &str, key: &str) {
    let wanted = wanted(scene, entity, key).await.expect("a value");
    until(scene, &format!("{entity}/{key}"), |response| response.status == 200 && response.text() == wanted).await;
    assert_eq!(scene.warm(&format!("{entity}/{key}")).await.text(), wanted);
}

#[tokio::test]
async fn what_the_query_needs_may_go_and_come_back() {
    let scene = scene("query_ddl", SHOP, orders()).await;
    for (away, cause, back) in [
        (
            "ALTER TABLE orders DROP COLUMN status",
            "status",
            "ALTER TABLE orders ADD COLUMN status text NOT NULL DEFAULT 'x'",
        ),
        ("ALTER TABLE customers RENAME TO clients", "customers", "ALTER TABLE clients RENAME TO customers"),
        ("ALTER TABLE products RENAME price TO cost", "price", "ALTER TABLE products RENAME cost TO price"),
    ] {
        scene.warm("orders/1").await;
        scene.sql.batch_execute(away).await.unwrap();
        let refused = until(&scene, "orders/1", |response| response.status == 503).await;
        assert_eq!(refused.json()["type"], "urn:walcache:problem:entity-unavailable", "{away}: {refused:?}");
        assert!(refused.text().contains(cause), "{away}: {refused:?}");
        assert_eq!(status(&scene, "orders").await["state"], "unreadable");
        scene.sql.batch_execute(back).await.unwrap();
        until_right(&scene, "orders", "1").await;
        scene
            .write("UPDATE orders SET status = 'again' WHERE id % 2 = 0; UPDATE customers SET name = name || '!'")
            .await;
        scene.verify().await;
    }
    // What it does not need may go for good.
    scene.warm("orders/1").await;
    scene
        .write("ALTER TABLE orders ADD COLUMN more int; UPDATE orders SET more = 1, customer_id = 4 WHERE id = 4")
        .await;
    scene.verify().await;
    scene.write("ALTER TABLE orders DROP COLUMN more; UPDATE orders SET customer_id = 1 WHERE id = 8").await;
    scene.verify().await;
}

#[tokio::test]
async fn all_columns_are_those_that_there_are_now() {
    let all = r#"
params = { id = "int" }
query = "select * from products where id = $1"
shape = "one"
depends_on = [{ table = "products", key = { id = "id" } }]
"#;
    let scene = scene("query_star", SHOP, Entity::query("product", all)).await;
    for change in [
        "ALTER TABLE products ADD COLUMN stock int DEFAULT 7",
        "ALTER TABLE products RENAME stock TO left_over",
        "ALTER TABLE products ALTER left_over TYPE text USING 'n' || left_over",
        "ALTER TABLE products DROP COLUMN left_over",
    ] {
        scene.warm("product/1").await;
        scene.sql.batch_execute(change).await.unwrap();
        until_right(&scene, "product", "1").await;
        scene.write("UPDATE products SET price = price + 1").await;
        scene.verify().await;
    }
}

#[tokio::test]
async fn views_and_functions_that_it_reads_may_be_replaced() {
    let schema = format!(
        "{SHOP} CREATE FUNCTION shown(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN upper($1); END';
         CREATE VIEW inner_view AS SELECT id, customer_id, status FROM orders;
         CREATE VIEW order_view AS SELECT id, customer_id, shown(status) AS status FROM inner_view;"
    );
    let of_view = r#"
params = { customer_id = "bigint" }
query = "select id, status from order_view where customer_id = $1 order by id"
depends_on = [{ table = "orders", key = { customer_id = "customer_id" } }]
"#;
    let scene = scene("query_views", &schema, Entity::query("viewed", of_view)).await;
    for change in [
        "CREATE OR REPLACE FUNCTION shown(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1 || ''!''; END'",
        "CREATE OR REPLACE VIEW inner_view AS SELECT id, customer_id, status || '?' AS status FROM orders",
        "CREATE OR REPLACE VIEW order_view AS SELECT id, customer_id, status FROM inner_view WHERE id > 5",
    ] {
        let before = scene.warm("viewed/1").await.text();
        scene.sql.batch_execute(change).await.unwrap();
        assert_ne!(Some(&before), wanted(&scene, "viewed", "1").await.as_ref(), "{change} changes nothing");
        until_right(&scene, "viewed", "1").await;
        scene.write("UPDATE orders SET status = status || '.' WHERE id < 9").await;
        scene.verify().await;
    }
    // One that it does not use changes nothing.
    let generation = status(&scene, "viewed").await["generation"].clone();
    scene.write("CREATE FUNCTION another() RETURNS int LANGUAGE sql AS 'SELECT 1'").await;
    scene.write("CREATE VIEW third_view AS SELECT 1 AS one; UPDATE orders SET status = 'x' WHERE id = 1").await;
    assert_eq!(status(&scene, "viewed").await["generation"], generation);
}

#[tokio::test]
async fn partitions_come_go_and_keep_their_table_in_step() {
    let schema = "CREATE TABLE events (id int, at int, account int NOT NULL, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
        CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20);
        ALTER TABLE events_1 REPLICA IDENTITY FULL; ALTER TABLE events_2 REPLICA IDENTITY FULL;
        ALTER TABLE events REPLICA IDENTITY FULL;
        CREATE INDEX ON events (account);
        INSERT INTO events SELECT i, i, i % 3, 'n' || i FROM generate_series(0, 19) i;";
    let of_account = r#"
params = { account = "int" }
query = "select id, at, note from events where account = $1 order by at"
depends_on = [{ table = "events", key = { account = "account" } }]
"#;
    let scene = scene("query_parts", schema, Entity::query("events", of_account)).await;
    for change in [
        "UPDATE events SET account = 1 WHERE id = 3",
        "UPDATE events SET at = 15 WHERE id = 4",
        "INSERT INTO events VALUES (30, 9, 2, 'more'), (31, 19, 0, 'more')",
        "DELETE FROM events WHERE id IN (0, 19)",
        "TRUNCATE events_1",
        "CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (20) TO (30); ALTER TABLE events_3 REPLICA IDENTITY FULL",
        "INSERT INTO events SELECT i, i, i % 3, 'n' || i FROM generate_series(20, 29) i",
        "UPDATE events SET account = 2 WHERE id = 21",
        "ALTER TABLE events DETACH PARTITION events_2",
    ] {
        for key in ["0", "1", "2"] {
            scene.warm(&format!("events/{key}")).await;
        }
        scene.write(change).await;
        for key in ["0", "1", "2"] {
            until_right(&scene, "events", key).await;
        }
        scene.verify().await;
    }
}

/// To describe a query takes locks on its tables: one that is held for long keeps nothing else from being applied.
#[tokio::test]
async fn a_locked_table_holds_up_nobody_else() {
    let scene = Scene::open("query_locked", SHOP, |config| {
        config
            .set("source", "schema_check_interval", "200ms")
            .entity(orders())
            .entity(Entity::new("product", "products"))
    })
    .await;
    scene.warm("orders/1").await;
    scene.warm("product/1").await;
    let mut other = scene.stage.sql().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // Something that the query depends on is altered meanwhile.
    scene.sql.batch_execute("ALTER TABLE customers ADD COLUMN note text").await.unwrap();
    eventually("take the entity out", || async {
        let status = status(&scene, "orders").await;
        if status["state"] == "uncached" { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert!(status(&scene, "orders").await["cause"].as_str().unwrap().contains("query_locked"));
    for n in 0..5 {
        scene.write(&format!("UPDATE products SET name = 'n{n}' WHERE id = 1")).await;
        assert_eq!(scene.get("product/1").await.expect(200).json()["name"], format!("n{n}"));
    }
    locked.commit().await.unwrap();
    until_right(&scene, "orders", "1").await;
    scene.verify().await;
}
