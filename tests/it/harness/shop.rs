//! A table of counters, and the daemon's configuration for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use tokio_postgres::Client;
use walcache::lsn::Lsn;
use walcache::sandbox::{PostgresOptions, RedisOptions, free_port};

use super::histories::Histories;
use super::load::upsert;
use super::{Config, Daemon, Entity, Stage, cli, current_lsn, eventually};

/// Rows of the table, present or not.
pub const ROWS: usize = 64;

/// Servers with a table of counters, and the configuration of a daemon that serves them as `counter`.
pub struct Shop {
    /// The servers.
    pub stage: Arc<Stage>,
    /// The daemon's configuration: fixed ports, so that clients find a daemon that was started again.
    pub config: Config,
    /// What was written to each row.
    pub histories: Arc<Histories>,
}

impl Shop {
    /// On servers of its own.
    pub async fn new(name: &str) -> Shop {
        Shop::with(name, PostgresOptions::new(), RedisOptions::new()).await
    }

    /// On servers of its own with these options.
    pub async fn with(name: &str, postgres: PostgresOptions, redis: RedisOptions) -> Shop {
        Shop::of(name, ROWS, postgres, redis).await
    }

    /// As [`Shop::with`], of so many rows: a multiple of eight.
    pub async fn of(name: &str, rows: usize, postgres: PostgresOptions, redis: RedisOptions) -> Shop {
        let stage = Arc::new(Stage::private(name, postgres, redis).await);
        stage
            .execute(
                "CREATE TABLE counters (id int PRIMARY KEY, version bigint NOT NULL, note text NOT NULL DEFAULT '');
                 CREATE TABLE outcomes (transaction bigint PRIMARY KEY, committed bool NOT NULL)",
            )
            .await;
        let config = brisk(stage.config())
            .set("http", "listen", format!("127.0.0.1:{}", free_port()))
            .set("admin", "listen", format!("127.0.0.1:{}", free_port()))
            .entity(Entity::new("counter", "public.counters"));
        let done = cli(&config, &["setup", "--apply"], &[]).await;
        assert!(done.status.success(), "{done:?}");
        Shop { stage, config, histories: Arc::new(Histories::new(rows)) }
    }

    /// Starts a daemon and waits until it has caught up.
    pub async fn daemon(&self) -> Daemon {
        let daemon = Daemon::start(&self.config).await;
        daemon.wait_ready().await;
        daemon
    }

    /// The configuration of another daemon beside the first: on other ports.
    pub fn beside(&self) -> Config {
        let free = || format!("127.0.0.1:{}", free_port());
        self.config.clone().set("http", "listen", free()).set("admin", "listen", free())
    }

    /// A connection as superuser.
    pub async fn sql(&self) -> Client {
        self.stage.sql().await
    }

    /// Where the slot stands, once nobody holds it.
    pub async fn confirmed_when_free(&self) -> Lsn {
        let sql = self.sql().await;
        eventually("free the slot", || async {
            let row = self.slot(&sql).await.ok_or("no slot")?;
            if row.1 { Err("in use") } else { Ok(row.0) }
        })
        .await
    }

    /// Where the slot stands.
    pub async fn confirmed(&self) -> Lsn {
        self.slot(&self.sql().await).await.expect("there is a slot").0
    }

    async fn slot(&self, sql: &Client) -> Option<(Lsn, bool)> {
        let query = "SELECT confirmed_flush_lsn::text, active FROM pg_replication_slots WHERE slot_name = $1";
        let rows = sql.query(query, &[&self.stage.name]).await.expect("read the slot");
        let row = rows.first()?;
        Some((row.get::<_, &str>(0).parse().expect("an LSN"), row.get(1)))
    }

    /// Writes a row outside of a load; gives a position at or above the commit.
    pub async fn put(&self, sql: &Client, row: usize, value: i64) -> Lsn {
        let turn = self.histories.turns(&BTreeSet::from([row])).await;
        let transaction = turn.begin(&BTreeMap::from([(row, Some(value))]), None);
        sql.batch_execute(&upsert(row, value)).await.expect("write a row");
        let at = current_lsn(sql).await;
        transaction.committed(at);
        at
    }

    /// Waits until the slot has confirmed everything up to `lsn`.
    pub async fn until_confirmed(&self, lsn: Lsn) {
        eventually("have it confirmed", || async {
            let confirmed = self.confirmed().await;
            if confirmed >= lsn { Ok(()) } else { Err(format!("{confirmed} of {lsn}")) }
        })
        .await;
    }

    /// Writes rows 0 to 19, each read as soon as it is there.
    pub async fn cached(&self, sql: &Client, daemon: &Daemon, value: i64) {
        let http = daemon.http();
        for id in 0..20 {
            self.put(sql, id, value).await;
            http.get(&format!("/v1/counter/{id}")).await.expect(200);
        }
    }

    /// Empties the table, under load or not.
    ///
    /// # Errors
    /// If Postgres does not say that it is done; it may be done nevertheless.
    pub async fn truncate(&self, sql: &Client) -> Result<Lsn, tokio_postgres::Error> {
        let turns = self.histories.all_turns().await;
        let transaction = turns.begin(&(0..self.histories.len()).map(|row| (row, None)).collect(), None);
        sql.batch_execute("TRUNCATE counters").await?;
        let row = sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        let at = row.get::<_, &str>(0).parse().expect("Postgres prints LSNs that parse");
        transaction.committed(at);
        Ok(at)
    }
}

/// A configuration that confirms and reconnects within fractions of a second, and notices a source that is away within
/// seconds. What a busy machine makes slow is no failure: L2 is away when a connection to it breaks, and when it has not
/// answered for longer than any test waits. (Those that are about its silence say how long that may last.)
pub fn brisk(config: Config) -> Config {
    config
        .set("source", "status_interval", "100ms")
        .set("source", "heartbeat_interval", "300ms")
        .set("source", "reconnect_max", "300ms")
        .set("source", "dead_after", "3s")
        .set("source", "fill_timeout", "10s")
        .set("audit", "rate", 100)
}

/// The version in a row's JSON.
pub fn version(row: &Value) -> Option<i64> {
    row["version"].as_i64()
}
