//! Metrics of audits.

use metrics::{Counter, counter, describe_counter};

use super::label::{Audit, Tier};

const AUDIT_CHECKS: &str = "walcache_audit_checks_total";

pub(super) fn describe() {
    describe_counter!(AUDIT_CHECKS, "Cached entries compared with Postgres, by tier and result.");
}

/// Metrics of audits.
pub struct AuditMetrics {
    /// Of L1, then of L2.
    checks: [[Counter; Audit::ALL.len()]; 2],
}

impl AuditMetrics {
    /// Handles.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let check = |tier, result| counter!(AUDIT_CHECKS, "tier" => tier, "result" => result);
        AuditMetrics { checks: ["l1", "l2"].map(|tier| Audit::ALL.map(|(_, result)| check(tier, result))) }
    }

    /// Counts a check of an entry in L1 or L2; the source is not checked.
    pub fn check(&self, tier: Tier, result: Audit) {
        if let Some(results) = self.checks.get(tier as usize) {
            results[result as usize].increment(1);
        }
    }
}
