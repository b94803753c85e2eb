//! Entries that a changed row belongs to by way of other tables: found by lookups, which are held against what they see too
//! early, and given up where they would cost too much.

mod bounds;
mod emptied;
mod lost;
mod rests;
mod types;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use walcache::failpoint::{KILLS, WITHOUT};
use walcache::lsn::Lsn;
use walcache::sandbox::{PostgresOptions, RedisOptions};

use crate::harness::{Config, Daemon, Entity, Http, Raw, Stage, brisk, cli, current_lsn, eventually, servable};

const SCHEMA: &str = "
    CREATE TABLE products (id int PRIMARY KEY, version int NOT NULL);
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, note text);
    ALTER TABLE orders REPLICA IDENTITY FULL;
    CREATE TABLE lines (order_id int, product_id int, PRIMARY KEY (order_id, product_id));
    CREATE INDEX ON orders (customer_id);
    CREATE INDEX ON lines (product_id);
    INSERT INTO products SELECT i, 1 FROM generate_series(1, 50) i;
    INSERT INTO orders SELECT i, i FROM generate_series(1, 50) i;
    INSERT INTO lines SELECT i, i FROM generate_series(1, 50) i";

/// What a customer has ordered.
const BOUGHT: &str = r#"
    name = "bought"
    params = { customer_id = "int4" }
    query = """
        SELECT p.id, p.version FROM orders o JOIN lines l ON l.order_id = o.id JOIN products p ON p.id = l.product_id
        WHERE o.customer_id = $1 ORDER BY p.id"""
    on_change = "invalidate"
    depends_on = [
        { table = "public.orders", key = { customer_id = "customer_id" } },
        { table = "public.lines", lookup = "SELECT customer_id FROM orders WHERE id = $1", from = ["order_id"] },
        { table = "public.products", lookup = "SELECT o.customer_id FROM orders o JOIN lines l ON l.order_id = o.id WHERE l.product_id = $1", from = ["id"] },
    ]"#;

/// A product changes; then it leaves the order, which only a lookup by the order tells of; then the order leaves the customer.
const CHANGED: &str = "UPDATE products SET version = 2 WHERE id = 1";
const LEFT_ORDER: &str = "DELETE FROM lines WHERE product_id = 1";
const LEFT_CUSTOMER: &str = "UPDATE orders SET customer_id = 2 WHERE id = 1";
const REASONS: [&str; 9] = ["distance", "many", "keys", "failed", "late", "locked", "resting", "held", "emptied"];
/// So much that what stands before and after it does not come in one batch.
const APART: &str = "UPDATE orders SET note = repeat('x', 1000000) WHERE id = 50";

/// Servers with orders, and the configuration of a daemon.
struct Market {
    stage: Stage,
    config: Config,
}

impl Market {
    async fn new(name: &str) -> Market {
        let stage = Stage::shared(name).await;
        Market::on(stage, Entity::written(BOUGHT)).await
    }

    /// On servers of its own.
    async fn alone(name: &str) -> Market {
        let stage = Stage::private(name, PostgresOptions::new(), RedisOptions::new()).await;
        Market::on(stage, Entity::written(BOUGHT)).await
    }

    async fn on(stage: Stage, entity: Entity) -> Market {
        stage.execute(SCHEMA).await;
        Market::among(stage, entity).await
    }

    /// As [`Market::on`], where the tables are there already.
    async fn among(stage: Stage, entity: Entity) -> Market {
        // Nothing is given up because other tests keep the machine busy, or write to the same log.
        let config = brisk(stage.config())
            .set("freshness", "stale_after", "60s")
            .set("apply", "lookup_timeout", "30s")
            .set("apply", "lookup_hold", "10m")
            .set("apply", "max_lookup_distance", "4GiB")
            // Daemons are paused while others write.
            .set("source", "dead_after", "60s")
            .entity(entity);
        let setup = cli(&config, &["setup", "--apply"], &[]).await;
        assert!(setup.status.success(), "{setup:?}");
        Market { stage, config }
    }

    async fn daemon(&self, env: &[(&str, &str)]) -> Daemon {
        let daemon = Daemon::start_with(&self.config, env).await;
        daemon.wait_ready().await;
        daemon
    }

    /// Runs each statement as a transaction while the daemon stands still; gives where the log ended
    /// before the first was committed. (On servers of its own, if that is to tell anything: others write the same log.)
    async fn behind(&self, daemon: &Daemon, statements: &[&str]) -> Lsn {
        let sql = self.stage.sql().await;
        daemon.pause().await;
        // The server tells where its log ends, and that may be published: not, what lies after the commit of the first.
        sql.batch_execute(&format!("BEGIN; {}", statements[0])).await.unwrap();
        let before = current_lsn(&sql).await;
        sql.batch_execute("COMMIT").await.unwrap();
        for statement in &statements[1..] {
            sql.batch_execute(statement).await.unwrap();
        }
        daemon.resume();
        before
    }

