//! The schema changes while the daemon runs: of tables, views and functions that a query reads.

use super::{SHOP, orders, status, wanted};
use crate::harness::{Config, Entity, Response, Scene, Stage, eventually, needs_publications};

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

/// No row changes, and what is read does.
#[tokio::test]
async fn types_of_the_result_may_be_altered() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE place AS (street text, no int);
        CREATE TABLE people (id int PRIMARY KEY, mood mood, home place);
        INSERT INTO people VALUES (1, 'sad', ('High', 1)), (2, 'ok', ('Low', 2));";
    let person = r#"
params = { id = "int" }
query = "select mood, home from people where id = $1"
shape = "one"
depends_on = [{ table = "people", key = { id = "id" } }]
"#;
    let scene = scene("query_types", schema, Entity::query("person", person)).await;
    for change in [
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'glum'",
        "ALTER TYPE place RENAME ATTRIBUTE no TO number CASCADE",
        "ALTER TYPE place ADD ATTRIBUTE town text CASCADE",
    ] {
        let before = scene.warm("person/1").await.text();
        scene.sql.batch_execute(change).await.unwrap();
        assert_ne!(Some(&before), wanted(&scene, "person", "1").await.as_ref(), "{change} changes nothing");
        until_right(&scene, "person", "1").await;
        scene.write("UPDATE people SET mood = 'ok' WHERE id = 2").await;
        scene.verify().await;
    }
}

