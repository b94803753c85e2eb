//! Warming: entries that are filled because an application asked for it, once its transaction is applied.
//!
//! At its best effort: what waits is bounded in bytes, and what does not fit is dropped and counted. A fill goes the way
//! of every other, so it takes no more from the source than readers may, and waits in line with them. Only the instance
//! that applies events hears of keys to warm, so a fleet warms a key once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::Hierarchy;
use super::fill::Filler;
use crate::entity::EntryKey;
use crate::lsn::Lsn;
use crate::metrics::{Command, CommandMetrics, Commanded};

/// Bytes of keys that may wait: some thirty thousand short ones.
const ROOM: usize = 4 << 20;
/// Keys that are filled at a time: readers' own misses come first.
const AT_ONCE: usize = 32;
/// How long a transaction is waited for. One that is not applied by then may never be, here.
const PATIENCE: Duration = Duration::from_secs(60);

/// A key that has its place among those that wait.
#[derive(Debug)]
pub struct Waiting {
    entity: usize,
    key: EntryKey,
    _room: OwnedSemaphorePermit,
}

/// Keys that wait to be filled.
pub struct Warmer {
    queue: Mutex<VecDeque<(Lsn, Waiting)>>,
    arrived: Notify,
    /// Whole entities, and where the last transaction ends that asked for them.
    entities: Mutex<BTreeMap<usize, Lsn>>,
    room: Arc<Semaphore>,
    metrics: CommandMetrics,
}

impl Warmer {
    /// One that nothing waits for.
    pub fn new(metrics: CommandMetrics) -> Self {
        let room = Arc::new(Semaphore::new(ROOM));
        Warmer { queue: Mutex::default(), arrived: Notify::new(), entities: Mutex::default(), room, metrics }
    }

    /// A place for a key whose transaction is still open; `None`, which is counted, if too many wait.
    pub fn place(&self, entity: usize, key: EntryKey) -> Option<Waiting> {
        // A key is far shorter than what 32 bits count.
        let size = (key.redis().len() + size_of::<(Lsn, Waiting)>()) as u32;
        let room = self.room.clone().try_acquire_many_owned(size).ok();
        if room.is_none() {
            self.metrics.count(Command::Warm, Commanded::Dropped);
        }
        Some(Waiting { entity, key, _room: room? })
    }

    /// These are to be filled once everything up to `lsn` is applied, where their transaction ends.
    pub fn release(&self, lsn: Lsn, keys: impl Iterator<Item = Waiting>) {
        self.queue.lock().extend(keys.map(|key| (lsn, key)));
        self.arrived.notify_one();
    }

    /// All of an entity is to be warmed once everything up to `lsn` is applied. Once, however often it is said.
    pub fn release_entity(&self, lsn: Lsn, entity: usize) {
        let mut entities = self.entities.lock();
        let at = entities.entry(entity).or_insert(lsn);
        *at = lsn.max(*at);
    }

    /// Takes the entities that are to be warmed now that everything up to `applied` is.
    pub fn take_entities(&self, applied: Lsn) -> Vec<usize> {
        let mut entities = self.entities.lock();
        let ready: Vec<usize> = entities.iter().filter(|(_, at)| **at <= applied).map(|(entity, _)| *entity).collect();
        entities.retain(|_, at| *at > applied);
        ready
    }

    /// Counts what became of one.
    pub fn count(&self, result: Commanded) {
        self.metrics.count(Command::Warm, result);
    }

    async fn next(&self) -> (Lsn, Waiting) {
        loop {
            if let Some(next) = self.queue.lock().pop_front() {
                return next;
            }
            self.arrived.notified().await;
        }
    }

    /// Fills what comes, for ever.
    pub async fn run(&self, hierarchy: &Hierarchy, filler: &Arc<Filler>) {
        let coming = stream::unfold((), async |()| Some((self.next().await, ())));
        coming.for_each_concurrent(AT_ONCE, |(lsn, waiting)| self.fill(hierarchy, filler, lsn, waiting)).await;
    }

    async fn fill(&self, hierarchy: &Hierarchy, filler: &Arc<Filler>, lsn: Lsn, waiting: Waiting) {
        let entity = &hierarchy.entities[waiting.entity];
        let filled = entity.is_servable()
            && hierarchy.watermark.reached(lsn, PATIENCE).await
            && filler.fetch(entity, waiting.key, false, lsn).await.is_ok();
        self.metrics.count(Command::Warm, if filled { Commanded::Done } else { Commanded::Failed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{Definition, Entity, Shape};
    use crate::key::{KeyColumn, KeyType};

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_and_what_is_done_makes_room() {
        let key = KeyColumn { name: "k".into(), type_oid: 0, key_type: KeyType::Text, cast: String::new() };
        let shape = Shape { key: vec![key], ..Shape::unknown(0) };
        let entity = Entity::new(0, Definition::rows("row", "public", "rows"), "", shape);
        let key = |n: usize| entity.key(&format!("{n}{}", "x".repeat(1000))).unwrap();
        let warmer = Warmer::new(CommandMetrics::new());
        let mut waiting: Vec<Waiting> = (0..).map_while(|n| warmer.place(0, key(n))).collect();
        let most = waiting.len();
        assert!((3000..=ROOM / 1000).contains(&most), "{most}");
        let rest = waiting.split_off(10);
        warmer.release(Lsn::from_u64(7), waiting.into_iter());
        assert!(warmer.place(0, key(0)).is_none(), "what is released still waits");
        drop(rest);
        assert!(warmer.place(0, key(0)).is_some());
        for n in 0..10 {
            let (lsn, next) = warmer.next().await;
            assert_eq!((lsn, next.key), (Lsn::from_u64(7), key(n)), "in order");
        }
        assert_eq!(warmer.room.available_permits(), ROOM);
    }
}