    async fn confirmed(&self) -> Lsn {
        let query = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.stage.sql().await.query_one(query, &[&self.stage.name]).await.unwrap();
        row.get::<_, &str>(0).parse().unwrap()
    }

    /// What is done by L2's fence, and the servable entry of customer 1.
    async fn stands(&self) -> (Lsn, Option<Value>) {
        let mut raw = Raw::connect(&self.stage).await.unwrap();
        let fence = raw.run(&["HGET", "~walcache:fence", "done"]).await.unwrap();
        let redis::Value::BulkString(done) = fence else { panic!("no fence: {fence:?}") };
        let stored = raw.look("bought:1").await.unwrap().unwrap();
        (Lsn::from_hex16(&done).unwrap(), servable(&stored, "bought").map(|entry| entry.value))
    }

    /// Waits until all is applied; every customer's answer is what Postgres says.
    async fn is_right(&self, daemon: &Daemon) {
        self.are_right(daemon, &["bought"]).await;
    }

    /// As [`Market::is_right`], of entities that are like [`BOUGHT`].
    async fn are_right(&self, daemon: &Daemon, entities: &[&str]) {
        let sql = self.stage.sql().await;
        sql.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await.unwrap();
        daemon.wait_applied(current_lsn(&sql).await).await;
        let query = "SELECT coalesce(json_agg(json_build_object('id', p.id, 'version', p.version) ORDER BY p.id), '[]')::text \
            FROM orders o JOIN lines l ON l.order_id = o.id JOIN products p ON p.id = l.product_id WHERE o.customer_id = $1";
        for customer in 1..=10 {
            let truth: Value = serde_json::from_str(sql.query_one(query, &[&customer]).await.unwrap().get(0)).unwrap();
            for entity in entities {
                // A busy machine may keep a read waiting for too long.
                let response = eventually("be answered", || async {
                    let response = daemon.http().get(&format!("/v1/{entity}/{customer}")).await;
                    if response.status == 503 { Err(format!("{response:?}")) } else { Ok(response.expect(200)) }
                })
                .await;
                assert_eq!(response.json(), truth, "{entity}, customer {customer}: {response:?}");
            }
        }
    }
}

async fn bought(http: &Http, customer: i32) -> Value {
    http.get(&format!("/v1/bought/{customer}")).await.expect(200).json()
}

async fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.admin().get("/metrics").await.expect(200).text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// How often the entity was voided as a whole, for this reason.
async fn voided(daemon: &Daemon, reason: &str) -> f64 {
    voided_of(daemon, "bought", reason).await
}

async fn voided_of(daemon: &Daemon, entity: &str, reason: &str) -> f64 {
    metric(daemon, &format!("walcache_lookup_voids_total{{entity=\"{entity}\",reason=\"{reason}\"}}")).await
}

/// As [`voided`], for whatever reason.
async fn voided_at_all(daemon: &Daemon, entity: &str) -> f64 {
    let mut sum = 0.0;
    for reason in REASONS {
        sum += voided_of(daemon, entity, reason).await;
    }
    sum
}

/// Rows tell of entries by one table or another, with L2 and without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_found_by_way_of_other_tables() {
    for l2 in [true, false] {
        let mut market = Market::new("lookups").await;
        if !l2 {
            market.config = market.config.without("l2");
        }
        let daemon = market.daemon(&[]).await;
        market.is_right(&daemon).await;
        for statement in [
            CHANGED,
            "INSERT INTO lines VALUES (2, 1), (3, 1), (4, 1)",
            "UPDATE products SET version = 3 WHERE id IN (1, 2)",
            "UPDATE lines SET order_id = 5 WHERE order_id = 4 AND product_id = 1",
            "UPDATE orders SET customer_id = 7 WHERE id IN (1, 2)",
            "DELETE FROM lines WHERE product_id = 1",
            "BEGIN; UPDATE products SET version = 4 WHERE id = 2; DELETE FROM lines WHERE product_id = 2; COMMIT",
            "TRUNCATE lines",
        ] {
            market.stage.execute(statement).await;
            market.is_right(&daemon).await;
        }
        assert_eq!(voided_at_all(&daemon, "bought").await, 0.0);
        assert!(metric(&daemon, "walcache_cache_invalidations_total{entity=\"bought\",cause=\"lookup\"}").await >= 8.0);
        daemon.terminate().await;
    }
}

