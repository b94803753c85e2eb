//! A table of counters, the daemon's configuration for it, and loads of writers and readers that judge what they read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use walcache::lsn::Lsn;
use walcache::sandbox::{PostgresOptions, RedisOptions, free_port};

use super::histories::{Claim, Histories};
use super::judge::{Raw, servable};
use super::{Config, Daemon, Entity, Http, Stage, cli, current_lsn, eventually};

/// Rows of the table, present or not.
pub const ROWS: usize = 64;
/// Writers of a load; each owns the rows with its number modulo this.
const WRITERS: usize = 3;
/// The pause between two reads of Redis.
const RAW_PACE: Duration = Duration::from_millis(1);
/// The pause after a failed connection or request, so that a load does not spin.
const PAUSE: Duration = Duration::from_millis(10);

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
        let stage = Arc::new(Stage::private(name, postgres, redis).await);
        stage
            .execute(
                "CREATE TABLE counters (id int PRIMARY KEY, version bigint NOT NULL, note text NOT NULL DEFAULT '')",
            )
            .await;
        let config = brisk(stage.config())
            .set("http", "listen", format!("127.0.0.1:{}", free_port()))
            .set("admin", "listen", format!("127.0.0.1:{}", free_port()))
            .entity(Entity::new("counter", "public.counters"));
        let done = cli(&config, &["setup", "--apply"], &[]).await;
        assert!(done.status.success(), "{done:?}");
        Shop { stage, config, histories: Arc::new(Histories::new(ROWS)) }
    }

    /// Starts a daemon and waits until it has caught up.
    pub async fn daemon(&self) -> Daemon {
        let daemon = Daemon::start(&self.config).await;
        daemon.wait_ready().await;
        daemon
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
        self.histories.begin(row, Some(value), None);
        sql.batch_execute(&upsert(row, value)).await.expect("write a row");
        let at = current_lsn(sql).await;
        self.histories.done(row, at);
        at
    }

    /// Starts writers and readers, seeded.
    pub fn load(&self, daemon: &Daemon, seed: u64) -> Load {
        let mut load = self.readers(daemon, seed);
        for number in 0..WRITERS {
            let rng = StdRng::seed_from_u64(seed * 100 + number as u64);
            load.writers.spawn(write(load.shared.clone(), number, rng));
        }
        load
    }

    /// As [`Shop::load`] without writers, beside a load that has them: each row has one writer at a time.
    pub fn readers(&self, daemon: &Daemon, seed: u64) -> Load {
        let shared = Arc::new(Shared {
            stop: CancellationToken::new(),
            histories: self.histories.clone(),
            stage: self.stage.clone(),
            wrongs: Mutex::default(),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            failed_reads: AtomicU64::new(0),
            raw_reads: AtomicU64::new(0),
        });
        let mut readers = JoinSet::new();
        for number in 0..3 {
            let rng = StdRng::seed_from_u64(seed * 100 + 50 + number);
            readers.spawn(read(shared.clone(), Http::new(daemon.http_address()), rng));
        }
        readers.spawn(read_raw(shared.clone(), StdRng::seed_from_u64(seed * 100 + 90)));
        Load { shared, writers: JoinSet::new(), readers }
    }
}

/// A configuration that notices, confirms and reconnects within fractions of a second.
pub fn brisk(config: Config) -> Config {
    config
        .set("source", "status_interval", "100ms")
        .set("source", "heartbeat_interval", "300ms")
        .set("source", "reconnect_max", "300ms")
        .set("source", "dead_after", "3s")
        .set("l2", "response_timeout", "500ms")
}

fn upsert(row: usize, value: i64) -> String {
    format!(
        "INSERT INTO counters VALUES ({row}, {value}) ON CONFLICT (id) DO UPDATE SET version = excluded.version, note = 'v{value}'"
    )
}

struct Shared {
    stop: CancellationToken,
    histories: Arc<Histories>,
    stage: Arc<Stage>,
    wrongs: Mutex<Vec<String>>,
    writes: AtomicU64,
    reads: AtomicU64,
    failed_reads: AtomicU64,
    raw_reads: AtomicU64,
}

