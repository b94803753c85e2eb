//! Metrics of the replication slot, as the server sees it.

use metrics::{Gauge, gauge};

use super::{REPLICATION_LAG_BYTES, REPLICATION_SLOT_SAFE_BYTES, REPLICATION_SLOT_STATUS, SlotStatus};

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
