//! walcache keeps a cache hierarchy (Redis as L2, stretto in process as L1) in step with Postgres by reading
//! Postgres' own write-ahead log, and serves reads over HTTP from L1 -> L2 -> Postgres.
//!
//! ```text
//! Postgres --(pgoutput | wal2json)--> capture -> decode -> plan -> gate -> apply --> L2 (Redis), and the fence of L1
//! client --HTTP--> serve -> cache: L1 -> L2 -> fill (Postgres) -> L2 (leased) -> L1
//! ```
//!
//! - words: [`lsn`], [`change`], [`key`], [`sqltype`], [`render`], [`generation`], [`entity`], [`entry`], [`void`]; they
//!   import no stage
//! - [`capture`] owns the replication connection; [`decode`] turns its bytes into changes; [`plan`] turns changes into
//!   effects on entries; [`gate`] waits until transactions are visible; [`apply`] performs the effects
//! - [`cache`] is the read path, [`serve`] its HTTP API
//! - [`warm`] fills entries before anybody reads them
//! - [`audit`] compares what the tiers hold with Postgres: in the background, and when asked
//! - [`daemon`] composes the stages, and [`cli`] calls it; [`dry_run`] tells what a change would do
//! - [`failpoint`] is where tests kill the daemon, or take a rule of the protocol away; not in release builds
//! - [`config`] is what an operator decides, [`metrics`] what the stages count; [`source`] connects to Postgres, [`sql`] quotes
//!   and [`retry`] paces
//! - [`catalog`], [`setup`] and [`migrate`] look after the source database; [`demo`] shows it all on servers of its own ([`sandbox`])

pub mod apply;
pub mod audit;
pub mod cache;
pub mod capture;
pub mod catalog;
pub mod change;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod decode;
pub mod demo;
pub mod dry_run;
pub mod entity;
pub mod entry;
pub mod failpoint;
pub mod gate;
pub mod generation;
pub mod key;
pub mod lsn;
pub mod metrics;
pub mod migrate;
pub mod plan;
pub mod render;
pub mod retry;
pub mod sandbox;
pub mod serve;
pub mod setup;
pub mod source;
pub mod sql;
pub mod sqltype;
pub mod void;
pub mod warm;