/// 5: changes of a time in which the table was not published, and nobody looked, are in no stream.
#[tokio::test]
async fn a_table_that_was_not_published_for_a_time_is_noticed() {
    if needs_publications("queries::schema::a_table_that_was_not_published_for_a_time_is_noticed") {
        return;
    }
    let scene = Scene::open("query_gap", SHOP, |config: Config| {
        config.set("source", "schema_check_interval", "1h").entity(orders())
    })
    .await;
    let name = scene.stage.name.clone();
    scene.warm("orders/1").await;
    scene.daemon.kill().await;
    for sql in [
        &format!("ALTER PUBLICATION {name} DROP TABLE products"),
        "UPDATE products SET price = price + 1",
        &format!("ALTER PUBLICATION {name} ADD TABLE products"),
    ] {
        scene.sql.batch_execute(sql).await.unwrap();
    }
    let daemon = crate::harness::Daemon::start(&scene.config).await;
    daemon.wait_ready().await;
    daemon.wait_applied(crate::harness::current_lsn(&scene.sql).await).await;
    let scene = Scene { http: daemon.http(), daemon, ..scene };
    assert_eq!(Some(scene.get("orders/1").await.expect(200).text()), wanted(&scene, "orders", "1").await);
    scene.verify().await;
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
    let schema = format!("{schema} CREATE FUNCTION another() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';");
    // Another entity, which tells that a look was taken: after that at the first.
    let of_another = of_view.replace("status from", "another() as status from");
    let scene = Scene::open("query_views", &schema, |config: Config| {
        config
            .set("source", "schema_check_interval", "200ms")
            .entity(Entity::query("viewed", of_view))
            .entity(Entity::query("other", &of_another))
    })
    .await;
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
    let other = status(&scene, "other").await["generation"].clone();
    scene.write("CREATE VIEW third_view AS SELECT 1 AS one; UPDATE orders SET status = 'x' WHERE id = 1").await;
    scene.write("CREATE OR REPLACE FUNCTION another() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 2'").await;
    eventually("look at the other entity", || async {
        let now = status(&scene, "other").await["generation"].clone();
        if now != other { Ok(()) } else { Err(now) }
    })
    .await;
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

const PRODUCT: &str = r#"
params = { id = "int" }
query = "select id, name from products where id = $1"
shape = "one"
depends_on = [{ table = "products", key = { id = "id" } }]
"#;

/// A name without a schema leads to the first table of that name in the role's `search_path`: once another one comes to
/// stand before the one that is named, its changes would void nothing.
#[tokio::test]
async fn a_table_that_comes_to_stand_before_another_is_noticed() {
    let scene = scene("query_shadow", SHOP, Entity::query("product", PRODUCT)).await;
    let first = scene.warm("product/1").await.text();
    scene.sql.batch_execute("CREATE SCHEMA AUTHORIZATION CURRENT_USER").await.unwrap();
    // All connections that read have looked through that schema: another one makes a server think again, a table there does not.
    for _ in 0..10 {
        let fresh = scene.http.get_with("/v1/product/1", &[("cache-control", "no-cache")]).await;
        assert_eq!(fresh.expect(200).text(), first);
    }
    let generation = status(&scene, "product").await["generation"].clone();
    scene.write("CREATE TABLE public.another (id int PRIMARY KEY)").await;
    let mine = "CREATE TABLE products (id int PRIMARY KEY, name text); INSERT INTO products VALUES (1, 'mine')";
    scene.sql.batch_execute(mine).await.unwrap();
    let place = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'products'::regclass";
    let place: String = scene.sql.query_one(place, &[]).await.unwrap().get(0);
    assert_ne!(place, "public", "it stands before the other");
    let state = eventually("take the entity out", || async {
        let status = status(&scene, "product").await;
        let is_out = status["state"] == "uncached" && status["generation"] != generation;
        if is_out { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    assert!(state["cause"].as_str().unwrap().contains(&format!("reads {place}.products")), "{state}");
    // From Postgres, as long as that is so; and over connections that have read the other one.
    for name in ["his", "hers"] {
        scene.sql.execute(&format!("UPDATE {place}.products SET name = '{name}'"), &[]).await.unwrap();
        assert_eq!(scene.get("product/1").await.expect(200).json()["name"], name);
    }
    scene.sql.batch_execute(&format!("DROP TABLE {place}.products")).await.unwrap();
    until_right(&scene, "product", "1").await;
    assert_eq!(scene.warm("product/1").await.text(), first);
    scene.write("UPDATE products SET name = 'at last' WHERE id = 1").await;
    assert_eq!(scene.get("product/1").await.expect(200).json()["name"], "at last");
}

/// All connections look through the same schemas: those that the role had when the daemon started, or that are configured.
#[tokio::test]
async fn another_search_path_is_that_of_the_next_daemon() {
    let schema = format!(
        "{SHOP} CREATE SCHEMA other; CREATE TABLE other.products (id int PRIMARY KEY, name text);
        INSERT INTO other.products VALUES (1, 'other');"
    );
    let scene = scene("query_path", &schema, Entity::query("product", PRODUCT)).await;
    assert_eq!(scene.warm("product/1").await.json()["name"], "product 1");
    let (database, user) = (&scene.stage.name, "current_user");
    scene
        .sql
        .batch_execute(&format!("ALTER ROLE {user} IN DATABASE {database} SET search_path = other, public"))
        .await
        .unwrap();
    // Whatever was connected is connected anew.
    let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'walcache' AND datname = $1";
    let ended: i64 = scene.sql.query_one(all, &[database]).await.unwrap().get(0);
    assert!(ended >= 2, "{ended}");
    let response = eventually("answer from Postgres again", || async {
        let response = scene
            .http
            .send(hyper::Method::GET, "/v1/product/1", &[("cache-control", "no-cache")], bytes::Bytes::new())
            .await;
        let response = response.map_err(|error| error.to_string())?;
        if response.status == 200 { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await;
    assert_eq!(response.json()["name"], "product 1");
    scene.write("UPDATE public.products SET name = 'newer' WHERE id = 1").await;
    assert_eq!(scene.get("product/1").await.expect(200).json()["name"], "newer");
    // Said in the configuration, it is that.
    assert!(scene.daemon.terminate().await.success());
    let config = scene.config.clone().set("source", "search_path", "\"$user\", public");
    let daemon = crate::harness::Daemon::start(&config).await;
    daemon.wait_ready().await;
    let response = eventually("answer", || async {
        let response = daemon.http().get("/v1/product/1").await;
        if response.status == 200 { Ok(response) } else { Err(format!("{response:?}")) }
    })
    .await;
    assert_eq!(response.json()["name"], "newer");
}

/// Each look leaves the connection as it was, also one that has met a lock after its statement was prepared.
#[tokio::test]
async fn a_look_at_a_locked_partition_leaves_no_statement_behind() {
    let stage = Stage::shared("query_part_locked").await;
    let schema = "CREATE TABLE events (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
        CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20);";
    stage.execute(schema).await;
    let of_events = r#"
params = { id = "int" }
query = "select id, note from events where id = $1"
shape = "one"
depends_on = [{ table = "events", key = { id = "id" } }]
"#;
    let config = stage.config().entity(Entity::query("event", of_events));
    let config: walcache::config::Config = toml::from_str(&config.to_toml()).unwrap();
    let (looking, locking) = (stage.sql().await, stage.sql().await);
    let is_locked = async || {
        let looked = walcache::catalog::resolve(&looking, &config, &[0]).await.unwrap();
        looked[0].0.standing.is_locked()
    };
    locking.batch_execute("BEGIN; LOCK TABLE events_2 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for _ in 0..3 {
        assert!(is_locked().await);
    }
    locking.batch_execute("COMMIT").await.unwrap();
    assert!(!is_locked().await);
    let left = "SELECT format('%s at %s: %s', name, prepare_time, statement) FROM pg_prepared_statements
        WHERE name LIKE 'walcache%'";
    let left: Vec<String> = looking.query(left, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(left.is_empty(), "{left:#?}");
}
