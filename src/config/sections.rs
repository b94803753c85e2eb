//! The sections of the configuration, with their defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::publications::Publications;
use super::secret::Secret;
use super::table_name::TableName;
use super::units;
use crate::entity::{OnChange, PastBound};

const MIB: u64 = 1 << 20;

/// The Postgres that is followed, and read on misses.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// `postgres://user:password@host:port/database?sslmode=...`. Required, unless `url_file` is set; after loading it
    /// is filled in either case.
    pub url: Secret,
    /// A file that holds the URL; relative to the configuration's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
    /// The logical replication slot: `[a-z0-9_]{1,63}`.
    pub slot: String,
    /// The publication, or a list of publications: what any of them publishes is streamed. `wal2json` needs none.
    pub publication: Publications,
    /// The slot's output plugin.
    pub plugin: Plugin,
    /// Whether standbys keep the slot in step, from Postgres 17 on: then it is still there after a promotion. Where a
    /// slot exists already, it is altered.
    pub failover_slot: bool,
    /// How long a connection may take to be ready, with TLS and authentication.
    #[serde(with = "units::duration")]
    pub connect_timeout: Duration,
    /// How often the applied position is reported to Postgres.
    #[serde(with = "units::duration")]
    pub status_interval: Duration,
    /// How often a message is written into the log. How far readers are behind is known that exactly; besides, an idle
    /// slot advances and a dead connection is noticed.
    #[serde(with = "units::duration")]
    pub heartbeat_interval: Duration,
    /// The replication connection is replaced when nothing has come for this long.
    #[serde(with = "units::duration")]
    pub dead_after: Duration,
    /// The longest pause between two attempts to connect.
    #[serde(with = "units::duration")]
    pub reconnect_max: Duration,
    /// Connections for fills.
    pub pool_size: usize,
    /// How long a read waits for Postgres, its turn included, and how long one statement may take there.
    #[serde(with = "units::duration")]
    pub fill_timeout: Duration,
    /// Keys that are read from Postgres at a time, of all entities together; further ones wait.
    pub max_fills: usize,
    /// Reads that may wait for Postgres at a time; more are refused at once.
    pub max_waiting_fills: usize,
    /// How often the catalog is compared with what is known, by one query: schema changes are noticed within this time also
    /// where no event trigger announces them.
    #[serde(with = "units::duration")]
    pub schema_check_interval: Duration,
    /// The largest message of the stream that is received as a whole. A change of a larger row makes all of its entity's
    /// entries unservable, since it is not known which row it is.
    #[serde(with = "units::size")]
    pub max_message: u64,
    /// Whether event triggers are wanted that announce schema changes in the log: `setup` makes them where it may, `check`
    /// warns where there are none.
    pub event_triggers: bool,
}

impl Default for SourceConfig {
    fn default() -> Self {
        SourceConfig {
            url: Secret::default(),
            url_file: None,
            slot: "walcache".to_owned(),
            publication: Publications::from(["walcache"]),
            plugin: Plugin::Pgoutput,
            failover_slot: true,
            connect_timeout: Duration::from_secs(5),
            status_interval: Duration::from_secs(1),
            heartbeat_interval: Duration::from_secs(1),
            dead_after: Duration::from_secs(30),
            reconnect_max: Duration::from_secs(10),
            pool_size: 4,
            fill_timeout: Duration::from_secs(5),
            max_fills: 1024,
            max_waiting_fills: 10_000,
            schema_check_interval: Duration::from_secs(1),
            max_message: 256 * MIB,
            event_triggers: true,
        }
    }
}

/// How changes are batched on their way into Redis.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyConfig {
    /// Row changes in one batch, at most.
    pub max_batch_events: usize,
    /// Bytes of changes in one batch, at most.
    #[serde(with = "units::size")]
    pub max_batch_bytes: u64,
    /// A transaction larger than this is applied in pieces.
    #[serde(with = "units::size")]
    pub max_transaction_bytes: u64,
    /// The largest value that is cached, as JSON. Larger ones are read from Postgres each time.
    #[serde(with = "units::size")]
    pub max_value: u64,
    /// Keys in one script call.
    pub script_keys: usize,
    /// Script calls that may be under way at a time.
    pub in_flight: usize,
}

impl Default for ApplyConfig {
    fn default() -> Self {
        ApplyConfig {
            max_batch_events: 4096,
            max_batch_bytes: 2 * MIB,
            max_transaction_bytes: MIB,
            max_value: 32 * MIB,
            script_keys: 256,
            in_flight: 16,
        }
    }
}

/// The cache in this process's memory.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct L1Config {
    /// Memory for entries, bookkeeping included.
    #[serde(with = "units::size")]
    pub max_size: u64,
    /// Whether there is one.
    pub enabled: bool,
}

impl Default for L1Config {
    fn default() -> Self {
        L1Config { max_size: 256 * MIB, enabled: true }
    }
}

/// The cache in Redis.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct L2Config {
    /// `redis://user:password@host:port/database` or `rediss://...`. Required, unless `url_file` is set; after loading it
    /// is filled in either case.
    pub url: Secret,
    /// A file that holds the URL; relative to the configuration's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
    /// What every key begins with.
    pub prefix: String,
    /// How much log Redis may lag behind while it is away, before walcache goes on without it.
    #[serde(with = "units::size")]
    pub max_backlog: u64,
    /// How long Redis may be away before walcache goes on without it.
    #[serde(with = "units::duration")]
    pub max_backlog_age: Duration,
    /// How long Redis may take to answer.
    #[serde(with = "units::duration")]
    pub response_timeout: Duration,
    /// How long a connection to Redis may take.
    #[serde(with = "units::duration")]
    pub connect_timeout: Duration,
    /// How long a fill keeps the permission to publish its value.
    #[serde(with = "units::duration")]
    pub lease_ttl: Duration,
    /// How long a reader waits for another instance's fill of the same entry before it reads Postgres itself.
    #[serde(with = "units::duration")]
    pub lease_wait: Duration,
}

