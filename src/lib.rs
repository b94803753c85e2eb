//! walcache keeps a cache hierarchy (Redis as L2, stretto in process as L1) in step with Postgres by reading
//! Postgres' own write-ahead log, and serves reads over HTTP from L1 -> L2 -> Postgres.

pub mod cache;
pub mod change;
pub mod entity;
pub mod key;
pub mod lsn;
pub mod sqltype;
