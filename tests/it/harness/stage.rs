//! What a test stands on: a Postgres database, a Redis database, and names that no other test uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use walcache::lsn::Lsn;
use walcache::sandbox::{Postgres, PostgresOptions, Redis, RedisOptions};

use super::{Config, current_lsn, failure, plugin};

/// Databases for one test.
pub struct Stage {
    /// The source, shared with other tests or not.
    pub postgres: Arc<Postgres>,
    /// L2, shared with other tests or not.
    pub redis: Arc<Redis>,
    /// The name of this test's database, slot and publication.
    pub name: String,
    /// The number of this test's Redis database.
    pub redis_database: u16,
    /// Says when the test is over.
    _over: Over,
}

/// Stages that are over, of those on the servers that tests share.
static ENDED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The name of a stage on the servers that tests share, until that is over.
struct Over(Option<String>);

impl Drop for Over {
    fn drop(&mut self) {
        ENDED.lock().extend(self.0.take());
    }
}

impl Stage {
    /// A stage on the servers that all tests of this process share; never stop or pause those.
    pub async fn shared(name: &str) -> Stage {
        // Never dropped, as no static is: their guards remove them when the process ends.
        static SERVERS: OnceCell<(Arc<Postgres>, Arc<Redis>)> = OnceCell::const_new();
        let (postgres, redis) =
            SERVERS.get_or_init(|| servers(PostgresOptions::new(), RedisOptions::new())).await.clone();
        drop_slots_of_ended(&postgres).await;
        let stage = Stage::on(postgres, redis, name).await;
        Stage { _over: Over(Some(stage.name.clone())), ..stage }
    }

    /// A stage on servers of its own.
    pub async fn private(name: &str, postgres: PostgresOptions, redis: RedisOptions) -> Stage {
        let (postgres, redis) = servers(postgres, redis).await;
        Stage::on(postgres, redis, name).await
    }

    async fn on(postgres: Arc<Postgres>, redis: Arc<Redis>, name: &str) -> Stage {
        failure::tell_at_once();
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < 1024, "a private Redis has 1024 databases");
        let name = format!("{name}_{number}");
        postgres.create_database(&name).await.expect("create the test's database");
        Stage { postgres, redis, name, redis_database: number, _over: Over(None) }
    }

    /// The same on other servers, which have its databases.
    pub fn moved_to(&self, postgres: Arc<Postgres>, redis: Arc<Redis>) -> Stage {
        let (name, redis_database) = (self.name.clone(), self.redis_database);
        Stage { postgres, redis, name, redis_database, _over: Over(None) }
    }

    /// A connection to the test's database, as superuser.
    pub async fn sql(&self) -> Client {
        self.postgres.connect(&self.name).await.expect("connect to the private Postgres")
    }

    /// The server's major version.
    pub async fn version(&self) -> i32 {
        let row = self.sql().await.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await;
        row.expect("ask the version of the private Postgres").get(0)
    }

    /// Runs SQL statements in the test's database and returns an LSN at or above their commits.
    pub async fn execute(&self, sql: &str) -> Lsn {
        let client = self.sql().await;
        client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{e}: {:?}\n{sql}", e.as_db_error()));
        current_lsn(&client).await
    }

    /// A connection to the test's Redis database.
    pub async fn l2(&self) -> MultiplexedConnection {
        self.redis.connect_to(self.redis_database).await.expect("connect to the private Redis")
    }

    /// The URL of the test's Postgres database.
    pub fn source_url(&self) -> String {
        self.postgres.url(&self.name)
    }

    /// The URL of the test's Redis database.
    pub fn l2_url(&self) -> String {
        self.redis.url_at(self.redis.port(), self.redis_database)
    }

    /// A configuration for this stage without entities: slot and publication are named as the stage. Redis does not pass for gone
    /// because a busy machine keeps it waiting.
    pub fn config(&self) -> Config {
        Config::new(&self.source_url(), &self.name, &self.name, &self.l2_url(), "").set("l2", "response_timeout", "10s")
    }
}

/// Drops the slots of tests that are over: they would keep the log of all others.
async fn drop_slots_of_ended(postgres: &Postgres) {
    let ended = std::mem::take(&mut *ENDED.lock());
    if ended.is_empty() {
        return;
    }
    let sql = postgres.connect("postgres").await.expect("connect to the private Postgres");
    let slots = "SELECT slot_name::text, database::text FROM pg_replication_slots WHERE database::text = ANY ($1)";
    for slot in sql.query(slots, &[&ended]).await.expect("list the slots") {
        let (slot, database): (String, String) = (slot.get(0), slot.get(1));
        let dropped = sql.execute("SELECT pg_drop_replication_slot($1::text::name)", &[&slot]).await;
        if dropped.is_err() {
            // A daemon that is about to end still holds it: the next time.
            ENDED.lock().push(database);
        }
    }
}

async fn servers(postgres: PostgresOptions, redis: RedisOptions) -> (Arc<Postgres>, Arc<Redis>) {
    let (postgres, redis) = tokio::join!(Postgres::start(postgres), Redis::start(redis));
    (Arc::new(postgres.expect("start a private Postgres")), Arc::new(redis.expect("start a private Redis")))
}

/// Whether a test is about wal2json, and the servers of this run are without it. It says so. A run that is to be with that
/// plugin fails instead.
pub async fn needs_wal2json(test: &str) -> bool {
    static MISSING: OnceCell<bool> = OnceCell::const_new();
    let missing = MISSING.get_or_init(|| async {
        let sql = Stage::shared("has_wal2json").await.sql().await;
        let probe = "SELECT pg_create_logical_replication_slot('has_wal2json', 'wal2json', true)";
        match sql.execute(probe, &[]).await {
            Ok(_) => false,
            Err(e) if e.code() == Some(&SqlState::UNDEFINED_FILE) => true,
            Err(e) => panic!("{e}: {:?}", e.as_db_error()),
        }
    });
    let skipped = plugin() != "wal2json" && *missing.await;
    if skipped {
        println!("SKIPPED: {test} needs wal2json, which this Postgres lacks");
    }
    skipped
}
