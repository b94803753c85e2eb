//! What the scenarios share: servers, the daemon as a child process, an HTTP client, a proxy for network faults, and
//! waiting for conditions.
//!
//! - [`Stage::shared`] gives a test its own database, Redis database and slot on servers that all tests of the process
//!   share; [`Stage::private`] gives it servers of its own, to kill, pause and restart.
//! - [`Scene`] is a stage with the daemon running on it; [`Oracle`] compares all that it has cached with Postgres.
//! - [`Daemon`] runs the `walcache` binary; what it printed is shown when a test that holds it fails.
//! - Tests wait for LSNs and conditions, never for a time: [`eventually`], [`Daemon::wait_applied`].
#![allow(dead_code, unused_imports, reason = "each scenario uses its part; the harness is kept whole")]

mod club;
mod config;
mod daemon;
mod failure;
mod hidden;
mod histories;
mod http;
mod judge;
mod load;
mod mend;
mod oracle;
mod probe;
mod proxy;
mod scene;
mod shop;
mod stage;
mod wait;

pub use club::{Club, ClubLoad};
pub use config::{Config, Entity, needs_publications, plugin};
pub use daemon::{Daemon, Finished, cli};
pub use hidden::{Hidden, wait_for};
pub use histories::{Claim, Found, Histories, Kind, Row, Violation};
pub use http::{Http, Response};
pub use judge::{Compared, Raw, servable};
pub use load::{Crowd, Done, Load, assert_none};
pub use mend::{codes, findings, mend};
pub use oracle::{Oracle, encode, in_redis, pinned, query_result};
pub use probe::{counted_reads, slow_reads, until_received};
pub use proxy::{Proxy, WAYS, Way};
pub use scene::Scene;
pub use shop::{ROWS, Shop, brisk, version};
pub use stage::{Stage, needs_wal2json};
pub use wait::{
    LONG_LIMIT, Soak, WAIT_LIMIT, current_lsn, eventually, eventually_within, soak, until_a_read_waits, waiting_reads,
};