/// Writers and readers under way.
pub struct Load {
    shared: Arc<Shared>,
    writers: JoinSet<()>,
    readers: JoinSet<()>,
}

/// How much a load has done.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Transactions that were acknowledged.
    pub writes: u64,
    /// Reads over HTTP that were answered and judged.
    pub reads: u64,
    /// Reads over HTTP that failed, or were refused.
    pub failed_reads: u64,
    /// Entries that were read from Redis and judged.
    pub raw_reads: u64,
}

impl Load {
    /// How much was done until now.
    pub fn done(&self) -> Done {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let s = &self.shared;
        Done {
            writes: load(&s.writes),
            reads: load(&s.reads),
            failed_reads: load(&s.failed_reads),
            raw_reads: load(&s.raw_reads),
        }
    }

    /// Waits until so many more transactions were acknowledged.
    pub async fn writes(&self, more: u64) {
        let goal = self.done().writes + more;
        eventually(&format!("write {more} transactions more"), || async { at_least(self.done().writes, goal) }).await;
    }

    /// Waits until so many more reads over HTTP were answered.
    pub async fn reads(&self, more: u64) {
        let goal = self.done().reads + more;
        eventually(&format!("answer {more} reads more"), || async { at_least(self.done().reads, goal) }).await;
    }

    /// Stops the writers, then the readers; panics if any read was wrong.
    pub async fn stop(mut self) -> Done {
        self.shared.stop.cancel();
        while let Some(ended) = self.writers.join_next().await {
            ended.expect("a writer");
        }
        while let Some(ended) = self.readers.join_next().await {
            ended.expect("a reader");
        }
        let wrongs = self.shared.wrongs.lock();
        assert!(
            wrongs.is_empty(),
            "{} wrong reads, among them:\n{}",
            wrongs.len(),
            wrongs[..wrongs.len().min(5)].join("\n")
        );
        self.done()
    }
}

fn at_least(now: u64, goal: u64) -> Result<(), String> {
    if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
}

/// Writes to its own rows one transaction after the other, and notes each in their histories.
async fn write(shared: Arc<Shared>, number: usize, mut rng: StdRng) {
    let own: Vec<usize> = (0..shared.histories.len()).filter(|row| row % WRITERS == number).collect();
    // Versions are unique and grow, also over several loads.
    let mut version = rng.random_range(1..1000) + 1_000_000 * now_micros();
    // What is there; unknown at first, and after a failure.
    let mut present: HashMap<usize, bool> = HashMap::new();
    let mut connection: Option<Client> = None;
    let mut last: Option<Lsn> = None;
    while !shared.stop.is_cancelled() {
        let Some(sql) = connection.as_ref().filter(|sql| !sql.is_closed()) else {
            last = None;
            connection = shared.stage.postgres.connect(&shared.stage.name).await.ok();
            if connection.is_none() {
                sleep(PAUSE).await;
            }
            continue;
        };
        let mut statements = Vec::new();
        let mut changes: HashMap<usize, Option<i64>> = HashMap::new();
        for _ in 0..rng.random_range(1..4) {
            let row = own[rng.random_range(0..own.len())];
            let other = own[rng.random_range(0..own.len())];
            version += 1;
            // A row that changes twice in one transaction is an own case; histories know only committed states.
            match (rng.random_range(0..10), present.get(&row)) {
                (0, _) => {
                    statements.push(format!("DELETE FROM counters WHERE id = {row}"));
                    changes.insert(row, None);
                    present.insert(row, false);
                }
                (1, Some(true)) if row != other => {
                    statements.push(format!("DELETE FROM counters WHERE id = {other}"));
                    statements.push(format!("UPDATE counters SET id = {other}, version = {version} WHERE id = {row}"));
                    changes.insert(row, None);
                    changes.insert(other, Some(version));
                    present.extend([(row, false), (other, true)]);
                }
                (2..6, Some(true)) => {
                    statements.push(format!("UPDATE counters SET version = {version} WHERE id = {row}"));
                    changes.insert(row, Some(version));
                }
                _ => {
                    statements.push(upsert(row, version));
                    changes.insert(row, Some(version));
                    present.insert(row, true);
                }
            }
        }
        for (row, value) in &changes {
            shared.histories.begin(*row, *value, last);
        }
        let transaction = format!("BEGIN; {}; COMMIT", statements.join("; "));
        let committed = sql.batch_execute(&transaction).await;
        let at = match committed {
            Ok(()) => sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.ok(),
            Err(_) => None,
        };
        match at.and_then(|row| row.get::<_, &str>(0).parse::<Lsn>().ok()) {
            Some(at) => {
                changes.keys().for_each(|row| shared.histories.done(*row, at));
                shared.writes.fetch_add(1, Ordering::Relaxed);
                last = Some(at);
            }
            None => {
                present.clear();
                connection = None;
            }
        }
    }
}

fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    since.as_micros() as i64 % 1_000_000_000
}

/// Reads over HTTP, and judges each answer. Every other key is read as a client does that passes its last LSN back.
async fn read(shared: Arc<Shared>, http: Http, mut rng: StdRng) {
    let mut seen: HashMap<usize, (Lsn, usize)> = HashMap::new();
    while !shared.stop.is_cancelled() {
        let row = rng.random_range(0..shared.histories.len());
        let follow = row % 2 == 0;
        let (min, floor) = seen.get(&row).filter(|_| follow).map_or((None, 0), |(lsn, floor)| (Some(*lsn), *floor));
        let text = min.map(|lsn| lsn.to_string());
        let mut headers: Vec<(&str, &str)> = text.iter().map(|lsn| ("x-min-lsn", lsn.as_str())).collect();
        if rng.random_range(0..50) == 0 {
            headers.push(("cache-control", "no-cache"));
        }
        let answer = http.send(Method::GET, &format!("/v1/counter/{row}"), &headers, Bytes::new()).await;
        let response = match answer {
            Ok(response) if matches!(response.status.as_u16(), 200 | 404) => response,
            _ => {
                shared.failed_reads.fetch_add(1, Ordering::Relaxed);
                sleep(PAUSE).await;
                continue;
            }
        };
        let value = if response.status == 200 { version(&response.json()) } else { None };
        let lsn = |name: &str| response.header(name).parse::<Lsn>().expect("an LSN");
        let claim = Claim { lo: lsn("x-applied-lsn"), hi: Some(lsn("x-read-lsn")), floor };
        if let Some(wrong) = min.filter(|min| lsn("x-read-lsn") < *min) {
            shared.wrongs.lock().push(format!("asked for {wrong}, got {claim:?}"));
        }
        match shared.histories.judge(row, value, claim) {
            Ok(floor) => drop(seen.insert(row, (lsn("x-read-lsn"), floor))),
            Err(wrong) => shared.wrongs.lock().push(format!("{wrong} ({:?})", response.headers)),
        }
        shared.reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads Redis as a client without a library may, and judges what entries say of themselves.
async fn read_raw(shared: Arc<Shared>, mut rng: StdRng) {
    let mut raw: Option<Raw> = None;
    while !shared.stop.is_cancelled() {
        let row = rng.random_range(0..shared.histories.len());
        let looked = match &mut raw {
            Some(raw) => raw.look(&format!("counter:{row}")).await,
            None => Raw::connect(&shared.stage).await.map(|connected| {
                raw = Some(connected);
                None
            }),
        };
        let Ok(looked) = looked else {
            raw = None;
            sleep(PAUSE).await;
            continue;
        };
        if let Some(entry) = looked.and_then(|stored| servable(&stored, "counter")) {
            let claim = Claim { lo: entry.lo, hi: Some(entry.hi), floor: 0 };
            if let Err(wrong) = shared.histories.judge(row, entry.version(), claim) {
                shared.wrongs.lock().push(format!("in Redis: {wrong}"));
            }
            shared.raw_reads.fetch_add(1, Ordering::Relaxed);
        }
        // Paced, or it would take most of a core from those whom it watches.
        sleep(RAW_PACE).await;
    }
}

/// The version in a row's JSON.
pub fn version(row: &Value) -> Option<i64> {
    row["version"].as_i64()
}
