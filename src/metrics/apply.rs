//! Metrics of the writes to L2.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::label::{Cause, Fenced, LookupVoid};

const APPLY_BATCH_SECONDS: &str = "walcache_apply_batch_seconds";
const APPLY_BATCH_KEYS: &str = "walcache_apply_batch_keys";
const FENCED_WRITES: &str = "walcache_fenced_writes_total";
const CACHE_INVALIDATIONS: &str = "walcache_cache_invalidations_total";
const LOOKUP_ROUND_SECONDS: &str = "walcache_lookup_round_seconds";
const LOOKUP_VOIDS: &str = "walcache_lookup_voids_total";
const ENTITY_SERVABLE: &str = "walcache_entity_servable";

const BATCH_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const KEYS_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 16384.0];

/// What the histograms count by.
pub(super) const BUCKETS: &[(&str, &[f64])] =
    &[(APPLY_BATCH_SECONDS, BATCH_BUCKETS), (APPLY_BATCH_KEYS, KEYS_BUCKETS), (LOOKUP_ROUND_SECONDS, BATCH_BUCKETS)];

pub(super) fn describe() {
    describe_histogram!(APPLY_BATCH_SECONDS, Unit::Seconds, "Time to write one batch of effects to L2.");
    describe_histogram!(APPLY_BATCH_KEYS, Unit::Count, "Keys in one applied batch, after coalescing.");
    describe_counter!(FENCED_WRITES, "Apply scripts that Redis refused, by reason.");
    describe_counter!(CACHE_INVALIDATIONS, "Entries, or whole entities, made unservable, by cause.");
    describe_histogram!(
        LOOKUP_ROUND_SECONDS,
        Unit::Seconds,
        "How long a round of lookups was open: until what it saw was applied."
    );
    describe_counter!(
        LOOKUP_VOIDS,
        "Times that all of an entity's entries were voided instead of looked up, by reason."
    );
    describe_gauge!(
        ENTITY_SERVABLE,
        "1 while the entity is cached; 0 while its table and the configuration, or the publication, do not go together."
    );
}

/// Metrics of the writes to L2.
pub struct ApplyMetrics {
    batch_seconds: Histogram,
    batch_keys: Histogram,
    fenced: [Counter; Fenced::ALL.len()],
    invalidations: Vec<[Counter; Cause::ALL.len()]>,
    lookup_round: Histogram,
    lookup_voids: Vec<[Counter; LookupVoid::ALL.len()]>,
    servable: Vec<Gauge>,
}

impl ApplyMetrics {
    /// Handles for the entities of these names, in the order of their ids.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let invalidations = |entity: &str| {
            Cause::ALL.map(|(_, cause)| counter!(CACHE_INVALIDATIONS, "entity" => entity.to_owned(), "cause" => cause))
        };
        let voids = |entity: &str| {
            LookupVoid::ALL.map(|(_, why)| counter!(LOOKUP_VOIDS, "entity" => entity.to_owned(), "reason" => why))
        };
        let names: Vec<&str> = entities.into_iter().collect();
        let (servable, invalidations): (Vec<_>, Vec<_>) = (names.iter())
            .map(|name| (gauge!(ENTITY_SERVABLE, "entity" => (*name).to_owned()), invalidations(name)))
            .unzip();
        ApplyMetrics {
            batch_seconds: histogram!(APPLY_BATCH_SECONDS),
            batch_keys: histogram!(APPLY_BATCH_KEYS),
            fenced: Fenced::ALL.map(|(_, reason)| counter!(FENCED_WRITES, "reason" => reason)),
            invalidations,
            lookup_round: histogram!(LOOKUP_ROUND_SECONDS),
            lookup_voids: names.iter().map(|name| voids(name)).collect(),
            servable,
        }
    }

    /// Records an applied batch.
    pub fn batch(&self, keys: usize, elapsed: Duration) {
        self.batch_keys.record(keys as f64);
        self.batch_seconds.record(elapsed.as_secs_f64());
    }

    /// Counts a refused script.
    pub fn fenced(&self, reason: Fenced) {
        self.fenced[reason as usize].increment(1);
    }

    /// Records how long a round of lookups was open.
    pub fn lookup_round(&self, open: Duration) {
        self.lookup_round.record(open.as_secs_f64());
    }

    /// Counts that all entries of an entity were voided instead of looked up.
    pub fn lookup_void(&self, entity_id: usize, why: LookupVoid) {
        if let Some(reasons) = self.lookup_voids.get(entity_id) {
            reasons[why as usize].increment(1);
        }
    }

    /// Whether an entity is cached.
    pub fn servable(&self, entity_id: usize, servable: bool) {
        if let Some(gauge) = self.servable.get(entity_id) {
            gauge.set(f64::from(u8::from(servable)));
        }
    }

    /// Counts invalidations of an entity's entries.
    pub fn invalidations(&self, entity_id: usize, cause: Cause, count: u64) {
        if let Some(causes) = self.invalidations.get(entity_id) {
            causes[cause as usize].increment(count);
        }
    }
}
