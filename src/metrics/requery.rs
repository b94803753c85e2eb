//! Metrics of requeries: entries that are read again after events.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::label::NoRequery;

const REQUERIES_DROPPED: &str = "walcache_requeries_dropped_total";
const REQUERIES_WAITING: &str = "walcache_requeries_waiting";

pub(super) fn describe() {
    describe_counter!(
        REQUERIES_DROPPED,
        "Entries that were not read again after an event, by reason; the next reader fills them."
    );
    describe_gauge!(REQUERIES_WAITING, Unit::Count, "Entries that wait to be read again after an event.");
}

/// Metrics of requeries.
pub struct RequeryMetrics {
    waiting: Gauge,
    dropped: Vec<[Counter; NoRequery::ALL.len()]>,
}

impl RequeryMetrics {
    /// Handles for the entities of these names, in the order of their ids.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let dropped = |entity: &str| {
            NoRequery::ALL.map(|(_, why)| counter!(REQUERIES_DROPPED, "entity" => entity.to_owned(), "reason" => why))
        };
        let metrics =
            RequeryMetrics { waiting: gauge!(REQUERIES_WAITING), dropped: entities.into_iter().map(dropped).collect() };
        metrics.waiting.set(0.0);
        metrics
    }

    /// How many wait.
    pub fn waiting(&self, entries: usize) {
        self.waiting.set(entries as f64);
    }

    /// Counts an entry that is not read again.
    pub fn dropped(&self, entity_id: usize, why: NoRequery) {
        if let Some(reasons) = self.dropped.get(entity_id) {
            reasons[why as usize].increment(1);
        }
    }
}