/// A lookup finds an entry no more, because the link to it was cut since, in transactions that are not applied yet: what is
/// published in the meantime does not claim to have the change. Stopped after so many batches.
async fn cut_off(name: &str, statements: &[&str], batches: u32, without: Option<&str>) -> (Lsn, Lsn, Option<Value>) {
    let mut market = Market::alone(name).await;
    market.config = market.config.set("apply", "max_batch_events", 1);
    let stop = format!("held=stop@{batches}");
    let mut env = vec![(KILLS, stop.as_str())];
    env.extend(without.map(|rule| (WITHOUT, rule)));
    let daemon = market.daemon(&env).await;
    assert_eq!(bought(&daemon.http(), 1).await, json!([{ "id": 1, "version": 1 }]));
    let before = market.behind(&daemon, statements).await;
    // What it logs comes before the signal: it must not be told to go on in between.
    let stat = format!("/proc/{}/stat", daemon.pid().expect("it runs"));
    eventually("stop after a batch", || async {
        let stat = std::fs::read_to_string(&stat).map_err(|error| error.to_string())?;
        let state = stat.rsplit_once(')').and_then(|(_, after)| after.split_whitespace().next());
        let log = daemon.log();
        if state == Some("T") && log.contains("\"point\":\"held\"") { Ok(()) } else { Err(log) }
    })
    .await;
    let (done, entry) = market.stands().await;
    let confirmed = market.confirmed().await;
    assert!(confirmed <= before || without.is_some(), "confirmed {confirmed}, and before {before}");
    eventually("go on", || async {
        daemon.resume();
        market.stage.execute("SELECT pg_logical_emit_message(true, 'test', '')").await;
        let status = daemon.admin().send(hyper::Method::GET, "/livez", &[], bytes::Bytes::new()).await;
        status.map(drop)
    })
    .await;
    market.is_right(&daemon).await;
    (before, done, entry)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_published_before_what_a_lookup_saw_is_applied() {
    let old = json!([{ "id": 1, "version": 1 }]);
    // What cuts the link names the key itself.
    let changes = [CHANGED, APART, LEFT_CUSTOMER];
    let (before, done, entry) = cut_off("held", &changes, 1, None).await;
    assert_eq!(entry, Some(old.clone()), "the lookup saw the order leave");
    assert!(done <= before, "done up to {done}, and before {before}");
    // What cuts it is found by a lookup, which that of before has seen, and by a link that is cut, too.
    let chain = [CHANGED, APART, LEFT_ORDER, APART, LEFT_CUSTOMER];
    for batches in 1..=3 {
        let (before, done, entry) = cut_off("chain", &chain, batches, None).await;
        assert!(batches > 2 || entry == Some(old.clone()), "both lookups saw the order leave: {entry:?}");
        assert!(entry.is_none() || done <= before, "done up to {done}, and before {before}");
    }
    // Without that rule the same entry stands where it is said to have the change.
    let (before, done, entry) = cut_off("unheld", &changes, 1, Some("hold")).await;
    assert_eq!(entry, Some(old));
    assert!(done > before, "done up to {done}, and before {before}");
}

/// Killed between a batch and what its lookups have seen: it comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_a_round() {
    for nth in 1..=2 {
        let mut market = Market::alone("round").await;
        market.config = market.config.set("apply", "max_batch_events", 1);
        let kill = format!("held=kill@{nth}");
        let daemon = market.daemon(&[(KILLS, &kill)]).await;
        market.is_right(&daemon).await;
        let before = market.behind(&daemon, &[CHANGED, APART, LEFT_ORDER, APART, LEFT_CUSTOMER]).await;
        daemon.wait().await;
        let confirmed = market.confirmed().await;
        assert!(confirmed <= before, "confirmed {confirmed}, and before {before}");
        let daemon = market.daemon(&[]).await;
        market.is_right(&daemon).await;
    }
}

/// Every batch has lookups, and there is always more to come than they have seen: what is published goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watermark_does_not_starve() {
    let market = Arc::new(Market::new("starve").await);
    let daemon = market.daemon(&[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (market, stop) = (market.clone(), stop.clone());
            tokio::spawn(async move {
                let sql = market.stage.sql().await;
                let mut writes = 0;
                while !stop.load(Ordering::Relaxed) {
                    let id = 1 + (writes * 4 + writer) % 50;
                    let statement = format!("UPDATE products SET version = version + 1 WHERE id = {id}");
                    sql.batch_execute(&statement).await.unwrap();
                    writes += 1;
                }
                writes
            })
        })
        .collect();
    let sql = market.stage.sql().await;
    for pass in 0..30_i64 {
        // While the writers go on.
        let written = "SELECT sum(version) - 50 FROM products";
        eventually("write", || async {
            let writes: i64 = sql.query_one(written, &[]).await.unwrap().get(0);
            if writes > 4 * pass { Ok(()) } else { Err(writes) }
        })
        .await;
        daemon.wait_applied(current_lsn(&sql).await).await;
        bought(&daemon.http(), 1).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut writes = 0;
    for writer in writers {
        writes += writer.await.unwrap();
    }
    market.is_right(&daemon).await;
    assert_eq!(voided_at_all(&daemon, "bought").await, 0.0);
    let rounds = metric(&daemon, "walcache_lookup_round_seconds_count").await;
    let seconds = metric(&daemon, "walcache_lookup_round_seconds_sum").await;
    println!("{writes} writes, {rounds} rounds of {:.2} ms", 1000.0 * seconds / rounds);
    // What is written together is looked up together.
    assert!(rounds >= 10.0 && writes >= 30, "{rounds} rounds, {writes} writes");
}
