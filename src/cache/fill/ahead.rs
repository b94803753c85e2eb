//! Fills that nobody waits for: for warming.

use std::sync::Arc;

use tokio::sync::watch;

use super::queue::Flight;
use super::{Batch, Filler, Outcome, most};
use crate::cache::answer::ReadError;
use crate::cache::permits::Permit;
use crate::entity::{Entity, EntryKey};

/// What became of keys that were filled ahead of readers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ahead {
    /// Read from Postgres and kept.
    pub filled: u64,
    /// Those of them that have no row: that is kept, too.
    pub absent: u64,
    /// They were there already, or a reader was filling them.
    pub present: u64,
    /// Not kept in L2: somebody else held the lease, or L2 went away.
    pub unkept: u64,
    /// Not read.
    pub failed: u64,
    /// Why not, of the last one.
    pub error: Option<ReadError>,
}

impl Filler {
    /// How many keys of an entity [`Filler::fill_ahead`] takes at a time.
    pub fn most_ahead(&self, entity: &Entity) -> usize {
        self.rows.permits().most_spare().min(most(entity))
    }

    /// The permission to fill `keys` keys ahead; `None` while readers need the permits, or the connections.
    pub fn spare(&self, keys: usize) -> Option<Permit> {
        self.has_spare_connections().then(|| self.rows.spare(keys)).flatten()
    }

    /// Whether readers leave Postgres to others: they use no more than half of the connections, and wait for none.
    pub fn has_spare_connections(&self) -> bool {
        self.rows.has_spare_connections()
    }

    /// Fills keys as misses of readers would, under the same leases; who reads one of them meanwhile shares its flight.
    pub async fn fill_ahead(self: &Arc<Self>, entity: &Arc<Entity>, keys: Vec<EntryKey>, permit: Permit) -> Ahead {
        let mut ahead = Ahead::default();
        let mut landings = Vec::with_capacity(keys.len());
        let batch = {
            let mut queue = self.queues[entity.id].lock();
            // The generation first: as in `Filler::run`.
            let generation = entity.generation();
            let as_of = self.hierarchy.watermark.load();
            let mut flights = Vec::with_capacity(keys.len());
            for key in keys {
                let name: (Box<str>, bool) = (key.redis().into(), false);
                let under_way = queue.flights.get(&name).is_some_and(|flight| flight.may_be_joined(generation, as_of));
                // L2 says so itself, in the script that gives the lease.
                let in_l1 = self.hierarchy.l2.is_none() && self.hierarchy.cached(entity, &key).is_some();
                if under_way || in_l1 {
                    ahead.present += 1;
                    continue;
                }
                let (landing, landed) = watch::channel(None);
                let flight = Arc::new(Flight::new(key, false, landing));
                flight.start(generation, as_of);
                queue.flights.insert(name, flight.clone());
                flights.push(flight);
                landings.push(landed);
            }
            Batch { filler: self.clone(), entity: entity.clone(), generation, as_of, flights }
        };
        if landings.is_empty() {
            return ahead;
        }
        // In a task of its own: it ends, and lands its flights, also if nobody waits for this any more.
        let _ = tokio::spawn(batch.fly(permit)).await;
        let in_l2 = self.hierarchy.l2.is_some();
        for landed in landings {
            match &*landed.borrow() {
                Some(Ok(fetched)) => match fetched.outcome {
                    Outcome::HitL1 | Outcome::HitL2 => ahead.present += 1,
                    Outcome::Bypass if in_l2 => ahead.unkept += 1,
                    Outcome::Miss | Outcome::Bypass => {
                        ahead.filled += 1;
                        ahead.absent += u64::from(fetched.value.is_none());
                    }
                },
                Some(Err(error)) => {
                    ahead.failed += 1;
                    ahead.error = Some(error.clone());
                }
                // Torn down with the runtime.
                None => ahead.failed += 1,
            }
        }
        ahead
    }
}