impl Default for L2Config {
    fn default() -> Self {
        L2Config {
            url: Secret::default(),
            url_file: None,
            prefix: String::new(),
            max_backlog: 1024 * MIB,
            max_backlog_age: Duration::from_secs(60),
            response_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            lease_ttl: Duration::from_secs(10),
            lease_wait: Duration::from_millis(200),
        }
    }
}

/// What readers are promised, and for how long they wait for it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FreshnessConfig {
    /// Hits are marked stale while replication is further behind than this.
    #[serde(with = "units::duration")]
    pub stale_after: Duration,
    /// The bound: while replication is further behind than this, [`FreshnessConfig::past_max_staleness`] says what
    /// becomes of hits. Entities may have a bound of their own, and so may requests (`Cache-Control: max-age`).
    #[serde(with = "units::duration")]
    pub max_staleness: Duration,
    /// What becomes of hits past the bound.
    pub past_max_staleness: PastBound,
    /// How long a read with `X-Min-LSN` waits for that position before it reads Postgres.
    #[serde(with = "units::duration")]
    pub min_lsn_wait: Duration,
    /// The longest wait that a request may ask for (`Prefer: wait`).
    #[serde(with = "units::duration")]
    pub min_lsn_wait_max: Duration,
}

impl Default for FreshnessConfig {
    fn default() -> Self {
        FreshnessConfig {
            stale_after: Duration::from_secs(10),
            max_staleness: Duration::from_secs(300),
            past_max_staleness: PastBound::Bypass,
            min_lsn_wait: Duration::from_millis(500),
            min_lsn_wait_max: Duration::from_secs(10),
        }
    }
}

/// The listener that serves reads.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where to listen. Port 0 takes a free one, which is logged.
    #[serde(with = "units::address")]
    pub listen: SocketAddr,
    /// The largest request body.
    #[serde(with = "units::size")]
    pub max_body: u64,
    /// Keys in one batch request, at most.
    pub max_batch: usize,
    /// How long a client may take to send a request's head.
    #[serde(with = "units::duration")]
    pub header_timeout: Duration,
    /// Open connections, at most.
    pub max_connections: usize,
    /// How long shutting down may take before what is left is cut off.
    #[serde(with = "units::duration")]
    pub grace: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body: MIB,
            max_batch: 1000,
            header_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            grace: Duration::from_secs(10),
        }
    }
}

/// The listener for operators: health, metrics, status.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where to listen. Port 0 takes a free one, which is logged.
    #[serde(with = "units::address")]
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        AdminConfig { listen: SocketAddr::from(([127, 0, 0, 1], 9090)) }
    }
}

/// Comparing what is cached with Postgres, in the background.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Entries compared in a second, at most; 0: none.
    pub rate: u32,
    /// How long a comparison that shows a difference waits for replication to come to where the row was read.
    #[serde(with = "units::duration")]
    pub wait: Duration,
}

impl Default for AuditConfig {
    fn default() -> Self {
        AuditConfig { rate: 10, wait: Duration::from_secs(15) }
    }
}

/// Logging, to standard error.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// What is logged, in the filter syntax of tracing: `info`, `walcache=debug,info`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// A kind of cached thing: the rows of one table.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EntityConfig {
    /// The name in URLs, keys and metrics: `[a-z][a-z0-9_-]*`, unique.
    pub name: String,
    /// The table.
    pub table: TableName,
    /// What a change of a row does to its entry in L2.
    #[serde(default)]
    pub on_change: OnChange,
    /// How long an entry may live in one tier after it was filled there; changes of the row do not prolong it.
    #[serde(default = "default_ttl", with = "units::duration")]
    pub ttl: Duration,
    /// The columns of the value, by their exact names; `None`: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The columns of the key, by their exact names; `None`: the primary key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<String>>,
    /// Whether changes also write entries that nobody has read.
    #[serde(default)]
    pub populate: bool,
    /// Whether every reader may see every row of a table with row-level security: neither the stream nor fills obey its
    /// policies. Else such a table is refused.
    #[serde(default)]
    pub bypass_rls: bool,
    /// As [`FreshnessConfig::max_staleness`]; `None`: as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub max_staleness: Option<Duration>,
    /// As [`FreshnessConfig::past_max_staleness`]; `None`: as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past_max_staleness: Option<PastBound>,
}

fn default_ttl() -> Duration {
    Duration::from_secs(3600)
}

/// A logical decoding plugin that walcache can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Plugin {
    /// Postgres' own, which reads a publication.
    #[default]
    Pgoutput,
    /// wal2json 2.5 or later, format version 2: where it is installed and publications cannot be made.
    Wal2json,
}

impl Plugin {
    /// Its name in Postgres.
    pub const fn as_str(self) -> &'static str {
        match self {
            Plugin::Pgoutput => "pgoutput",
            Plugin::Wal2json => "wal2json",
        }
    }
}

impl<'de> Deserialize<'de> for Plugin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "pgoutput" => Ok(Plugin::Pgoutput),
            "wal2json" => Ok(Plugin::Wal2json),
            other => {
                Err(serde::de::Error::custom(format!("unknown plugin {other:?}: use \"pgoutput\" or \"wal2json\"")))
            }
        }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
