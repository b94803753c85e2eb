//! `walcache explain --sql` and `--table`: what a change would do, without doing it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_postgres::Client;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Config, Entity, Finished, Scene, Stage, cli, eventually, plugin};

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

const CARD: &str = r#"params = { id = "bigint" }
query = "select id, name from customers where id = $1"
shape = "one"
on_change = "refresh"
depends_on = [{ table = "public.customers", key = { id = "id" } }, { table = "public.products", all = true }]
"#;

fn configure(config: Config) -> Config {
    config
        .entity(Entity::query("card", CARD))
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

/// All that is in the tables.
async fn contents(sql: &Client) -> Vec<String> {
    let mut contents = Vec::new();
    for table in ["customers", "orders", "lines", "products"] {
        let all = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {table} t");
        contents.push(sql.query_one(&all, &[]).await.unwrap().get(0));
    }
    contents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_explained_and_taken_back() {
    let scene = Scene::open("dry_run", SCHEMA, configure).await;
    let before = contents(&scene.sql).await;
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
        ("update customers set name = 'x' where id = 2", vec!["update id=2: requery card:2, void customer:2"]),
        // Orders 4 and 9 have product 5, and are of the customers 2 and 1.
        (
            "update products set price = 9 where id = 5",
            vec!["update id=5: void card:all, void customer_orders:1, void customer_orders:2"],
        ),
        ("delete from lines where order_id = 3", vec!["delete order_id=3,product_id=4: void customer_orders:1"]),
        ("update orders set status = 'x' where false", vec![]),
        // The key itself: what was there goes, and what comes is another entry.
        (
            "UPDATE orders SET id = 50 WHERE id = 3 -- and that is all",
            vec!["update id=3 -> id=50: put order:3, put order:50, void customer_orders:1"],
        ),
        (
            "with c as (select 2 as id) update orders o set id = o.id + c.id * 50, customer_id = 2 from c \
             where o.id in (3, 9) and status is distinct from 'it''s where'",
            vec![
                "update id=3 -> id=103: put order:103, put order:3, void customer_orders:1, void customer_orders:2",
                "update id=9 -> id=109: put order:109, put order:9, void customer_orders:1, void customer_orders:2",
            ],
        ),
        // Of what is in the key only, the row before tells enough.
        (
            "update products p set id = id + 1 where id = 5",
            vec!["update id=5 -> id=6: void card:all, void customer_orders:1, void customer_orders:2"],
        ),
        (
            "insert into orders values (1, 1, 'y') on conflict (id) do update set customer_id = 3",
            vec!["update id=1: put order:1, void customer_orders:2, void customer_orders:3"],
        ),
    ] {
        let report = explained(&scene, &["--sql", sql]).await;
        assert_eq!(words(&report), wanted, "{sql}: {report}");
        assert_eq!((&report["left_out"], &report["uncached"]), (&json!(0), &json!([])));
    }
    // More than are told.
    let many = "insert into orders select i, 3, 'new' from generate_series(1000, 2500) i";
    let report = explained(&scene, &["--sql", many]).await;
    assert_eq!((words(&report).len(), &report["left_out"]), (1000, &json!(501)));
    let odd = "CREATE TABLE shifted (id int PRIMARY KEY); INSERT INTO shifted VALUES (3), (2), (1);
               CREATE TABLE split (id int PRIMARY KEY) PARTITION BY RANGE (id);
               CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (1) TO (10);
               CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (10) TO (20);
               INSERT INTO split VALUES (1), (11);
               CREATE TABLE odd (id int PRIMARY KEY, walcache_old int); INSERT INTO odd VALUES (1);";
    scene.sql.batch_execute(odd).await.unwrap();
    for (sql, wanted) in [
        // Each to the key that another one had.
        (
            "update shifted set id = id + 1",
            &["update id=1 -> id=2: ", "update id=2 -> id=3: ", "update id=3 -> id=4: "][..],
        ),
        ("update split set id = id + 2 where id < 19", &["update id=1 -> id=3: ", "update id=11 -> id=13: "]),
        // A table that leaves no name for its old rows: it says that nothing is told of them.
        ("update odd set id = 50", &["update id=50 (it had another key, of whose entries nothing is told): "]),
    ] {
        let report = explained(&scene, &["--sql", sql]).await;
        let mut words = words(&report);
        words.sort();
        assert_eq!(words, wanted, "{sql}");
    }
    assert_eq!(contents(&scene.sql).await, before, "it was rolled back");
    let rest =
        "SELECT array_agg(id ORDER BY id) FROM (TABLE shifted UNION ALL TABLE split UNION ALL SELECT id FROM odd) t";
    let ids: Vec<i32> = scene.sql.query_one(rest, &[]).await.unwrap().get(0);
    assert_eq!(ids, [1, 1, 1, 2, 3, 11]);
    scene.verify().await;

    let done = cli(&scene.config, &["explain", "--sql", many], &[]).await;
    assert!(done.stdout.contains("and 501 rows more"), "{:?}", done.stderr);
    // For people, with the rule.
    let done = cli(&scene.config, &["explain", "--sql", "update products set price = 9 where id = 5"], &[]).await;
    for said in [
        "update public.products id=5",
        "void    all of card  by depends_on[1]: public.products, all",
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
        "update orders set id = 60 where id = 5",
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
    let before = contents(&scene.sql).await;
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
    assert_eq!(contents(&scene.sql).await, before);
}

/// Whatever spells the row's key finds it, by the index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_found_however_its_key_is_spelled() {
    let stage = Stage::shared("dry_run_keys").await;
    let schema = "CREATE TABLE numbers (id int PRIMARY KEY); INSERT INTO numbers SELECT generate_series(1, 50000);
        CREATE TABLE uuids (id uuid PRIMARY KEY); INSERT INTO uuids VALUES ('0a1b2c3d-0000-0000-0000-00000000abcd');
        CREATE TABLE padded (id char(5) PRIMARY KEY); INSERT INTO padded VALUES ('ab');
        CREATE DOMAIN short AS varchar(3);
        CREATE TABLE cut (id short PRIMARY KEY); INSERT INTO cut VALUES ('abc');
        CREATE TABLE rounded (id numeric(10,2) PRIMARY KEY); INSERT INTO rounded VALUES (1.50);
        CREATE TABLE turned (a int, b text, more int, PRIMARY KEY (b, a) INCLUDE (more)); INSERT INTO turned VALUES (1, 'x', 2);
        ANALYZE";
    stage.execute(schema).await;
    let config = stage.config().entity(Entity::new("number", "numbers"));
    let ask = async |table: &str, key: &str| cli(&config, &["explain", "--table", table, "--key", key], &[]).await;
    for (table, key, row) in [
        ("numbers", "042", "id=42"),
        ("uuids", "0A1B2C3D-0000-0000-0000-00000000ABCD", "id=0a1b2c3d-0000-0000-0000-00000000abcd"),
        ("padded", "ab", "id=ab   "),
        ("padded", "ab%20%20%20", "id=ab   "),
        ("cut", "abc", "id=abc"),
        ("rounded", "1.5", "id=1.50"),
        ("turned", "x,1", "b=x,a=1"),
    ] {
        let done = ask(table, key).await;
        assert!(done.stdout.starts_with(&format!("update public.{table} {row}\n")), "{table} {key}: {done:?}");
    }
    for (table, key, said) in [
        ("numbers", "x", "invalid input syntax"),
        ("numbers", "99999999999", "out of range"),
        ("cut", "abcd", "has no row"),
        ("rounded", "1.501", "has no row"),
        ("turned", "x,1,2", "has the columns: b,a"),
    ] {
        let done = ask(table, key).await;
        assert_eq!(done.status.code(), Some(2), "{table} {key}: {done:?}");
        assert!(done.stderr.contains(said) && !done.stderr.contains("--url"), "{table} {key}: {}", done.stderr);
    }
    // Counted when sessions end.
    let sql = stage.sql().await;
    let read = "SELECT idx_scan, seq_tup_read FROM pg_stat_user_tables WHERE relname = 'numbers'";
    eventually("find the row by the index", || async {
        let row = sql.query_one(read, &[]).await.unwrap();
        let (by_index, read): (i64, i64) = (row.get(0), row.get(1));
        assert!(read <= 100_000, "{read} rows were read, of which ANALYZE and the index's making read each once");
        if by_index > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
}

const SLOW: &str = r#"params = { id = "bigint" }
query = "select id from items where id = $1"
depends_on = [{ table = "public.items", lookup = "select x.id from (select $1::bigint as id, pg_sleep(0.1)) x", from = ["id"] }]
"#;

async fn slow(stage: Stage) -> (Stage, Config) {
    let schema = "CREATE TABLE items (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0);
                  INSERT INTO items SELECT generate_series(1, 1000)";
    stage.execute(schema).await;
    let config = stage.config().entity(Entity::query("slow", SLOW));
    (stage, config)
}

fn with(stage: &Stage, name: &str, query: &str) -> Config {
    stage.config().entity(Entity::query(name, query))
}

async fn explain(config: &Config, sql: &str) -> Finished {
    cli(config, &["explain", "--sql", sql], &[]).await
}

/// Rows are let go within the limit, although no statement by itself takes long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_it_takes_no_longer_than_the_limit() {
    // On servers of its own: what is tried is open for long, and other tests would wait for it.
    let stage = Stage::private("dry_run_late", PostgresOptions::new(), RedisOptions::new()).await;
    let (stage, config) = slow(stage).await;
    let sql = stage.sql().await;
    let beside = async {
        eventually("lock the rows", || async {
            let free = sql.query("SELECT FROM items WHERE id = 1000 FOR UPDATE SKIP LOCKED", &[]).await.unwrap();
            if free.is_empty() { Ok(()) } else { Err("not yet") }
        })
        .await;
        let began = Instant::now();
        sql.execute("UPDATE items SET n = n + 7 WHERE id = 1000", &[]).await.unwrap();
        began.elapsed()
    };
    let (done, waited) = tokio::join!(explain(&config, "update items set n = n + 1"), beside);
    // All of the lookups would take 100 s.
    assert!(waited < Duration::from_secs(25), "another session has waited {waited:?}");
    assert!(waited > Duration::from_secs(5), "it was to be tried for longer: {waited:?}");
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let wanted = "not done within 10s, and taken back: until then others wait for the rows that it changes\n  mend: ask of fewer rows";
    assert!(done.stderr.contains(wanted), "{done:?}");
    assert_eq!(sql.query_one("SELECT sum(n) FROM items", &[]).await.unwrap().get::<_, i64>(0), 7);

    let few = explain(&config, "update items set n = n + 1 where id <= 3").await;
    assert!(few.status.success() && few.stdout.contains("slow:3"), "{few:?}");
    // The statement itself.
    let began = Instant::now();
    let done = explain(&config, "update items set n = 1 where id = 1 and pg_sleep(30) is not null").await;
    assert!(done.stderr.contains("not done within 10s"), "{done:?}");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
}

/// Lookups that are asked with the same values are asked once; and what is found is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_are_bounded_in_number_and_in_keys() {
    let (stage, _) = slow(Stage::shared("dry_run_lookups").await).await;
    stage.execute("ALTER TABLE items REPLICA IDENTITY FULL").await;
    let by_n = SLOW.replace("[\"id\"]", "[\"n\"]");
    // Before and after are two.
    let done = explain(&with(&stage, "by_n", &by_n), "update items set n = 1").await;
    assert!(
        done.status.success() && done.stdout.contains("update public.items id=1000\n  void    by_n:0  by"),
        "{done:?}"
    );

    let of = |count: u32| {
        let lookup = format!("lookup = \"select i from generate_series(1, {count}) i where i <> $1\"");
        let from = SLOW.find("lookup").unwrap();
        let until = SLOW.find(", from").unwrap();
        SLOW.replace(&SLOW[from..until], &lookup)
    };
    let report = async |text: &str, sql: &str| {
        let done = cli(&with(&stage, "many", text), &["explain", "--json", "--sql", sql], &[]).await;
        assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
        serde_json::from_str::<Value>(&done.stdout).unwrap()
    };
    let one = "insert into items select generate_series(50001, 50001)";
    assert_eq!(words(&report(&of(10_001), one).await), ["insert id=50001: void many:all"]);
    // Rows of no key count: what comes after them is not looked at.
    let late = of(20_000).replace("select i from", "select case when i > 10001 then i end from");
    assert_eq!(words(&report(&late, one).await), ["insert id=50001: void many:all"]);
    let told = report(&of(10_000), one).await;
    assert_eq!(told["rows"][0]["effects"].as_array().unwrap().len(), 10_000);
    let told = report(&of(10_000), "insert into items select generate_series(50001, 50011)").await;
    assert_eq!((told["rows"].as_array().unwrap().len(), &told["left_out"]), (10, &json!(1)));
    if plugin() == "pgoutput" {
        // There is no publication: what would not come through the stream is said.
        let uncached = told["uncached"][0].as_str().unwrap();
        assert!(uncached.starts_with("many: "), "{uncached}");
    }
}

/// Behind somebody else's lock it gives up soon, and others' rows can be asked about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_not_queue_for_locks() {
    let (stage, config) = slow(Stage::shared("dry_run_lock").await).await;
    let sql = stage.sql().await;
    sql.batch_execute("BEGIN; UPDATE items SET n = 5 WHERE id = 1").await.unwrap();
    let began = Instant::now();
    let done = explain(&config, "update items set n = 1 where id = 1").await;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(done.stderr.contains("canceling statement due to lock timeout"), "{done:?}");
    assert!((2..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let done = explain(&config, "update items set n = 1 where id = 2").await;
    assert!(
        done.status.success() && done.stdout.contains("update public.items id=2\n  void    slow:2  by"),
        "{done:?}"
    );
    // Rows alone need no lock.
    let done = cli(&config, &["explain", "--table", "items", "--key", "1"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    sql.batch_execute("COMMIT").await.unwrap();
}

/// Which entries were cached is not known where all are voided: none of them is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_is_voided_nothing_is_read_again() {
    let all = r#"params = { customer_id = "bigint" }
query = "select o.id, c.name from orders o, customers c where o.customer_id = $1 order by o.id, c.id"
depends_on = [
  { table = "public.orders", key = { customer_id = "customer_id" } },
  { table = "public.customers", all = true },
]
"#;
    let refreshed = Entity::query("beside", all).set("on_change", "refresh");
    let scene = Scene::open("dry_run_all", SCHEMA, |config| config.entity(refreshed)).await;
    for (sql, wanted) in [
        ("update customers set name = 'x' where id = 2", "update id=2: void beside:all"),
        ("update orders set status = 'x' where id = 3", "update id=3: requery beside:1"),
    ] {
        assert_eq!(words(&explained(&scene, &["--sql", sql]).await), [wanted]);
    }
}

/// What is told is told of one state: a row that somebody else changes meanwhile is neither passed over nor shown as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_changed_meanwhile_is_told_as_it_is_then() {
    let (stage, config) = slow(Stage::shared("dry_run_overtaken").await).await;
    let (other, sql) = (stage.sql().await, stage.sql().await);
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '%walcache_changed%')";
    let done = eventually("change the row before the lock is given up", || async {
        other.batch_execute("BEGIN; UPDATE items SET n = n + 1 WHERE id = 5").await.unwrap();
        let config = config.clone();
        let asked = tokio::spawn(async move { explain(&config, "update items set n = 9 where id = 5").await });
        eventually("wait for the row", || async {
            let row = sql.query_one(waits, &[]).await.unwrap();
            if row.get(0) || asked.is_finished() { Ok(()) } else { Err("it does not wait yet") }
        })
        .await;
        other.batch_execute("COMMIT").await.unwrap();
        let done = asked.await.unwrap();
        // The machine was too busy: it waits for two seconds only.
        if done.stderr.contains("lock timeout") { Err(format!("{done:?}")) } else { Ok(done) }
    })
    .await;
    assert!(done.status.success() && done.stdout.contains("update public.items id=5\n"), "{done:?}");
}
