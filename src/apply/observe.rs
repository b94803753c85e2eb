//! What is counted of applying.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::batch::Batch;
use super::{Applier, LookUpShape};
use crate::cache::Hierarchy;
use crate::metrics::{ApplyMetrics, Cause, ReplicationMetrics};

/// Where applying reports.
#[derive(Clone)]
pub struct Metrics {
    /// Of the writes.
    pub apply: Arc<ApplyMetrics>,
    /// Of the stream.
    pub replication: Arc<ReplicationMetrics>,
}

impl Metrics {
    /// Everything cached became unservable.
    pub(super) fn new_generation(&self, hierarchy: &Hierarchy) {
        for entity in &hierarchy.entities {
            self.apply.invalidations(entity.id, Cause::Generation, 1);
        }
    }
}

impl<L: LookUpShape> Applier<L> {
    /// What a batch did.
    pub(super) fn count(&self, batch: &Batch) {
        for (entity, cause) in &batch.invalidations {
            self.metrics.apply.invalidations(*entity, label(*cause), 1);
        }
        for entity in &batch.raise {
            self.metrics.apply.invalidations(*entity, Cause::Truncate, 1);
        }
        for (entity, cause) in &batch.discard {
            self.metrics.apply.invalidations(*entity, label(*cause), 1);
        }
        self.metrics.replication.transactions.increment(batch.commits.len() as u64);
    }

    /// How long that took, once it is visible.
    pub(super) fn time(&self, batch: &Batch, began: Instant) {
        self.metrics.apply.batch(batch.ops.len(), began.elapsed());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
        for commit_micros in &batch.commits {
            // The server's clock may be ahead of ours: never negative.
            let micros = now.saturating_sub(*commit_micros).max(0) as u64;
            self.metrics.replication.commit_to_visible(Duration::from_micros(micros));
        }
    }
}

fn label(cause: crate::plan::Cause) -> Cause {
    match cause {
        crate::plan::Cause::Update => Cause::Update,
        crate::plan::Cause::Delete => Cause::Delete,
        crate::plan::Cause::Toast => Cause::Toast,
        crate::plan::Cause::Opaque => Cause::Opaque,
        crate::plan::Cause::Shape => Cause::Ddl,
        crate::plan::Cause::Command => Cause::Command,
        crate::plan::Cause::Large => Cause::Large,
        crate::plan::Cause::Lookup => Cause::Lookup,
    }
}
