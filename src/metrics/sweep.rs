//! Metrics of patterns, and of sweeping what they void.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

const PATTERNS_ACTIVE: &str = "walcache_patterns_active";
const SWEPT_ENTRIES: &str = "walcache_swept_entries_total";

pub(super) fn describe() {
    describe_gauge!(
        PATTERNS_ACTIVE,
        Unit::Count,
        "Invalidated patterns that readers match keys with, until they are swept."
    );
    describe_counter!(SWEPT_ENTRIES, "Entries and leases removed because a pattern had voided them, by tier.");
}

/// Metrics of sweeping.
pub struct SweepMetrics {
    active: Gauge,
    /// Of L1, then of L2.
    swept: [Counter; 2],
}

impl SweepMetrics {
    /// Handles.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let swept = ["l1", "l2"].map(|tier| counter!(SWEPT_ENTRIES, "tier" => tier));
        SweepMetrics { active: gauge!(PATTERNS_ACTIVE), swept }
    }

    /// So many patterns are matched now.
    pub fn active(&self, patterns: usize) {
        self.active.set(patterns as f64);
    }

    /// A sweep is done.
    pub fn swept(&self, l1: u64, l2: u64) {
        self.swept[0].increment(l1);
        self.swept[1].increment(l2);
    }
}
