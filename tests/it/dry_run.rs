//! `walcache explain --sql` and `--table`: what a change would do, without doing it.

use serde_json::{Value, json};

use crate::harness::{Config, Entity, Scene, cli};

const SCHEMA: &str = "CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL);
    CREATE TABLE lines (order_id bigint, product_id bigint, PRIMARY KEY (order_id, product_id));
    CREATE TABLE products (id bigint PRIMARY KEY, price numeric(10,2) NOT NULL);
    ALTER TABLE orders REPLICA IDENTITY FULL; ALTER TABLE lines REPLICA IDENTITY FULL;
    INSERT INTO customers SELECT i, 'name ' || i FROM generate_series(1, 3) i;
    INSERT INTO orders SELECT i, 1 + i % 3, 'new' FROM generate_series(1, 9) i;
    INSERT INTO products SELECT i, i FROM generate_series(1, 5) i;
    INSERT INTO lines SELECT i, 1 + i % 5 FROM generate_series(1, 9) i";

const ORDERS: &str = r#"params = { customer_id = "bigint" }
query = "select o.id, o.status, sum(p.price) as total from orders o join lines l on l.order_id = o.id join products p on p.id = l.product_id where o.customer_id = $1 group by o.id order by o.id"
depends_on = [
  { table = "public.orders", key = { customer_id = "customer_id" } },
  { table = "public.lines", lookup = "select customer_id from orders where id = $1", from = ["order_id"] },
  { table = "public.products", lookup = "select distinct o.customer_id from orders o join lines l on l.order_id = o.id where l.product_id = $1", from = ["id"] },
]
"#;

fn configure(config: Config) -> Config {
    config
        .entity(Entity::new("order", "orders"))
        .entity(Entity::new("customer", "customers").set("on_change", "invalidate"))
        .entity(Entity::query("customer_orders", ORDERS))
}

