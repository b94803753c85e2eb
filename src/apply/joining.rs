//! Tables that have come into the publications, or of which others rows are published now.
//!
//! A change that was made before that is not in the stream, though its transaction may end only afterwards: no event will
//! ever tell of it. So nothing is cached of such a table before every transaction has ended that ran when the catalog
//! showed it as published. From then on every new snapshot has what the stream lacks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::{Applier, ApplyError, LookUpShape};
use crate::entity::{Entity, Published, Standing};

/// Why an entity is not cached yet whose table has just come into the publications.
const JOINING: &str = "transactions are open that ran when its table was published as it is now";

/// How long batches are held up for it, for all entities together. What takes longer is looked at again with the next
/// look at the catalog.
const PATIENCE: Duration = Duration::from_millis(100);

/// How many entities are named in a line of the log.
const NAMED: usize = 20;

/// By entity, as what its table is published, and the transactions that ran when that was seen.
#[derive(Debug, Default)]
pub(super) struct Joining(HashMap<usize, (Published, Arc<[u32]>)>);

impl Joining {
    /// What was seen of an entity that is not published now, or not as it must be, says nothing of later.
    pub(super) fn forget(&mut self, id: usize) {
        self.0.remove(&id);
    }
}

/// How an entity stands that has not joined yet.
pub(super) fn standing() -> Standing {
    Standing::Uncached(JOINING.to_owned())
}

/// Whether an entity is out of the tiers only until a look finds that it has joined.
pub fn is_joining(entity: &Entity) -> bool {
    !entity.is_servable() && entity.standing().cause() == Some(JOINING)
}

/// Takes an entity out of the tiers that may have been published only just now, until a look finds that it has joined.
pub(super) fn hold_back(entity: &Entity) {
    if entity.is_servable() {
        entity.set_standing(standing());
    }
}

/// Names for the log, so many of them as a line holds.
fn names<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut line = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        line.push_str(&format!(" and {more} more"));
    }
    line
}

impl<L: LookUpShape> Applier<L> {
    /// Those of these entities, published as they are, of which every transaction has ended that may have changed the table
    /// before it was published so.
    pub(super) async fn joined(&mut self, wanted: &[(usize, Published)]) -> Result<HashSet<usize>, ApplyError> {
        if wanted.is_empty() {
            return Ok(HashSet::new());
        }
        let is_new = |(id, published): &&(usize, Published)| {
            self.joining.0.get(id).is_none_or(|(as_what, _)| as_what != published)
        };
        let new: Vec<(usize, Published)> = wanted.iter().filter(is_new).cloned().collect();
        if !new.is_empty() {
            let running: Arc<[u32]> = self.gate.running().await?.into();
            match tokio::time::timeout(PATIENCE, self.gate.pass(&running)).await {
                Ok(passed) => passed?,
                Err(_) => warn!(
                    entities = names(new.iter().map(|(id, _)| &*self.hierarchy.entities[*id].name)),
                    transactions = running.len(),
                    "not cached before all transactions have ended that ran when its table was published"
                ),
            }
            self.joining.0.extend(new.into_iter().map(|(id, published)| (id, (published, running.clone()))));
        }
        self.gate.look().await?;
        let has_joined = |id: &usize| self.joining.0.get(id).is_some_and(|(_, running)| self.gate.sees(running));
        let joined: HashSet<usize> = wanted.iter().map(|(id, _)| *id).filter(has_joined).collect();
        joined.iter().for_each(|id| self.joining.forget(*id));
        Ok(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_every_entity_that_waits_as_long_as_they_are_few() {
        let named = |count: usize| {
            let all: Vec<String> = (0..count).map(|n| format!("e{n}")).collect();
            names(all.iter().map(String::as_str))
        };
        assert_eq!(named(3), "e0, e1, e2");
        assert!(named(NAMED).ends_with(", e19"));
        assert!(named(1000).ends_with(", e19 and 980 more"));
    }
}
