//! `[l1]` and `[l2]`: what is cached where.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::units::{self, MIB};

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
