//! Requeries: results of a query that an event has dropped are read again, where the entity says `refresh`.
//!
//! Only what stood in a tier: what nobody has read is not wanted. A key that waits is not queued again, so many events on one
//! key cost one query. At its best effort: a key that finds no room is read by the next reader.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Hierarchy;
use super::fill::Filler;
use super::watermark::{NotReached, Watermark};
use crate::entity::EntryKey;
use crate::lsn::Lsn;
use crate::metrics::{NoRequery, RequeryMetrics};

/// Keys that may wait.
const ROOM: usize = 16 << 10;
/// Keys that are read at a time: readers' own misses come first.
const AT_ONCE: usize = 16;
/// How far a key is waited for.
const WAIT: Wait = Wait { applied: Duration::from_secs(60), newer: Duration::from_millis(100) };

/// How far a key is waited for. It holds one of [`AT_ONCE`] places meanwhile.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// How long, in all, for events to be applied. What is not applied by then may never be, here.
    applied: Duration,
    /// How long newer events on the key are waited for, too, so that one query does for all of them. Where they never end, as on
    /// a key that is read and changed again and again, the key would hold its place for ever.
    newer: Duration,
}

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
pub struct Requeries {
    queue: Mutex<Queue>,
    arrived: Notify,
    metrics: RequeryMetrics,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Dropped>,
    /// By the hashes of keys that were taken in and are not being read yet, their last events. Of two keys with one hash the
    /// second is left out.
    known: HashMap<u64, Event>,
}

/// An event on a key.
#[derive(Debug, Clone, Copy)]
struct Event {
    lsn: Lsn,
    /// When it was written.
    at: Instant,
}

impl Requeries {
    /// Nothing waits.
    pub fn new(metrics: RequeryMetrics) -> Self {
        Requeries { queue: Mutex::default(), arrived: Notify::new(), metrics }
    }

    /// Takes keys in whose events have been written.
    pub fn add(&self, dropped: impl Iterator<Item = Dropped>) {
        let at = Instant::now();
        let mut queue = self.queue.lock();
        for one in dropped {
            let Queue { waiting, known } = &mut *queue;
            let is_full = known.len() >= ROOM;
            let event = Event { lsn: one.lsn, at };
            match known.entry(one.key.hash) {
                // Not the larger one: LSNs may have started over.
                Entry::Occupied(mut before) => {
                    before.insert(event);
                }
                Entry::Vacant(_) if is_full => self.metrics.dropped(one.entity, NoRequery::Full),
                Entry::Vacant(place) => {
                    place.insert(event);
                    waiting.push_back(one);
                }
            }
        }
        self.metrics.waiting(queue.known.len());
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
        let entity = dropped.entity;
        let event = match self.applied(&hierarchy.watermark, &dropped, WAIT).await {
            Ok(lsn) => lsn,
            Err(why) => return self.metrics.dropped(entity, why),
        };
        let Some(entity) = hierarchy.entities.get(entity).filter(|entity| entity.is_servable()) else { return };
        // What fails is counted as a fill; the next reader tries again.
        let _ = filler.fetch(entity, dropped.key, false, event).await;
    }

