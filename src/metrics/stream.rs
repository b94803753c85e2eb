//! Metrics of the replication stream.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::REPLICATION_LAG_BYTES;
use super::label::Op;
use super::slot::SlotMetrics;
use crate::lsn::Lsn;

const REPLICATION_CONNECTED: &str = "walcache_replication_connected";
const REPLICATION_LAG_SECONDS: &str = "walcache_replication_lag_seconds";
const REPLICATION_EVENTS: &str = "walcache_replication_events_total";
const REPLICATION_TRANSACTIONS: &str = "walcache_replication_transactions_total";
const REPLICATION_RECONNECTS: &str = "walcache_replication_reconnects_total";
const COMMIT_TO_VISIBLE_SECONDS: &str = "walcache_commit_to_visible_seconds";
const GATE_WAIT_SECONDS: &str = "walcache_gate_wait_seconds";

const VISIBLE_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// What the histograms count by.
pub(super) const BUCKETS: &[(&str, &[f64])] =
    &[(COMMIT_TO_VISIBLE_SECONDS, VISIBLE_BUCKETS), (GATE_WAIT_SECONDS, VISIBLE_BUCKETS)];

pub(super) fn describe() {
    describe_gauge!(REPLICATION_CONNECTED, "1 while the replication stream is open.");
    describe_gauge!(
        REPLICATION_LAG_BYTES,
        Unit::Bytes,
        "WAL between the source's end and what was received, what was applied, and what the slot still retains; the last is NaN while the source cannot be asked."
    );
    describe_gauge!(
        REPLICATION_LAG_SECONDS,
        Unit::Seconds,
        "Time since what is applied was certainly current: since the newest heartbeat that came back through the stream was sent; NaN before the first."
    );
    describe_counter!(REPLICATION_EVENTS, "Row changes and truncations received of committed transactions.");
    describe_counter!(REPLICATION_TRANSACTIONS, "Transactions received that touched a published table.");
    describe_counter!(REPLICATION_RECONNECTS, "Times the replication stream was lost and opened again.");
    describe_histogram!(
        COMMIT_TO_VISIBLE_SECONDS,
        Unit::Seconds,
        "From a transaction's commit time to the moment its effects could be read through the cache."
    );
    describe_histogram!(
        GATE_WAIT_SECONDS,
        Unit::Seconds,
        "How long batches waited for their transactions to become visible on the primary."
    );
}

/// Metrics of the replication stream.
pub struct ReplicationMetrics {
    connected: Gauge,
    lag_received: Gauge,
    lag_applied: Gauge,
    /// What the server says of the slot.
    pub slot: SlotMetrics,
    lag_seconds: Gauge,
    /// Transactions received.
    pub transactions: Counter,
    /// Times the stream was opened again after it was lost.
    pub reconnects: Counter,
    commit_to_visible: Histogram,
    gate_wait: Histogram,
    events: Vec<[Counter; Op::ALL.len()]>,
}

impl ReplicationMetrics {
    /// Handles for the entities of these names, in the order of their ids.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let lag = |kind| gauge!(REPLICATION_LAG_BYTES, "kind" => kind);
        let events = |entity: &str| {
            Op::ALL.map(|(_, op)| counter!(REPLICATION_EVENTS, "entity" => entity.to_owned(), "op" => op))
        };
        ReplicationMetrics {
            connected: gauge!(REPLICATION_CONNECTED),
            lag_received: lag("received"),
            lag_applied: lag("applied"),
            slot: SlotMetrics::new(),
            lag_seconds: gauge!(REPLICATION_LAG_SECONDS),
            transactions: counter!(REPLICATION_TRANSACTIONS),
            reconnects: counter!(REPLICATION_RECONNECTS),
            commit_to_visible: histogram!(COMMIT_TO_VISIBLE_SECONDS),
            gate_wait: histogram!(GATE_WAIT_SECONDS),
            events: entities.into_iter().map(events).collect(),
        }
    }

    /// Whether the stream is open.
    pub fn connected(&self, connected: bool) {
        self.connected.set(f64::from(u8::from(connected)));
    }

    /// The lags behind `current`, the end of the source's log.
    pub fn lag_bytes(&self, current: Lsn, received: Lsn, applied: Lsn) {
        for (gauge, at) in [(&self.lag_received, received), (&self.lag_applied, applied)] {
            gauge.set(current.bytes_since(at) as f64);
        }
    }

    /// How old the oldest state is that a cached answer may show; `None` before replication has caught up for the first
    /// time, when no cached answer is given: that is no lag of zero.
    pub fn lag(&self, lag: Option<Duration>) {
        self.lag_seconds.set(lag.map_or(f64::NAN, |lag| lag.as_secs_f64()));
    }

    /// Counts events on an entity.
    pub fn events(&self, entity_id: usize, op: Op, count: u64) {
        if let Some(ops) = self.events.get(entity_id) {
            ops[op as usize].increment(count);
        }
    }

    /// Records when a transaction's effects became readable, counted from its commit.
    pub fn commit_to_visible(&self, elapsed: Duration) {
        self.commit_to_visible.record(elapsed.as_secs_f64());
    }

    /// Records how long a batch waited for its transactions to become visible.
    pub fn gate_wait(&self, waited: Duration) {
        self.gate_wait.record(waited.as_secs_f64());
    }
}
