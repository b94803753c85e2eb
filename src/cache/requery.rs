//! Requeries: results of a query that an event has dropped are read again, where the entity says `refresh`.
//!
//! Only what stood in a tier: what nobody has read is not wanted. A key that waits is not queued again, so many events on one
//! key cost one query. At its best effort: a key that finds no room is read by the next reader.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Hierarchy;
use super::fill::Filler;
use crate::entity::EntryKey;
use crate::lsn::Lsn;

/// Keys that may wait.
const ROOM: usize = 16 << 10;
/// Keys that are read at a time: readers' own misses come first.
const AT_ONCE: usize = 16;
/// How long an event is waited for. One that is not applied by then may never be, here.
const PATIENCE: Duration = Duration::from_secs(60);

/// A key that an event has dropped.
#[derive(Debug)]
pub struct Dropped {
    /// The entity.
    pub entity: usize,
    /// The key.
    pub key: EntryKey,
    /// The event's label: once everything up to here is applied, the key is read.
    pub lsn: Lsn,
}

/// Keys that wait to be read again.
#[derive(Debug, Default)]
pub struct Requeries {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Dropped>,
    /// The hashes of keys that were taken in and are not being read yet. Of two keys with one hash the second is left out.
    known: HashSet<u64>,
}

impl Requeries {
    /// Takes keys in whose events have been written.
    pub fn add(&self, dropped: impl Iterator<Item = Dropped>) {
        let mut queue = self.queue.lock();
        for one in dropped {
            if queue.known.len() < ROOM && queue.known.insert(one.key.hash) {
                queue.waiting.push_back(one);
            }
        }
        drop(queue);
        self.arrived.notify_one();
    }

    async fn next(&self) -> Dropped {
        loop {
            if let Some(next) = self.queue.lock().waiting.pop_front() {
                return next;
            }
            self.arrived.notified().await;
        }
    }

    /// Reads what comes, for ever.
    pub async fn run(&self, hierarchy: &Hierarchy, filler: &Arc<Filler>) {
        let coming = stream::unfold((), async |()| Some((self.next().await, ())));
        coming.for_each_concurrent(AT_ONCE, |dropped| self.read(hierarchy, filler, dropped)).await;
    }

    async fn read(&self, hierarchy: &Hierarchy, filler: &Arc<Filler>, dropped: Dropped) {
        let Dropped { entity, key, lsn } = dropped;
        let reached = hierarchy.watermark.reached(lsn, PATIENCE).await;
        // Before it is read: an event that comes from now on may not be in what is read.
        self.queue.lock().known.remove(&key.hash);
        let Some(entity) = hierarchy.entities.get(entity).filter(|entity| reached && entity.is_servable()) else {
            return;
        };
        // What fails is counted as a fill; the next reader tries again.
        let _ = filler.fetch(entity, key, false, lsn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Definition, Entity, Shape};
    use crate::key::{KeyColumn, KeyType};

    #[tokio::test]
    async fn a_key_that_waits_is_not_queued_again() {
        let key = KeyColumn { name: "k".into(), type_oid: 0, key_type: KeyType::Text, cast: String::new() };
        let shape = Shape { key: vec![key], ..Shape::unknown(0) };
        let entity = Entity::new(0, Definition::rows("row", "public", "rows"), "", shape);
        let dropped = |key: &str, lsn| Dropped { entity: 0, key: entity.key(key).unwrap(), lsn: Lsn::from_u64(lsn) };
        let requeries = Requeries::default();
        requeries.add([dropped("a", 1), dropped("b", 1), dropped("a", 2)].into_iter());
        requeries.add([dropped("b", 3)].into_iter());
        for (wanted, lsn) in [("a", 1), ("b", 1)] {
            let next = requeries.next().await;
            assert_eq!((next.key.key(), next.lsn), (wanted, Lsn::from_u64(lsn)));
        }
        assert_eq!(requeries.queue.lock().waiting.len(), 0);
        // Still waiting for its event to be applied.
        requeries.add([dropped("a", 4)].into_iter());
        assert_eq!(requeries.queue.lock().waiting.len(), 0);
        requeries.add((0..2 * ROOM as u64).map(|n| dropped(&n.to_string(), n)));
        assert_eq!(requeries.queue.lock().known.len(), ROOM);
    }
}
