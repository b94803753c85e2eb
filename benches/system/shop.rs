//! A table of rows of some 200 bytes in a private Postgres, with a private Redis beside it.

use anyhow::{Result, ensure};
use rand::Rng;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use walcache::sandbox::{Postgres, PostgresOptions, Redis, RedisOptions};

use crate::harness::{Config, Daemon, Entity, cli};

/// The slot and the publication.
pub const SLOT: &str = "bench";
/// The database.
pub const DATABASE: &str = "shop";
/// Keys of one request: what walcache takes by default.
const BATCH: usize = 1000;
/// Requests under way at a time.
const READERS: usize = 4;
/// Entries compared with Postgres at a time.
const SAMPLE: usize = 1000;

/// The servers and the table.
pub struct Shop {
    /// The source.
    pub postgres: Postgres,
    /// L2.
    pub redis: Redis,
    /// A connection to the source.
    pub sql: Client,
    /// Rows in the table; their ids are 1 to this.
    pub rows: usize,
    /// Bytes of a row's JSON, on average.
    pub row_bytes: usize,
}

impl Shop {
    /// Starts the servers, makes the table and what `walcache setup` makes.
    pub async fn start(rows: usize) -> Result<Shop> {
        // Nothing that happens by itself may fall into a measurement, and memory holds the table.
        let options = PostgresOptions::new().durable().setting("autovacuum", "off").setting("shared_buffers", "512MB");
        let options = options.setting("max_wal_size", "16GB").setting("checkpoint_timeout", "1h");
        let postgres = Postgres::start(options).await?;
        let redis = Redis::start(RedisOptions::new()).await?;
        postgres.create_database(DATABASE).await?;
        let sql = postgres.connect(DATABASE).await?;
        sql.batch_execute(include_str!("shop.sql")).await?;
        let fill = "INSERT INTO product SELECT id, 'SKU-' || lpad(id::text, 8, '0'), 'Product number ' || id, 19.99, 100, 1, \
                    now(), repeat('x', 40) FROM generate_series(1, $1::int) AS id";
        sql.execute(fill, &[&i32::try_from(rows)?]).await?;
        sql.batch_execute("VACUUM ANALYZE product").await?;
        let bytes = "SELECT avg(octet_length(row_to_json(p)::text))::int FROM product p";
        let row_bytes: i32 = sql.query_one(bytes, &[]).await?.get(0);
        let shop = Shop { postgres, redis, sql, rows, row_bytes: usize::try_from(row_bytes)? };
        let setup = cli(&shop.config(), &["setup", "--apply"], &[]).await;
        ensure!(setup.status.success(), "walcache setup failed: {}{}", setup.stdout, setup.stderr);
        Ok(shop)
    }

    /// What the daemon runs with: defaults, except for the servers and the table.
    pub fn config(&self) -> Config {
        let config = Config::new(&self.postgres.url(DATABASE), SLOT, SLOT, &self.redis.url(), "");
        config.entity(Entity::new("product", "public.product"))
    }

    /// Another connection to the source.
    pub async fn connect(&self) -> Result<Client> {
        Ok(self.postgres.connect(DATABASE).await?)
    }

    /// Reads every row through a daemon, so that all are in L2.
    pub async fn fill(&self, daemon: &Daemon) -> Result<()> {
        daemon.wait_ready().await;
        let mut requests = JoinSet::new();
        for first in (1..=self.rows).step_by(BATCH) {
            while requests.len() >= READERS {
                requests.join_next().await.transpose()?;
            }
            let http = daemon.http();
            let keys: Vec<usize> = (first..=self.rows).take(BATCH).collect();
            requests
                .spawn(async move { http.post("/v1/product/batch", &json!({ "keys": keys }), &[]).await.expect(200) });
        }
        while requests.join_next().await.transpose()?.is_some() {}
        let stored: usize = redis::cmd("DBSIZE").query_async(&mut self.l2().await?).await?;
        // One more key is the fence.
        ensure!(stored > self.rows, "BROKEN: {stored} keys are in Redis after {} rows were read", self.rows);
        self.verify_sample().await
    }

    /// A connection to L2.
    pub async fn l2(&self) -> Result<MultiplexedConnection> {
        Ok(self.redis.connect().await?)
    }

    /// Fails unless the entries of some rows, the first and the last among them, equal what Postgres has.
    pub async fn verify_sample(&self) -> Result<()> {
        let last = i32::try_from(self.rows)?;
        let mut ids: Vec<i32> = (0..SAMPLE).map(|_| rand::rng().random_range(1..=last)).collect();
        ids.extend([1, last]);
        ids.sort_unstable();
        ids.dedup();
        self.verify(&ids).await
    }

    /// Fails unless the entries of these rows are there and equal what Postgres has.
    pub async fn verify(&self, ids: &[i32]) -> Result<()> {
        let rows = "SELECT id, row_to_json(p)::text FROM product p WHERE id = ANY($1)";
        let rows = self.sql.query(rows, &[&ids]).await?;
        ensure!(rows.len() == ids.len(), "Postgres has {} of {} rows", rows.len(), ids.len());
        let keys: Vec<String> = rows.iter().map(|row| format!("product:{}", row.get::<_, i32>(0))).collect();
        let entries: Vec<Option<String>> = redis::cmd("MGET").arg(&keys).query_async(&mut self.l2().await?).await?;
        let absent: Vec<&String> =
            keys.iter().zip(&entries).filter(|(_, entry)| entry.is_none()).map(|(k, _)| k).collect();
        ensure!(
            absent.is_empty(),
            "BROKEN: of {} entries that were in Redis {} are gone, such as {}",
            keys.len(),
            absent.len(),
            absent[0]
        );
        for ((row, entry), key) in rows.iter().zip(entries).zip(keys) {
            let expected: Value = serde_json::from_str(row.get(1))?;
            let entry: Option<Value> = entry.map(|entry| serde_json::from_str(&entry)).transpose()?;
            let value = entry.as_ref().map(|entry| &entry["v"]);
            ensure!(value == Some(&expected), "WRONG: {key} is {value:?} in Redis, and {expected} in Postgres");
        }
        Ok(())
    }

    /// Waits until nobody holds a slot.
    pub async fn wait_inactive(&self, slot: &str) -> Result<()> {
        let active = "SELECT coalesce(bool_or(active), false) FROM pg_replication_slots WHERE slot_name = $1";
        while self.sql.query_one(active, &[&slot]).await?.get(0) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