    /// Waits until the last event on the key is applied, and gives its label; or, once newer ones have come for long enough, that
    /// of the last one that is. What is read then has the newer ones, too, for an event is known only after its drop was
    /// written. The key waits for them once more, behind the others.
    async fn applied(&self, watermark: &Watermark, dropped: &Dropped, wait: Wait) -> Result<Lsn, NoRequery> {
        let hash = dropped.key.hash;
        let began = Instant::now();
        let mut event = self.queue.lock().known.get(&hash).copied();
        // While it waits, others may come: what is read must have them, too.
        loop {
            let Event { lsn, at } = event.unwrap_or(Event { lsn: dropped.lsn, at: Instant::now() });
            let left = wait.applied.saturating_sub(began.elapsed());
            let reached = watermark.reached_of(lsn, at, left).await;
            let mut queue = self.queue.lock();
            let newer = queue.known.get(&hash).filter(|newer| newer.at > at).copied();
            match (newer, reached) {
                (Some(newer), Ok(())) if began.elapsed() >= wait.newer => {
                    let Dropped { entity, ref key, .. } = *dropped;
                    queue.waiting.push_back(Dropped { entity, key: key.clone(), lsn: newer.lsn });
                    drop(queue);
                    self.arrived.notify_one();
                    return Ok(lsn);
                }
                (Some(newer), Ok(()) | Err(NotReached::StartedOver)) => {
                    event = Some(newer);
                    continue;
                }
                _ => {}
            }
            // Before it is read: an event that comes from now on may not be in what is read.
            queue.known.remove(&hash);
            self.metrics.waiting(queue.known.len());
            return match reached {
                Ok(()) => Ok(lsn),
                Err(NotReached::Late) => Err(NoRequery::Late),
                Err(NotReached::StartedOver) => Err(NoRequery::StartedOver),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;
    use crate::entity::{Definition, Entity, Shape};
    use crate::key::{KeyColumn, KeyType};

    /// Newer events are waited for as long as others.
    const PATIENT: Wait = Wait { newer: WAIT.applied, ..WAIT };

    fn dropped(key: &str, lsn: u64) -> Dropped {
        let column = KeyColumn { name: "k".into(), type_oid: 0, key_type: KeyType::Text, cast: String::new() };
        let shape = Shape { key: vec![column], ..Shape::unknown(0) };
        let entity = Entity::new(0, Definition::rows("row", "public", "rows"), "", shape);
        Dropped { entity: 0, key: entity.key(key).unwrap(), lsn: Lsn::from_u64(lsn) }
    }

    fn requeries() -> Requeries {
        Requeries::new(RequeryMetrics::new(["row"]))
    }

    #[tokio::test]
    async fn a_key_that_waits_is_not_queued_again() {
        let requeries = requeries();
        requeries.add([dropped("a", 1), dropped("b", 1), dropped("a", 2)].into_iter());
        requeries.add([dropped("b", 3)].into_iter());
        for wanted in ["a", "b"] {
            assert_eq!(requeries.next().await.key.key(), wanted);
        }
        assert_eq!(requeries.queue.lock().waiting.len(), 0);
        // Still waiting for its event to be applied.
        requeries.add([dropped("a", 4)].into_iter());
        assert_eq!(requeries.queue.lock().waiting.len(), 0);
        requeries.add((0..2 * ROOM as u64).map(|n| dropped(&n.to_string(), n)));
        assert_eq!(requeries.queue.lock().known.len(), ROOM);
    }

    #[tokio::test]
    async fn the_last_event_is_waited_for() {
        let (requeries, watermark) = (requeries(), Watermark::default());
        requeries.add([dropped("a", 5)].into_iter());
        let a = requeries.next().await;
        let waited = async {
            let waits = requeries.applied(&watermark, &a, PATIENT);
            tokio::pin!(waits);
            assert!(futures_util::poll!(&mut waits).is_pending(), "nothing is applied");
            requeries.add([dropped("a", 9)].into_iter());
            watermark.advance(Lsn::from_u64(5));
            assert!(futures_util::poll!(&mut waits).is_pending(), "another one came meanwhile");
            watermark.advance(Lsn::from_u64(9));
            waits.await
        };
        assert_eq!(waited.await, Ok(Lsn::from_u64(9)));
        assert!(requeries.queue.lock().known.is_empty());
        requeries.add([dropped("a", 20)].into_iter());
        let a = requeries.next().await;
        let late = requeries.applied(&watermark, &a, Wait { applied: Duration::from_millis(1), ..PATIENT }).await;
        assert_eq!(late, Err(NoRequery::Late));
    }

    /// While rounds of lookups follow each other, the watermark lags by one of them: a key that is dropped in each would wait for
    /// ever, and so few of them would hold all places.
    #[tokio::test]
    async fn a_key_whose_events_never_end_gives_its_place_away() {
        let (requeries, watermark) = (requeries(), Watermark::default());
        requeries.add(["a", "b"].map(|key| dropped(key, 1)).into_iter());
        for (event, wanted) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
            let next = requeries.next().await;
            assert_eq!(next.key.key(), wanted);
            let waits = requeries.applied(&watermark, &next, Wait { newer: Duration::ZERO, ..WAIT });
            tokio::pin!(waits);
            assert!(futures_util::poll!(&mut waits).is_pending(), "{event} is not applied");
            requeries.add(["a", "b"].map(|key| dropped(key, event + 1)).into_iter());
            watermark.advance(Lsn::from_u64(event));
            assert_eq!(futures_util::poll!(&mut waits), Poll::Ready(Ok(Lsn::from_u64(event))), "{wanted}");
        }
        // The last event of each is still waited for.
        watermark.advance(Lsn::from_u64(50));
        for wanted in ["a", "b"] {
            let next = requeries.next().await;
            assert_eq!(next.key.key(), wanted);
            assert_eq!(requeries.applied(&watermark, &next, WAIT).await, Ok(Lsn::from_u64(5)));
        }
        let queue = requeries.queue.lock();
        assert!(queue.waiting.is_empty() && queue.known.is_empty());
    }

    /// After a failover LSNs start over: none of before will ever be reached, or means what it did.
    #[tokio::test]
    async fn what_waits_for_an_lsn_of_another_timeline_is_given_up_at_once() {
        let (requeries, watermark) = (requeries(), Watermark::default());
        watermark.advance(Lsn::from_u64(50));
        requeries.add((0..ROOM as u64).map(|n| dropped(&n.to_string(), 100 + n)));
        let first = requeries.next().await;
        let began = Instant::now();
        let waits = requeries.applied(&watermark, &first, PATIENT);
        let restart = async {
            tokio::task::yield_now().await;
            watermark.restart(Lsn::from_u64(7));
        };
        let (given_up, ()) = tokio::join!(waits, restart);
        assert_eq!(given_up, Err(NoRequery::StartedOver));
        for _ in 1..ROOM {
            let next = requeries.next().await;
            assert_eq!(requeries.applied(&watermark, &next, PATIENT).await, Err(NoRequery::StartedOver));
        }
        assert!(began.elapsed() < PATIENT.applied / 2, "one of them has waited");
        // There is room again, for LSNs of now.
        requeries.add([dropped("a", 8)].into_iter());
        let next = requeries.next().await;
        watermark.advance(Lsn::from_u64(8));
        assert_eq!(requeries.applied(&watermark, &next, PATIENT).await, Ok(Lsn::from_u64(8)));
    }
}
