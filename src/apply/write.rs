//! Writing a batch, and whatever else makes entries unservable in L2.

use std::collections::BTreeSet;

use tracing::{debug, info};

use super::batch::Batch;
use super::claim::draw;
use super::{Applier, ApplyError, LookUpShape};
use crate::cache::sweep::Sweep;
use crate::cache::voids::Field;
use crate::entity::{Entity, Generation};
use crate::metrics::{Cause, Fenced};

/// Why a query's generation is raised for a row.
const DEPENDED_ON: &str = "a row was changed that any of its entries may depend on";
/// The same, of a lookup. Why is logged by whoever has given it up.
const NOT_LOOKED_UP: &str = "which entries are concerned was not looked up";

impl<L: LookUpShape> Applier<L> {
    pub(super) async fn write(&mut self, batch: &mut Batch, floors: Vec<Field>) -> Result<Vec<usize>, ApplyError> {
        if batch.look_around {
            self.look_around_now().await?;
        }
        let moved: Vec<_> = batch.moved.iter().map(|id| (*id, "the table has come under another name")).collect();
        self.raise(&moved).await?;
        for id in &batch.moved {
            self.metrics.apply.invalidations(*id, Cause::Ddl, 1);
        }
        let moved_or_other: BTreeSet<usize> = batch.moved.iter().chain(&batch.reshape).copied().collect();
        if !moved_or_other.is_empty() {
            self.reshape_now(&Vec::from_iter(moved_or_other)).await?;
        }
        let discarded = batch.discard.iter().filter(|(id, _)| !batch.raise.contains(*id));
        let discarded = discarded.map(|(id, cause)| match cause {
            crate::plan::Cause::Large => (*id, "a row was too large to be received"),
            crate::plan::Cause::Command => (*id, "the application said so"),
            crate::plan::Cause::Shape => (*id, "a row was changed that cannot be read as the catalog says"),
            crate::plan::Cause::Lookup => (*id, NOT_LOOKED_UP),
            _ => (*id, DEPENDED_ON),
        });
        let raised: Vec<_> = batch
            .raise
            .iter()
            .map(|id| (*id, "the table was truncated, or rows of it changed that the stream does not tell"))
            .chain(discarded)
            .collect();
        self.raise(&raised).await?;
        if !floors.is_empty() {
            self.second.set_floors(&floors, batch.high).await?;
        }
        if batch.gaps > 0 {
            self.second.fill_gaps(&self.hierarchy, batch).await?;
        }
        self.second.write(&self.hierarchy.entities, batch).await
    }

    /// Raises the generations of entities, each for its reason, to one new number.
    async fn raise(&mut self, raised: &[(usize, &str)]) -> Result<(), ApplyError> {
        let raised: Vec<&(usize, &str)> = raised.iter().filter(|(id, _)| !self.is_out(*id)).collect();
        if raised.is_empty() {
            return Ok(());
        }
        let generation = draw(&self.source, self.hierarchy.newest_generation()).await?;
        let entities: Vec<&Entity> = raised.iter().map(|(id, _)| &*self.hierarchy.entities[*id]).collect();
        self.second.raise(&entities, generation).await?;
        self.out.extend(entities.iter().filter(|entity| !entity.is_servable()).map(|entity| entity.id));
        for (entity, (_, reason)) in entities.iter().zip(raised) {
            if [DEPENDED_ON, NOT_LOOKED_UP].contains(reason) {
                // With each transaction, as it may be.
                debug!(entity = entity.name, generation = generation.0, "starting a new generation: {reason}");
            } else {
                info!(entity = entity.name, generation = generation.0, "starting a new generation: {reason}");
            }
        }
        Ok(())
    }

    /// Whether nothing of an entity can be cached in the generation that stands: it is out of the tiers, and its generation was
    /// raised since it is. Fills read the generation before they look whether it is in the tiers; so none that has begun bears
    /// that one, and it is let back in with another. That holds for whoever leads next, too, as the fence has it.
    fn is_out(&self, id: usize) -> bool {
        self.out.contains(&id) && !self.hierarchy.entities[id].is_servable()
    }

    /// What a failed write says of L2.
    pub(super) fn note(&self, error: &ApplyError) {
        let Some(l2) = &self.hierarchy.l2 else { return };
        match error {
            ApplyError::WentBack => {
                self.metrics.apply.fenced(Fenced::Lost);
                l2.distrust();
            }
            ApplyError::Fenced => {
                self.metrics.apply.fenced(Fenced::Epoch);
                // Another leads, and tells nobody of the generations that it starts.
                l2.distrust();
            }
            ApplyError::L2(error) => {
                self.outage.failed();
                // The readers' connection may lead to the same server, which has failed over, perhaps.
                l2.refused(error);
            }
            _ => {}
        }
    }

    /// Makes everything unservable that is cached of an entity, or of all; says in which generation they are now.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub async fn resync(&mut self, entity: Option<usize>) -> Result<Generation, ApplyError> {
        let generation = draw(&self.source, self.hierarchy.newest_generation()).await?;
        let entities = match entity {
            Some(id) => &self.hierarchy.entities[id..=id],
            None => &self.hierarchy.entities[..],
        };
        let raised = match entity {
            Some(id) => self.second.raise(&[&self.hierarchy.entities[id]], generation).await,
            None => self.second.raise_all(entities, generation).await,
        };
        raised.inspect_err(|e| self.note(e))?;
        for entity in entities {
            self.metrics.apply.invalidations(entity.id, Cause::Generation, 1);
        }
        let name = entity.map(|id| self.hierarchy.entities[id].name.as_str());
        info!(entity = name, generation = generation.0, "starting a new generation: an operator asked for it");
        Ok(generation)
    }

    /// Takes patterns that were swept off the list, and off the fence; says whether: see [`Hierarchy::retire`].
    ///
    /// # Errors
    /// As [`Applier::apply`]. Then they may still be in the fence, and are swept again.
    pub async fn retire(&mut self, sweep: &Sweep) -> Result<bool, ApplyError> {
        let Some(fields) = self.hierarchy.retire(sweep) else { return Ok(false) };
        if !fields.is_empty() {
            self.second.unset(&fields).await.inspect_err(|e| self.note(e))?;
        }
        Ok(true)
    }
}
