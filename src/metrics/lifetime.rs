//! Metrics of how entries end, and begin anew.

use metrics::{Counter, counter, describe_counter};

use super::label::{Renewal, Tier};

const CACHE_EXPIRED: &str = "walcache_cache_expired_total";
const CACHE_OVERDUE: &str = "walcache_cache_overdue_total";
const RENEWALS: &str = "walcache_renewals_total";

pub(super) fn describe() {
    describe_counter!(
        CACHE_EXPIRED,
        "Entries whose life was over: removed from L1, or found by a reader in L2; what Redis expires by itself is not counted."
    );
    describe_counter!(
        CACHE_OVERDUE,
        "Answers from entries past their ttl, marked as stale while they are filled anew."
    );
    describe_counter!(RENEWALS, "Entries filled anew while they still stood, by what became of that.");
}

/// Metrics of the lives of one entity's entries.
pub struct LifetimeMetrics {
    expired: [Counter; 2],
    overdue: Counter,
    renewals: [Counter; Renewal::ALL.len()],
}

impl LifetimeMetrics {
    /// Handles for the entity of this name.
    pub(super) fn new(entity: &str) -> Self {
        let expired = |tier| counter!(CACHE_EXPIRED, "tier" => tier, "entity" => entity.to_owned());
        let renewal = |result| counter!(RENEWALS, "entity" => entity.to_owned(), "result" => result);
        LifetimeMetrics {
            expired: ["l1", "l2"].map(expired),
            overdue: counter!(CACHE_OVERDUE, "entity" => entity.to_owned()),
            renewals: Renewal::ALL.map(|(_, result)| renewal(result)),
        }
    }

    /// Counts entries of L1 or L2 whose life was over.
    pub fn expired(&self, tier: Tier, count: u64) {
        if let Some(counter) = self.expired.get(tier as usize) {
            counter.increment(count);
        }
    }

    /// Counts an answer from an entry past its ttl.
    pub fn overdue(&self) {
        self.overdue.increment(1);
    }

    /// Counts entries that were to be filled anew.
    pub fn renewed(&self, result: Renewal, count: u64) {
        self.renewals[result as usize].increment(count);
    }
}
