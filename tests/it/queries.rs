//! Entities that are the results of a query: what voids their entries, what they read as, and what `check` says of them.

mod audited;
mod check;
mod params;
mod refresh;
mod schema;

use serde_json::{Value, json};

use crate::harness::{Config, Daemon, Entity, Oracle, Scene, cli, codes, eventually, findings, pinned, query_result};

/// A shop whose orders tell their customer, before a change and after it.
const SHOP: &str = "CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price numeric(10,2) NOT NULL);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint, status text NOT NULL DEFAULT 'new');
    CREATE INDEX ON orders (customer_id);
    ALTER TABLE orders REPLICA IDENTITY FULL;
    CREATE TABLE lines (order_id bigint, no int, product_id int NOT NULL, quantity int NOT NULL, PRIMARY KEY (order_id, no));
    CREATE INDEX ON lines (product_id);
    INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, 5) i;
    INSERT INTO products SELECT i, 'product ' || i, i * 1.5 FROM generate_series(1, 5) i;
    INSERT INTO orders SELECT i, 1 + i % 4 FROM generate_series(1, 20) i;
    INSERT INTO lines SELECT i, n, 1 + (i + n) % 4, n FROM generate_series(1, 20) i, generate_series(1, 2) n;";

/// The orders of a customer, the last one first, with what they cost.
const ORDERS: &str = r#"
params = { customer_id = "bigint" }
query = """select o.id, o.status, c.name as customer,
      (select sum(l.quantity * p.price) from lines l join products p on p.id = l.product_id where l.order_id = o.id) as total
    from orders o join customers c on c.id = o.customer_id
    where o.customer_id = $1 order by o.id desc limit 50"""
depends_on = [
    { table = "public.orders", key = { customer_id = "customer_id" } },
    { table = "customers", key = { customer_id = "id" } },
    { table = "lines", lookup = "select o.customer_id from orders o where o.id = $1", from = ["order_id"] },
    { table = "products", lookup = "select distinct o.customer_id from orders o join lines l on l.order_id = o.id where l.product_id = $1", from = ["id"] },
]
"#;

fn orders() -> Entity {
    Entity::query("orders", ORDERS)
}

async fn shop(name: &str, configure: impl FnOnce(Config) -> Config) -> Scene {
    Scene::open(name, SHOP, configure).await
}

/// What Postgres gives for a key of an entity now.
async fn wanted(scene: &Scene, entity: &str, key: &str) -> Option<String> {
    let sql = scene.stage.sql().await;
    pinned(&sql).await;
    let entity = scene.config.entities().iter().find(|e| e.name() == entity).expect("an entity");
    query_result(&sql, &entity.as_query().expect("a query"), key).await
}

/// The entity's part of the status.
async fn status(scene: &Scene, entity: &str) -> Value {
    let status = scene.daemon.status().await;
    let entities = status["entities"].as_array().expect("entities").clone();
    entities.into_iter().find(|e| e["name"] == entity).expect("the entity")
}

