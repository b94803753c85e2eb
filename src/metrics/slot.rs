//! Metrics of the replication slot, as the server sees it.

use metrics::{Gauge, Unit, describe_gauge, gauge};

use super::REPLICATION_LAG_BYTES;
use super::label::SlotStatus;

const REPLICATION_SLOT_SAFE_BYTES: &str = "walcache_replication_slot_safe_bytes";
const REPLICATION_SLOT_STATUS: &str = "walcache_replication_slot_status";

pub(super) fn describe() {
    describe_gauge!(
        REPLICATION_SLOT_SAFE_BYTES,
        Unit::Bytes,
        "WAL that may be written before the slot is in danger of being lost; +Inf without max_slot_wal_keep_size, NaN while the source cannot be asked."
    );
    describe_gauge!(
        REPLICATION_SLOT_STATUS,
        "1 for the state that the source gives the slot, 0 for the others; 0 for all while the source cannot be asked."
    );
}

/// Gauges of the slot.
pub struct SlotMetrics {
    retained: Gauge,
    safe: Gauge,
    status: [Gauge; SlotStatus::ALL.len()],
}

impl SlotMetrics {
    /// Handles; nothing is known yet.
    pub(super) fn new() -> Self {
        let metrics = SlotMetrics {
            retained: gauge!(REPLICATION_LAG_BYTES, "kind" => "retained"),
            safe: gauge!(REPLICATION_SLOT_SAFE_BYTES),
            status: SlotStatus::ALL.map(|(_, status)| gauge!(REPLICATION_SLOT_STATUS, "status" => status)),
        };
        metrics.unknown();
        metrics
    }

    /// What the server says: its state, the log that it keeps, and how much more may be written before the server removes
    /// what it needs; in bytes, `None` where it does not say.
    pub fn set(&self, status: SlotStatus, retained: Option<i64>, safe: Option<i64>) {
        self.retained.set(retained.map_or(0.0, |bytes| bytes.max(0) as f64));
        self.safe.set(match (safe, status) {
            (Some(bytes), _) => bytes as f64,
            (None, SlotStatus::Lost | SlotStatus::Missing) => 0.0,
            (None, _) => f64::INFINITY,
        });
        self.show(Some(status));
    }

    /// The server cannot be asked.
    pub fn unknown(&self) {
        self.retained.set(f64::NAN);
        self.safe.set(f64::NAN);
        self.show(None);
    }

    fn show(&self, status: Option<SlotStatus>) {
        for (gauge, (other, _)) in self.status.iter().zip(SlotStatus::ALL) {
            gauge.set(f64::from(u8::from(status == Some(other))));
        }
    }
}
