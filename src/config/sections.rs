//! The sections of the configuration that are no stores, with their defaults.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{self, MIB};
use crate::entity::PastBound;

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
