//! Metrics of the read path.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::label::{Answered, Fill, Tier};
use super::lifetime::LifetimeMetrics;

const CACHE_REQUESTS: &str = "walcache_cache_requests_total";
const FILLS: &str = "walcache_fills_total";
const FILLS_RUNNING: &str = "walcache_fills_running";
const FILLS_WAITING: &str = "walcache_fills_waiting";

pub(super) fn describe() {
    describe_counter!(CACHE_REQUESTS, "Lookups by tier and result.");
    describe_counter!(FILLS, "Values read from the source, by what became of them.");
    describe_gauge!(FILLS_RUNNING, Unit::Count, "Keys that are being read from the source.");
    describe_gauge!(FILLS_WAITING, Unit::Count, "Reads that wait for the source, those of running fills included.");
}

/// Metrics of the read path for one entity.
pub struct CacheMetrics {
    requests: [[Counter; Answered::ALL.len()]; Tier::ALL.len()],
    fills: [Counter; Fill::ALL.len()],
    /// Of entries' lives.
    pub lifetime: LifetimeMetrics,
}

impl CacheMetrics {
    /// Handles for the entity of this name.
    pub fn new(entity: &str) -> Self {
        let lookup =
            |tier, result| counter!(CACHE_REQUESTS, "tier" => tier, "entity" => entity.to_owned(), "result" => result);
        CacheMetrics {
            requests: Tier::ALL.map(|(_, tier)| Answered::ALL.map(|(_, result)| lookup(tier, result))),
            fills: Fill::ALL.map(|(_, result)| counter!(FILLS, "entity" => entity.to_owned(), "result" => result)),
            lifetime: LifetimeMetrics::new(entity),
        }
    }

    /// Counts a lookup.
    pub fn lookup(&self, tier: Tier, result: Answered) {
        self.requests[tier as usize][result as usize].increment(1);
    }

    /// Counts values read from the source.
    pub fn fill(&self, result: Fill, count: u64) {
        self.fills[result as usize].increment(count);
    }
}

/// How much is being read from the source.
#[derive(Clone)]
pub struct FillMetrics {
    /// Keys that are being read.
    pub running: Gauge,
    /// Reads that wait, those of the running fills included.
    pub waiting: Gauge,
}

impl FillMetrics {
    /// Handles. Both begin at zero.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let metrics = FillMetrics { running: gauge!(FILLS_RUNNING), waiting: gauge!(FILLS_WAITING) };
        metrics.running.set(0.0);
        metrics.waiting.set(0.0);
        metrics
    }
}