#[tokio::test]
async fn a_change_voids_the_entries_that_it_concerns() {
    let scene = shop("query_issue", |config| config.entity(orders())).await;
    let keys = ["1", "2", "3", "4", "5", "9"];
    for key in keys {
        let response = scene.warm(&format!("orders/{key}")).await;
        assert_eq!(Some(response.text()), wanted(&scene, "orders", key).await);
    }
    assert_eq!(scene.get("orders/9").await.expect(200).text(), "[]", "nobody has no orders");
    // An order that moves from one customer to another voids both, and nothing else.
    let generation = status(&scene, "orders").await["generation"].clone();
    scene.write("UPDATE orders SET customer_id = 3 WHERE id = 20").await;
    assert_eq!(scene.keys("orders").await, ["2", "4", "5", "9"]);
    assert_eq!(status(&scene, "orders").await["generation"], generation);
    for key in ["1", "3"] {
        let response = scene.get(&format!("orders/{key}")).await.expect(200);
        assert_eq!(response.header("x-cache"), "MISS");
        assert_eq!(Some(response.text()), wanted(&scene, "orders", key).await);
    }
    assert!(wanted(&scene, "orders", "3").await.unwrap().contains("\"id\":20,"));
    // One more, one less, and one that is nobody's for a time.
    for (change, dropped) in [
        ("INSERT INTO orders VALUES (30, 5)", &["5"][..]),
        ("DELETE FROM orders WHERE id = 30", &["5"]),
        ("UPDATE orders SET customer_id = NULL WHERE id = 19", &["4"]),
        ("UPDATE orders SET customer_id = 2 WHERE id = 19", &["2"]),
        ("UPDATE customers SET name = 'new' WHERE id = 3", &["3"]),
        (
            "BEGIN; INSERT INTO orders VALUES (31, 1); UPDATE orders SET customer_id = 9 WHERE id = 31; COMMIT",
            &["1", "9"],
        ),
    ] {
        for key in keys {
            scene.warm(&format!("orders/{key}")).await;
        }
        scene.write(change).await;
        let left: Vec<&str> = keys.into_iter().filter(|key| !dropped.contains(key)).collect();
        assert_eq!(scene.keys("orders").await, left, "{change}");
        scene.verify().await;
    }
    // By way of a lookup: the entries that it finds, and no others.
    for (change, orders) in [
        ("UPDATE products SET price = price * 2 WHERE id = 2", "SELECT order_id FROM lines WHERE product_id = 2"),
        ("UPDATE lines SET quantity = quantity + 1 WHERE order_id = 8", "VALUES (8)"),
        ("DELETE FROM lines WHERE order_id = 9 AND no = 1", "VALUES (9)"),
        ("UPDATE products SET price = 9 WHERE id = 5", "SELECT order_id FROM lines WHERE product_id = 5"),
    ] {
        for key in keys {
            scene.warm(&format!("orders/{key}")).await;
        }
        let concerned =
            format!("SELECT customer_id::text FROM orders WHERE id IN ({orders}) AND customer_id IS NOT NULL");
        let concerned = scene.sql.query(&concerned, &[]).await.unwrap();
        let concerned: Vec<&str> = concerned.iter().map(|row| row.get(0)).collect();
        scene.write(change).await;
        let left: Vec<&str> = keys.into_iter().filter(|key| !concerned.contains(key)).collect();
        assert!(!left.is_empty(), "{change}");
        assert_eq!(scene.keys("orders").await, left, "{change}");
        for key in keys {
            let response = scene.get(&format!("orders/{key}")).await.expect(200);
            assert_eq!(Some(response.text()), wanted(&scene, "orders", key).await, "{change}: {response:?}");
        }
        scene.verify().await;
    }
    let compared = Oracle::new(&scene).verify().await;
    assert!(compared.servable >= 5, "{compared:?}");
    let batch = scene.http.post("/v1/orders/batch", &json!({"keys": ["1", "042", "9"]}), &[]).await.expect(200).json();
    let statuses: Vec<&Value> = batch["items"].as_array().unwrap().iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, [200, 200, 200], "{batch}");
    assert_eq!(batch["items"][2]["value"], json!([]));
    let found = status(&scene, "orders").await;
    assert_eq!(found["state"], "cached");
    assert_eq!(found["depends_on"], json!(["public.orders", "public.customers", "public.lines", "public.products"]));
    // What operators ask works as for rows.
    scene.warm("orders/1").await;
    let explained = cli_on(&scene, &["explain", "orders", "1"]).await;
    assert!(explained.contains("a query of public.orders, public.customers"), "{explained}");
    let verified = cli_on(&scene, &["verify", "orders", "--json"]).await;
    assert!(verified.contains("\"findings\":[]") || verified.contains("\"findings\": []"), "{verified}");
}

