//! Which entries are checked: samples for the background, pages for a walk through all.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use super::{Auditor, Shapes, Tier};
use crate::cache::l1::Place;
use crate::cache::l2::L2Error;
use crate::entity::{Entity, EntryKey};

/// Steps of a walk through L2 that one sample may take: other keys may stand between an entity's.
const STEPS: usize = 8;
/// Keys that Redis looks at in one step.
const STRIDE: usize = 256;
/// Found keys that wait to be checked; the rest of a step is left for the next round.
const WAITING: usize = 4 * STRIDE;

/// Whose turn it is, and how far the walks through L2 have come. They go round and round: each key has its turn.
pub(super) struct Sampler {
    next: usize,
    walks: Vec<Walk>,
}

#[derive(Default)]
struct Walk {
    cursor: u64,
    waiting: VecDeque<EntryKey>,
}

impl Sampler {
    pub(super) fn new(entities: usize) -> Self {
        Sampler { next: 0, walks: (0..entities).map(|_| Walk::default()).collect() }
    }

    /// The next entity and tier: each has as many turns as the others, however many entries it has.
    pub(super) fn turn(&mut self) -> (usize, Tier) {
        let turn = self.next;
        self.next = (turn + 1) % (2 * self.walks.len()).max(1);
        (turn / 2, if turn.is_multiple_of(2) { Tier::L1 } else { Tier::L2 })
    }
}

/// Where a walk through all of an entity's entries goes on: first L2, then L1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// In L2, at Redis' own cursor.
    L2(u64),
    /// In L1.
    L1(Place),
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cursor::L2(at) => write!(f, "l2:{at}"),
            Cursor::L1(place) => write!(f, "l1:{}:{}", place.shard, place.hash),
        }
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse().map_err(drop);
        match text.split_once(':') {
            Some(("l2", at)) => Ok(Cursor::L2(number(at)?)),
            Some(("l1", place)) => {
                let (shard, hash) = place.split_once(':').ok_or(())?;
                Ok(Cursor::L1(Place { shard: shard.parse().map_err(drop)?, hash: number(hash)? }))
            }
            _ => Err(()),
        }
    }
}

impl<S: Shapes> Auditor<S> {
    /// Keys of up to `count` entries of an entity, by chance (L1) or by turns (L2).
    pub(super) async fn sample(
        &self,
        entity: &Arc<Entity>,
        tier: Tier,
        count: usize,
    ) -> Result<Vec<EntryKey>, L2Error> {
        match tier {
            Tier::L1 => Ok(self.in_l1(entity, |l1| l1.sample(entity.id, count))),
            Tier::L2 => self.sample_l2(entity, count).await,
        }
    }

    async fn sample_l2(&self, entity: &Entity, count: usize) -> Result<Vec<EntryKey>, L2Error> {
        let Some(l2) = &self.hierarchy.l2 else { return Ok(Vec::new()) };
        let mut sampler = self.sampler.lock().await;
        let Some(walk) = sampler.walks.get_mut(entity.id) else { return Ok(Vec::new()) };
        let mut steps = count.div_ceil(STRIDE).max(STEPS);
        while walk.waiting.len() < count && steps > 0 {
            let (next, found) = l2.scan(&entity.redis_prefix, walk.cursor, STRIDE).await?;
            walk.cursor = next;
            let room = WAITING.max(count) - walk.waiting.len();
            walk.waiting.extend(keys(entity, found).take(room));
            steps -= 1;
            if next == 0 {
                // Once round is enough.
                break;
            }
        }
        let count = count.min(walk.waiting.len());
        Ok(walk.waiting.drain(..count).collect())
    }

    /// The next page of a walk through all entries of an entity: about `limit` keys of one tier, and where to go on;
    /// `None` at the end.
    pub(super) async fn page(
        &self,
        entity: &Arc<Entity>,
        cursor: Cursor,
        limit: usize,
    ) -> Result<(Tier, Vec<EntryKey>, Option<Cursor>), L2Error> {
        let l1 = || self.hierarchy.l1.is_some().then(|| Cursor::L1(Place::default()));
        match (cursor, &self.hierarchy.l2) {
            (Cursor::L2(at), Some(l2)) => {
                let mut at = at;
                let mut page = Vec::new();
                for _ in 0..STEPS {
                    let (next, found) = l2.scan(&entity.redis_prefix, at, limit).await?;
                    page.extend(keys(entity, found));
                    at = next;
                    if at == 0 {
                        return Ok((Tier::L2, page, l1()));
                    }
                    if page.len() >= limit {
                        break;
                    }
                }
                Ok((Tier::L2, page, Some(Cursor::L2(at))))
            }
            (Cursor::L2(_), None) => Ok((Tier::L2, Vec::new(), l1())),
            (Cursor::L1(place), _) => {
                let mut next = None;
                let page = self.in_l1(entity, |l1| {
                    let (hashes, following) = l1.page(entity.id, place, limit);
                    next = following;
                    hashes
                });
                Ok((Tier::L1, page, next.map(Cursor::L1)))
            }
        }
    }

    /// The keys of hashes in L1, as far as they are still held.
    fn in_l1(&self, entity: &Entity, hashes: impl FnOnce(&crate::cache::l1::L1) -> Vec<u64>) -> Vec<EntryKey> {
        let Some(l1) = &self.hierarchy.l1 else { return Vec::new() };
        // A sample of few may have one more than once.
        let mut hashes = hashes(l1);
        hashes.sort_unstable();
        hashes.dedup();
        let held = hashes.into_iter().filter_map(|hash| l1.peek(entity.id, hash));
        held.filter_map(|cached| entity.stored_key(&cached.key)).collect()
    }
}

/// The keys among what Redis found that readers can reach.
fn keys(entity: &Entity, found: Vec<Bytes>) -> impl Iterator<Item = EntryKey> {
    found.into_iter().filter_map(|key| entity.stored_key(std::str::from_utf8(&key).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back() {
        for cursor in [Cursor::L2(0), Cursor::L2(u64::MAX), Cursor::L1(Place { shard: 63, hash: u64::MAX })] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for bad in ["", "l2", "l2:", "l2:-1", "l1:1", "l1:1:x", "l3:1", "0"] {
            assert_eq!(bad.parse::<Cursor>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn each_entity_and_tier_has_its_turn() {
        let mut sampler = Sampler::new(2);
        let turns: Vec<_> = (0..5).map(|_| sampler.turn()).collect();
        assert_eq!(turns, [(0, Tier::L1), (0, Tier::L2), (1, Tier::L1), (1, Tier::L2), (0, Tier::L1)]);
    }
}
