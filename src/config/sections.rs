//! The sections of the configuration, with their defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::publications::Publications;
use super::query::{DependsOn, Pairs};
use super::secret::Secret;
use super::table_name::TableName;
use super::units;
use super::warm::WarmConfig;
use crate::entity::lifetime::Lifetime;
use crate::entity::query::ResultShape;
use crate::entity::{Definition, OnChange, PastBound};
use crate::void::tag::Template;

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
    /// How long a lookup of a query's rule may take, and all of a batch twice that, before all of the entity's entries are
    /// voided instead.
    #[serde(with = "units::duration")]
    pub lookup_timeout: Duration,
    /// Different lookups of one entity that are run at a time; with more, all of its entries are voided instead.
    pub max_lookups: usize,
    /// Log between what is applied and what lookups would see; where there is more, entries are voided instead.
    #[serde(with = "units::size")]
    pub max_lookup_distance: u64,
    /// How long what is applied may go unpublished until what lookups have seen is applied, too, before entries are voided
    /// instead.
    #[serde(with = "units::duration")]
    pub lookup_hold: Duration,
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
            lookup_timeout: Duration::from_secs(1),
            max_lookups: 1000,
            max_lookup_distance: 16 * MIB,
            lookup_hold: Duration::from_secs(5),
        }
    }
}

/// The cache in this process's memory.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct L1Config {
    /// Memory for entries, bookkeeping included; of those entities that have no part of their own.
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
    /// Keys that are looked at in a second, at most, to remove what patterns have voided.
    pub sweep_rate: u32,
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
            sweep_rate: 10_000,
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

/// A kind of cached thing: the rows of one table, or the results of a query.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EntityConfig {
    /// The name in URLs, keys and metrics: `[a-z][a-z0-9_-]*`, unique.
    pub name: String,
    /// The table; empty where there is a query.
    #[serde(default, skip_serializing_if = "TableName::is_empty")]
    pub table: TableName,
    /// What a change of a row does to its entry in L2; `None`: see [`EntityConfig::on_change()`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_change: Option<OnChange>,
    /// How long an entry may live, in both tiers together; changes of the row do not prolong its stay in L2.
    #[serde(default = "default_ttl", with = "units::duration")]
    pub ttl: Duration,
    /// The largest part by which lives are shortened by chance, 0 to 0.5.
    #[serde(default = "default_jitter")]
    pub ttl_jitter: f64,
    /// A column of the value that says when an entry is due, if that is sooner than its ttl: a time, or a number of seconds
    /// or an interval from when the entry was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_column: Option<String>,
    /// How long the entry of an absent row may live; `None`: as long as others.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub negative_ttl: Option<Duration>,
    /// For how long past its ttl an entry is still served, marked as stale, while it is filled anew; `None`: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub stale_while_revalidate: Option<Duration>,
    /// An entry that is read in this last part of its life is filled anew before it is due; `None`: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_ahead: Option<f64>,
    /// Values larger than this are compressed in L2; `None`: none are.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_size")]
    pub compress_above: Option<u64>,
    /// A part of L1 of its own, of this size, beside [`L1Config::max_size`]; `None`: it shares that with others.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_size")]
    pub l1_size: Option<u64>,
    /// The columns of the value, by their exact names; `None`: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The columns of the key, by their exact names; `None`: the primary key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<String>>,
    /// Whether changes also write entries that nobody has read.
    #[serde(default)]
    pub populate: bool,
    /// Tags that its entries bear, with columns in braces: `tenant:{tenant_id}`. See [`crate::void::tag`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
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
    /// The SELECT whose results are cached, with `$1` and so on for `params`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// What a query's value is; `None`: an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<ResultShape>,
    /// The query's parameters with their types, `$1` first: they are the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Pairs>,
    /// The tables that the query's results depend on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depends_on: Option<Vec<DependsOn>>,
    /// How it is warmed; `None`: only on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<WarmConfig>,
    /// How many of the keys that are read most are remembered, and warmed first; 0: none.
    #[serde(default = "default_hot_set")]
    pub hot_set: usize,
}

impl EntityConfig {
    /// What an entity is made of that is configured so.
    pub fn definition(&self) -> Definition {
        Definition {
            on_change: self.on_change(),
            query: self.query(),
            ttl: self.ttl,
            lifetime: self.lifetime(),
            compress_above: self.compress_above.map(|size| usize::try_from(size).unwrap_or(usize::MAX)),
            populate: self.populate,
            tags: self.templates(),
            ..Definition::rows(&self.name, &self.table.schema, &self.table.name)
        }
    }

    /// What its tags are made of; those that are malformed, which validation refuses, are left out.
    pub fn templates(&self) -> Vec<Template> {
        self.tags.iter().filter_map(|tag| tag.parse().ok()).collect()
    }
}

fn default_jitter() -> f64 {
    Lifetime::default().jitter
}

fn default_hot_set() -> usize {
    1000
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
