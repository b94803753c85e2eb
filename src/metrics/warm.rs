//! Metrics of warming.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::label::Warmed;

const WARMED_KEYS: &str = "walcache_warmed_keys_total";
const WARMING_FAILURES: &str = "walcache_warming_failures_total";
const WARMING_JOBS: &str = "walcache_warming_jobs";
const WARMING_REMAINING: &str = "walcache_warming_remaining_keys";

pub(super) fn describe() {
    describe_counter!(WARMED_KEYS, "Keys that were warmed, by what became of them.");
    describe_counter!(WARMING_FAILURES, "Jobs of warming that could not go on; the log says why.");
    describe_gauge!(WARMING_JOBS, Unit::Count, "Entities that are being warmed, those that wait among them.");
    describe_gauge!(
        WARMING_REMAINING,
        Unit::Count,
        "Keys that are still to be warmed, as the source's planner estimates them; 0 while the entity is not being warmed."
    );
}

/// Metrics of warming, by entity.
pub struct WarmMetrics {
    keys: Vec<[Counter; Warmed::ALL.len()]>,
    failures: Vec<Counter>,
    remaining: Vec<Gauge>,
    jobs: Gauge,
}

impl WarmMetrics {
    /// Handles for the entities of these names, in the order of their ids.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let keys = |entity: &str| {
            Warmed::ALL.map(|(_, result)| counter!(WARMED_KEYS, "entity" => entity.to_owned(), "result" => result))
        };
        let entities: Vec<&str> = entities.into_iter().collect();
        let failures = entities.iter().map(|name| counter!(WARMING_FAILURES, "entity" => (*name).to_owned())).collect();
        let (keys, remaining): (Vec<_>, Vec<_>) = (entities.into_iter())
            .map(|name| (keys(name), gauge!(WARMING_REMAINING, "entity" => name.to_owned())))
            .unzip();
        let metrics = WarmMetrics { keys, failures, remaining, jobs: gauge!(WARMING_JOBS) };
        metrics.jobs.set(0.0);
        metrics.remaining.iter().for_each(|gauge| gauge.set(0.0));
        metrics
    }

    /// Counts keys.
    pub fn keys(&self, entity_id: usize, result: Warmed, count: u64) {
        if let Some(results) = self.keys.get(entity_id) {
            results[result as usize].increment(count);
        }
    }

    /// A job has failed.
    pub fn failed(&self, entity_id: usize) {
        if let Some(failures) = self.failures.get(entity_id) {
            failures.increment(1);
        }
    }

    /// So many keys are still to come.
    pub fn remaining(&self, entity_id: usize, keys: u64) {
        if let Some(gauge) = self.remaining.get(entity_id) {
            gauge.set(keys as f64);
        }
    }

    /// So many entities are being warmed.
    pub fn jobs(&self, running: usize) {
        self.jobs.set(running as f64);
    }
}
