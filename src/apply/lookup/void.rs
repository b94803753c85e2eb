//! Voiding all of an entity where it is not looked up which of its entries are concerned.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Lookups;
use super::connection::LookupError;
use crate::apply::batch::Batch;
use crate::cache::Hierarchy;
use crate::metrics::{ApplyMetrics, LookupVoid as Why};
use crate::plan::Cause;

/// How often it is said of an entity that its lookups have failed.
const SAY: Duration = Duration::from_secs(10);

/// A batch to which is added what is voided.
pub(super) struct Voiding<'a> {
    pub(super) batch: &'a mut Batch,
    pub(super) hierarchy: &'a Hierarchy,
    pub(super) metrics: &'a ApplyMetrics,
}

impl Why {
    pub(super) fn of(error: &LookupError) -> Why {
        match error {
            error if error.is_locked() => Why::Locked,
            error if error.is_late() => Why::Late,
            _ => Why::Failed,
        }
    }
}

impl Lookups {
    /// All entries of these entities are voided with the batch. From then on whatever is read has all that has passed the gate,
    /// and all that the round sees: neither needs a lookup.
    pub(super) fn void(
        &mut self,
        entities: &BTreeSet<usize>,
        why: Why,
        error: Option<&LookupError>,
        to: &mut Voiding<'_>,
    ) -> BTreeSet<usize> {
        for &id in entities {
            if let Some(round) = &mut self.round {
                round.entities.remove(&id);
                if !self.spared.iter().any(|(spared, view)| *spared == id && view.end == round.view.end) {
                    self.spared.push((id, round.view.clone()));
                }
            }
            self.deferred.retain(|lookup, _| lookup.entity != id);
            to.batch.discard_entity(id, Cause::Lookup);
            to.metrics.lookup_void(id, why);
            let now = Instant::now();
            if self.said.get(&id).is_none_or(|said| now.duration_since(*said) >= SAY) {
                self.said.insert(id, now);
                let error = error.map(tracing::field::display);
                let entity = to.hierarchy.entities[id].name.as_str();
                warn!(entity, error, "voiding all entries instead of looking up which are concerned: {}", why.text());
            }
        }
        entities.clone()
    }

    /// Voids all that depends on the round that is open, so that it need not be held any longer.
    pub(super) fn void_round(&mut self, batch: &mut Batch, hierarchy: &Hierarchy, metrics: &ApplyMetrics) {
        let Some(round) = &self.round else { return };
        let entities = round.entities.keys().copied().collect();
        self.void(&entities, Why::Held, None, &mut Voiding { batch, hierarchy, metrics });
    }
}
