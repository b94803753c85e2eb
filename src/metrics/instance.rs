//! Metrics of the instance's standing.

use metrics::{Gauge, Unit, describe_gauge, gauge};

const BUILD_INFO: &str = "walcache_build_info";
const L1_BYTES: &str = "walcache_l1_bytes";
const L1_MAX_BYTES: &str = "walcache_l1_max_bytes";
const L1_ENTRIES: &str = "walcache_l1_entries";
const L2_TRUSTED: &str = "walcache_l2_trusted";
const LEADER: &str = "walcache_leader";
const DB_POOL_AVAILABLE: &str = "walcache_db_pool_available";

pub(super) fn describe() {
    describe_gauge!(BUILD_INFO, "Always 1; the label says which version runs.");
    describe_gauge!(
        L1_BYTES,
        Unit::Bytes,
        "Memory that a part of L1 takes, bookkeeping included: shared, or that of one entity."
    );
    describe_gauge!(L1_MAX_BYTES, Unit::Bytes, "Memory that a part of L1 may take.");
    describe_gauge!(L1_ENTRIES, Unit::Count, "Entries in a part of L1, servable or not.");
    describe_gauge!(L2_TRUSTED, "1 while answers from Redis are used.");
    describe_gauge!(LEADER, "1 while this instance holds the slot and applies events.");
    describe_gauge!(DB_POOL_AVAILABLE, Unit::Count, "Idle connections in the pool for fills.");
}

/// Says which version runs.
pub(super) fn tell_version() {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Metrics of the instance's standing.
pub struct InstanceMetrics {
    l2_trusted: Gauge,
    leader: Gauge,
    db_pool_available: Gauge,
}

impl InstanceMetrics {
    /// Handles. All three begin at zero.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let zero = |gauge: Gauge| {
            gauge.set(0.0);
            gauge
        };
        InstanceMetrics {
            l2_trusted: zero(gauge!(L2_TRUSTED)),
            leader: zero(gauge!(LEADER)),
            db_pool_available: zero(gauge!(DB_POOL_AVAILABLE)),
        }
    }

    /// Whether answers from Redis are used.
    pub fn l2_trusted(&self, trusted: bool) {
        self.l2_trusted.set(f64::from(u8::from(trusted)));
    }

    /// Whether this instance applies events.
    pub fn leader(&self, leader: bool) {
        self.leader.set(f64::from(u8::from(leader)));
    }

    /// How full a part of L1 is: `None` for the one that is shared, else the entity's name.
    pub fn l1(&self, entity: Option<&str>, entries: usize, (bytes, max_bytes): (u64, u64)) {
        // Entities' names begin with a letter: none is this.
        let part = entity.unwrap_or("_shared").to_owned();
        gauge!(L1_ENTRIES, "part" => part.clone()).set(entries as f64);
        gauge!(L1_BYTES, "part" => part.clone()).set(bytes as f64);
        gauge!(L1_MAX_BYTES, "part" => part).set(max_bytes as f64);
    }

    /// Idle connections in the pool for fills.
    pub fn db_pool_available(&self, connections: usize) {
        self.db_pool_available.set(connections as f64);
    }
}