async fn explained(scene: &Scene, arguments: &[&str]) -> Value {
    let done = cli(&scene.config, &[&["explain", "--json"], arguments].concat(), &[]).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

/// `op row: effect entity:key, ...`, a line for each row.
fn words(report: &Value) -> Vec<String> {
    let effect = |e: &Value| {
        let of = e["key"].as_str().map_or_else(|| "all".to_owned(), str::to_owned);
        format!("{} {}:{of}", e["effect"].as_str().unwrap(), e["entity"].as_str().unwrap())
    };
    let row = |row: &Value| {
        let mut effects: Vec<String> = row["effects"].as_array().unwrap().iter().map(effect).collect();
        effects.sort();
        format!("{} {}: {}", row["op"].as_str().unwrap(), row["row"].as_str().unwrap(), effects.join(", "))
    };
    report["rows"].as_array().unwrap().iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_explained_and_taken_back() {
    let scene = Scene::open("dry_run", SCHEMA, configure).await;
    let before = scene.sql.query_one("SELECT count(*), min(status) FROM orders", &[]).await.unwrap();
    let before: (i64, String) = (before.get(0), before.get(1));
    for (sql, wanted) in [
        (
            "update orders set customer_id = 2 where id = 3",
            vec!["update id=3: put order:3, void customer_orders:1, void customer_orders:2"],
        ),
        ("DELETE FROM orders o WHERE o.id IN (3);", vec!["delete id=3: put order:3, void customer_orders:1"]),
        (
            "insert into orders values (100, 3, 'it''s'), (101, 77, 'x')",
            vec![
                "insert id=100: put order:100, void customer_orders:3",
                "insert id=101: put order:101, void customer_orders:77",
            ],
        ),
        ("update customers set name = 'x' where id = 2", vec!["update id=2: void customer:2"]),
        // Orders 4 and 9 have product 5, and are of the customers 2 and 1.
        (
            "update products set price = 9 where id = 5",
            vec!["update id=5: void customer_orders:1, void customer_orders:2"],
        ),
        ("delete from lines where order_id = 3", vec!["delete order_id=3,product_id=4: void customer_orders:1"]),
        ("update orders set status = 'x' where false", vec![]),
        (
            "insert into orders values (1, 1, 'y') on conflict (id) do update set customer_id = 3",
            vec!["update id=1: put order:1, void customer_orders:2, void customer_orders:3"],
        ),
    ] {
        let report = explained(&scene, &["--sql", sql]).await;
        assert_eq!(words(&report), wanted, "{sql}: {report}");
        assert_eq!((&report["left_out"], &report["uncached"]), (&json!(0), &json!([])));
    }
    let moved = explained(&scene, &["--sql", "update orders set id = 50 where id = 3"]).await;
    assert!(words(&moved)[0].contains("another key"), "{moved}");
    let after = scene.sql.query_one("SELECT count(*), min(status) FROM orders", &[]).await.unwrap();
    assert_eq!(before, (after.get(0), after.get(1)), "it was rolled back");
    scene.verify().await;

    // For people, with the rule.
    let done = cli(&scene.config, &["explain", "--sql", "update products set price = 9 where id = 5"], &[]).await;
    for said in [
        "update public.products id=5",
        "customer_orders:2",
        "depends_on[2]: public.products, lookup from (id)",
        "nothing was changed",
    ] {
        assert!(done.stdout.contains(said), "lacks {said}: {}", done.stdout);
    }
}

/// What is foretold comes to pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_foretold_happens() {
    let scene = Scene::open("dry_run_true", SCHEMA, configure).await;
    let keys = ["customer_orders/1", "customer_orders/2", "customer_orders/3"];
    for sql in [
        "update orders set customer_id = 2 where id = 3",
        "update products set price = price + 1 where id = 4",
        "delete from lines where order_id = 7",
    ] {
        for key in keys {
            scene.warm(key).await;
        }
        let report = explained(&scene, &["--sql", sql]).await;
        let foretold: std::collections::BTreeSet<String> = words(&report)
            .concat()
            .split([',', ' '])
            .filter_map(|word| word.strip_prefix("customer_orders:").map(|key| format!("customer_orders/{key}")))
            .collect();
        scene.write(sql).await;
        for key in keys {
            let from = scene.get(key).await.header("x-cache").to_owned();
            assert_eq!(from == "MISS", foretold.contains(key), "{sql}: {key} is {from}, foretold {foretold:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_explained_and_bad_questions_are_refused() {
    let scene = Scene::open("dry_run_row", SCHEMA, configure).await;
    let report = explained(&scene, &["--table", "orders", "--key", "3"]).await;
    assert_eq!(
        words(&report),
        ["update id=3: put order:3, void customer_orders:1", "delete id=3: put order:3, void customer_orders:1",]
    );
    let report = explained(&scene, &["--table", "lines", "--key", "3,4"]).await;
    assert_eq!(words(&report).len(), 2, "{report}");
    for (arguments, said) in [
        (&["--sql", "select 1"][..], "no single INSERT"),
        (&["--sql", "truncate orders"], "syntax error"),
        (&["--sql", "delete from orders; delete from orders"], "cannot insert multiple commands"),
        (&["--sql", "update nothing set x = 1"], "does not exist"),
        (&["--sql", "delete from orders returning id"], "syntax error"),
        (&["--table", "nothing", "--key", "1"], "there is no table"),
        (&["--table", "orders", "--key", "999"], "has no row 999"),
        (&["--table", "orders", "--key", "1,2"], "has the columns: id"),
        (&["--table", "orders"], "--key"),
        (&["--sql", "select 1", "order", "1"], "cannot be used with"),
        (&["order"], "KEY"),
        (&[], "required"),
    ] {
        let done = cli(&scene.config, &[&["explain"], arguments].concat(), &[]).await;
        assert_eq!(done.status.code(), Some(2), "{arguments:?}: {done:?}");
        assert!(done.stderr.contains(said), "{arguments:?} lacks {said:?}: {}", done.stderr);
    }
}