/// A lookup may read a table that no rule names, as long as what the query reads is named: `check` and the log say so.
#[tokio::test]
async fn what_only_a_lookup_reads_need_not_be_named() {
    let listed = Entity::query(
        "listed",
        r#"
params = { customer_id = "bigint" }
query = "select id, status from orders where customer_id = $1 order by id desc limit 50"
shape = "many"
on_change = "invalidate"
depends_on = [
  { table = "public.orders", key = { customer_id = "customer_id" } },
  { table = "public.customers", key = { customer_id = "id" } },
  { table = "public.products", lookup = "select distinct o.customer_id from orders o join lines l on l.order_id = o.id where l.product_id = $1", from = ["id"] },
]
"#,
    );
    let scene = shop("query_listed", |config| config.entity(listed)).await;
    let found = findings(&scene.config).await;
    assert_eq!(codes(&found, "error"), [""; 0], "{found:#?}");
    assert!(codes(&found, "warning").contains(&"lookup_unnamed"), "{found:#?}");
    assert!(
        scene.daemon.log().contains("reads public.lines, which depends_on does not name"),
        "{}",
        scene.daemon.log()
    );
    let keys = ["1", "2", "3", "4", "5"];
    let bought =
        "SELECT DISTINCT customer_id::text FROM orders JOIN lines ON order_id = id WHERE product_id = 4 ORDER BY 1";
    let bought: Vec<String> = scene.sql.query(bought, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!((1..5).contains(&bought.len()), "{bought:?}");
    for (change, dropped) in [
        ("UPDATE orders SET customer_id = 3 WHERE id = 20", vec!["1", "3"]),
        ("UPDATE customers SET name = 'new' WHERE id = 5", vec!["5"]),
        ("UPDATE products SET price = 9 WHERE id = 4", bought.iter().map(String::as_str).collect()),
        ("DELETE FROM lines WHERE order_id = 8", vec![]),
    ] {
        for key in keys {
            scene.warm(&format!("listed/{key}")).await;
        }
        scene.write(change).await;
        let left: Vec<&str> = keys.into_iter().filter(|key| !dropped.contains(key)).collect();
        assert_eq!(scene.keys("listed").await, left, "{change}");
        scene.verify().await;
    }
}

async fn cli_on(scene: &Scene, args: &[&str]) -> String {
    let all = [args, &["--admin", scene.daemon.admin_address()]].concat();
    let done = cli(&scene.config, &all, &[]).await;
    assert!(done.status.success(), "{done:?}");
    done.stdout
}

#[tokio::test]
async fn truncate_and_rows_that_any_entry_may_depend_on_void_all() {
    let rates = r#"
params = { id = "int" }
query = "select p.id, p.price * r.rate as price from products p cross join rates r where p.id = $1"
shape = "one"
depends_on = [{ table = "products", key = { id = "id" } }, { table = "rates", all = true }]
"#;
    let schema = format!(
        "{SHOP} CREATE TABLE rates (name text PRIMARY KEY, rate numeric NOT NULL); INSERT INTO rates VALUES ('a', 2)"
    );
    let configure = |config: Config| config.entity(orders()).entity(Entity::query("price", rates));
    let scene = Scene::open("query_all", &schema, configure).await;
    for change in [
        "UPDATE rates SET rate = 3",
        "INSERT INTO rates VALUES ('b', 1); DELETE FROM rates WHERE name = 'a'",
        "TRUNCATE orders",
        "INSERT INTO orders SELECT i, 1 + i % 4 FROM generate_series(1, 20) i",
        "TRUNCATE lines, rates",
        "INSERT INTO rates VALUES ('c', 5)",
    ] {
        for key in ["1", "2", "77"] {
            scene.get(&format!("price/{key}")).await;
            scene.warm(&format!("orders/{key}")).await;
        }
        scene.write(change).await;
        for key in ["1", "2", "77"] {
            let price = scene.get(&format!("price/{key}")).await;
            match wanted(&scene, "price", key).await {
                Some(wanted) => assert_eq!(price.expect(200).text(), wanted, "{change}"),
                None => assert_eq!(price.status, 404, "{change}"),
            }
        }
        scene.verify().await;
    }
}

/// One number for all of them, however many they are.
#[tokio::test]
async fn a_row_that_voids_many_entities_costs_one_new_generation() {
    let schema = "CREATE TABLE rates (name text PRIMARY KEY, rate int NOT NULL); INSERT INTO rates VALUES ('a', 1);";
    let rated = |n: usize| {
        let text = format!(
            "params = {{ times = \"int\" }}\nquery = \"select {n} * $1 * rate as cost from rates\"\nshape = \"one\"\n\
             depends_on = [{{ table = \"rates\", all = true }}]\n"
        );
        Entity::query(&format!("rated_{n}"), &text)
    };
    let scene = Scene::open("query_many", schema, |config| (1..=20).fold(config, |c, n| c.entity(rated(n)))).await;
    for n in 1..=20 {
        scene.warm(&format!("rated_{n}/3")).await;
    }
    scene.write("UPDATE rates SET rate = 2; UPDATE rates SET rate = 3").await;
    let mut generations = std::collections::BTreeSet::new();
    for n in 1..=20 {
        assert_eq!(scene.get(&format!("rated_{n}/3")).await.expect(200).json()["cost"], 9 * n);
        generations.insert(status(&scene, &format!("rated_{n}")).await["generation"].to_string());
    }
    assert_eq!(generations.len(), 1, "{generations:?}");
}

#[tokio::test]
async fn one_row_is_an_object_and_none_or_several_are_told_apart() {
    let schema = "CREATE TABLE mails (id int PRIMARY KEY, address text NOT NULL, n int NOT NULL);
        CREATE INDEX ON mails (address); ALTER TABLE mails REPLICA IDENTITY FULL;
        INSERT INTO mails VALUES (1, 'a', 1), (2, 'b', 1), (3, 'b', 2), (4, 'z', 0);";
    let one = r#"
params = { address = "text" }
query = "select id, 10 / n as part from mails where address = $1 -- of that address"
shape = "one"
depends_on = [{ table = "mails", key = { address = "address" } }]
"#;
    let scene = Scene::open("query_one", schema, |config| config.entity(Entity::query("mail", one))).await;
    assert_eq!(scene.warm("mail/a").await.text(), r#"{"id":1,"part":10}"#);
    let absent = scene.get("mail/nobody").await.expect(404);
    assert_eq!(absent.json()["type"], "urn:walcache:problem:absent");
    assert_eq!(scene.stored("mail:nobody").await.expect("absence is cached").value, "null");
    let several = scene.get("mail/b").await.expect(503);
    assert_eq!(several.json()["type"], "urn:walcache:problem:several-rows", "{several:?}");
    let failed = scene.get("mail/z").await.expect(503);
    assert!(failed.text().contains("SQLSTATE 22012"), "{failed:?}");
    // Neither is cached, nor are others kept from their answers.
    let keys = json!({"keys": ["b", "a", "z", "x"]});
    let batch = scene.http.post("/v1/mail/batch", &keys, &[("cache-control", "no-cache")]).await.expect(200).json();
    let statuses: Vec<&Value> = batch["items"].as_array().unwrap().iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, [503, 200, 503, 404], "{batch}");
    assert_eq!(scene.keys("mail").await, ["a", "nobody"]);
    assert!(scene.metric("walcache_fills_total{entity=\"mail\",result=\"several_rows\"}").await.unwrap() >= 2.0);
    // Once that is mended, it is read; the lease is not waited for.
    scene.write("DELETE FROM mails WHERE id = 3; UPDATE mails SET n = 5 WHERE id = 4").await;
    assert_eq!(scene.get("mail/b").await.expect(200).text(), r#"{"id":2,"part":10}"#);
    assert_eq!(scene.warm("mail/z").await.text(), r#"{"id":4,"part":2}"#);
    scene.write("INSERT INTO mails VALUES (9, 'nobody', 1); DELETE FROM mails WHERE id = 1").await;
    assert_eq!(scene.get("mail/nobody").await.expect(200).text(), r#"{"id":9,"part":10}"#);
    scene.get("mail/a").await.expect(404);
    scene.verify().await;
}

/// An aggregate takes the rows in the order of the query.
#[tokio::test]
async fn rows_come_in_the_order_of_the_query() {
    let schema = "CREATE TABLE points (id int PRIMARY KEY, set int NOT NULL, weight float8, note json);
        CREATE INDEX ON points (set); ALTER TABLE points REPLICA IDENTITY FULL;
        INSERT INTO points SELECT i, i % 3, (i * 7919) % 1000 / 7.0, json_build_object('n', i) FROM generate_series(1, 3000) i;";
    let sorted = r#"
params = { set = "smallint" }
query = "select weight, id, note from points where set = $1 order by weight desc, id"
depends_on = [{ table = "points", key = { set = "set" } }]
"#;
    let scene = Scene::open("query_order", schema, |config| config.entity(Entity::query("points", sorted))).await;
    for key in ["0", "1", "2"] {
        let response = scene.warm(&format!("points/{key}")).await;
        assert_eq!(Some(response.text()), wanted(&scene, "points", key).await);
        let ids: Vec<f64> =
            response.json().as_array().unwrap().iter().map(|row| row["weight"].as_f64().unwrap()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.is_sorted_by(|a, b| a >= b));
    }
    scene
        .write("UPDATE points SET weight = -1 WHERE id = 3; UPDATE points SET set = 2, weight = 1e9 WHERE id = 4")
        .await;
    scene.verify().await;
    assert_eq!(scene.get("points/2").await.json()[0]["id"], 4);
}

#[tokio::test]
async fn without_l2_the_process_itself_is_kept_in_step() {
    let scene = shop("query_l1", |config| config.without("l2").entity(orders())).await;
    for key in ["1", "2", "3"] {
        scene.warm(&format!("orders/{key}")).await;
    }
    for change in [
        "UPDATE orders SET customer_id = 3 WHERE id = 20",
        "UPDATE customers SET name = 'new' WHERE id = 2",
        "UPDATE products SET price = 0",
        "TRUNCATE orders",
    ] {
        scene.write(change).await;
        for key in ["1", "2", "3"] {
            let response = scene.get(&format!("orders/{key}")).await.expect(200);
            assert_eq!(Some(response.text()), wanted(&scene, "orders", key).await, "{change}: {response:?}");
            scene.warm(&format!("orders/{key}")).await;
        }
    }
}

/// Rows by a unique column other than the key need no query, but one line.
#[tokio::test]
async fn rows_by_another_unique_column_are_one_line_of_configuration() {
    let schema = "CREATE TABLE users (id int PRIMARY KEY, email text NOT NULL, name text);
        CREATE UNIQUE INDEX users_email ON users (email); ALTER TABLE users REPLICA IDENTITY FULL;
        INSERT INTO users VALUES (1, 'ann@x', 'Ann'), (2, 'bob@x', 'Bob');";
    let by_email = Entity::new("user_by_email", "users").set("key", vec![toml::Value::from("email")]);
    let scene = Scene::open("query_email", schema, |config| config.entity(by_email)).await;
    assert_eq!(scene.warm("user_by_email/ann@x").await.json()["id"], 1);
    scene.get("user_by_email/ann@y").await.expect(404);
    scene.write("UPDATE users SET email = 'ann@y' WHERE id = 1").await;
    scene.get("user_by_email/ann@x").await.expect(404);
    assert_eq!(scene.get("user_by_email/ann@y").await.expect(200).json()["id"], 1);
    scene.verify().await;
}

/// What an earlier configuration has cached is not served under another one.
#[tokio::test]
async fn another_query_is_another_generation() {
    let scene = shop("query_config", |config| config.entity(orders())).await;
    let first = scene.warm("orders/1").await.text();
    assert!(scene.daemon.terminate().await.success());
    // Its columns are the same, and so is what it reads.
    let other = ORDERS.replace("order by o.id desc", "order by o.id");
    assert_ne!(other, ORDERS);
    let config = scene.stage.config().set("freshness", "stale_after", "60s").entity(Entity::query("orders", &other));
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let second = eventually("answer", || async {
        let response = daemon.http().get("/v1/orders/1").await;
        if response.status == 200 { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await;
    let ids = |text: &str| -> Vec<i64> {
        let rows: Vec<Value> = serde_json::from_str(text).unwrap();
        rows.iter().map(|row| row["id"].as_i64().unwrap()).collect()
    };
    let turned: Vec<i64> = ids(&first).into_iter().rev().collect();
    assert!(turned.len() > 1 && ids(&second.text()) == turned, "{second:?}, and before {first}");
}

/// What Postgres gives up for another transaction is tried once more, and is no fault of the query.
#[tokio::test]
async fn a_deadlock_is_tried_again() {
    let schema = "CREATE TABLE rows (id int PRIMARY KEY, n int); INSERT INTO rows VALUES (1, 10), (2, 20);
        CREATE FUNCTION deadlocks(id int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            -- Such a lock outlives the error.
            IF id = 2 OR NOT EXISTS (
                SELECT FROM pg_locks WHERE locktype = 'advisory'
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
            THEN
                PERFORM pg_try_advisory_lock(1);
                RAISE SQLSTATE '40P01';
            END IF;
            RETURN true;
        END $$";
    let query = r#"
params = { id = "int" }
query = "select n from rows where id = $1 and deadlocks($1)"
shape = "one"
depends_on = [{ table = "rows", key = { id = "id" } }]
"#;
    let scene = Scene::open("query_deadlock", schema, |config| config.entity(Entity::query("it", query))).await;
    assert_eq!(scene.get("it/1").await.expect(200).json(), json!({"n": 10}));
    let refused = scene.get("it/2").await.expect(503).json();
    assert!(refused["type"].as_str().unwrap().contains("source-timeout"), "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("40P01"), "{refused}");
}
