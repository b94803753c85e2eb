//! What a read asks for and what it is answered.

use std::time::Duration;

use bytes::Bytes;

use crate::lsn::Lsn;

/// What a reader demands beyond the key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demand {
    /// The answer must contain everything committed up to here (`X-Min-LSN`).
    pub min_lsn: Option<Lsn>,
    /// How long to wait for the watermark to reach `min_lsn` before Postgres is read (`Prefer: wait`); the
    /// configured default if `None`. Bounded by the configuration.
    pub wait: Option<Duration>,
    /// Read Postgres whatever is cached (`Cache-Control: no-cache`, `max-age=0`).
    pub fresh: bool,
    /// The answer must certainly have been current at most so long ago (`Cache-Control: max-age`).
    pub max_age: Option<Duration>,
    /// The configured bound on staleness is relaxed by so much (`Cache-Control: max-stale`); [`Duration::MAX`]: there is
    /// none. It does not relax `max_age`.
    pub max_stale: Option<Duration>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// In-process memory.
    HitL1,
    /// Redis.
    HitL2,
    /// Postgres, because no tier had it.
    Miss,
    /// Postgres, because the tiers were not asked or could not be trusted.
    Bypass,
}

/// An answered read.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The JSON text of the value; `None` if the row is known to be absent.
    pub value: Option<Bytes>,
    /// Hash of the value's text: equal on every instance for equal text.
    pub etag: u64,
    /// Where the value came from.
    pub outcome: Outcome,
    /// Set on hits while replication is further behind than `stale_after`, or than the bound on staleness: how long ago
    /// the value was certainly current. Also on hits past their entry's ttl: for how long. The larger of both.
    pub stale: Option<Duration>,
    /// Lower bound: everything committed up to here is in the answer (`X-Applied-LSN`).
    pub applied: Lsn,
    /// Upper bound: whoever passes it back as `X-Min-LSN` never sees an older state (`X-Read-LSN`).
    pub read: Lsn,
}

/// Why a read has no answer. Every variant is temporary: the reader may come back after a while.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Postgres was needed and cannot be reached.
    #[error("the database cannot be reached")]
    SourceUnavailable,
    /// Postgres was needed and did not answer in time.
    #[error("the database did not answer within {0:?}")]
    SourceTimeout(Duration),
    /// Too many reads wait for Postgres already.
    #[error("too many reads are waiting for the database")]
    Overloaded,
    /// What is cached may be older than the reader takes, and Postgres could not be read either.
    #[error("replication was last current {age:.1?} ago, which is more than {limit:?}, and {why}")]
    TooStale {
        /// How long ago what is cached was certainly current.
        age: Duration,
        /// The bound of the configuration or of the request.
        limit: Duration,
        /// Why Postgres was not read.
        why: Box<ReadError>,
    },
    /// The demanded LSN lies ahead of the database itself: it comes from elsewhere, or from before a failover.
    #[error("the demanded LSN {demanded} is ahead of the database, which is at {current}")]
    LsnAhead {
        /// What was demanded.
        demanded: Lsn,
        /// Where the database is.
        current: Lsn,
    },
    /// The query was ended in Postgres for the sake of another transaction (a deadlock, a lock that was not to be had), and once
    /// more when it was tried again.
    #[error("the database gave the query up for another transaction: SQLSTATE {0}")]
    Contended(String),
    /// The query failed in Postgres for another reason (a dropped table or column, a missing right).
    #[error("the database refused the query: SQLSTATE {0}")]
    Refused(String),
    /// The entity's query gives several rows for this key, and its shape is `one`.
    #[error("the entity's query gives more than one row for this key, and its shape is \"one\"")]
    SeveralRows,
}

impl ReadError {
    /// Whether the database has answered, and would answer so again.
    pub fn is_of_the_key(&self) -> bool {
        matches!(self, ReadError::Refused(_) | ReadError::SeveralRows)
    }
}
