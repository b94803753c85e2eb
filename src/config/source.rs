//! `[source]`: the Postgres that is followed, and read on misses.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::publications::Publications;
use super::secret::Secret;
use super::units::{self, MIB};

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
    /// The schemas in which names without one are looked for, as in `SET search_path`. Empty: as it is for the role when the
    /// daemon starts, which fills it in then.
    pub search_path: String,
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
            search_path: String::new(),
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
