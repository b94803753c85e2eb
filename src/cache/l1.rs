//! L1: stretto in process, behind the fence.
//!
//! stretto scans its whole policy map on each eviction, so one large cache falls over; many small shards do not.

mod expiry;
mod index;
mod part;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use rand::Rng;

pub use self::part::{Charge, Fullness};
use self::part::{Part, Shard};
use super::fence::Fence;
use crate::entity::{EntryKey, Generation};
use crate::entry::Due;
use crate::failpoint::{self, Rule};
use crate::lsn::Lsn;
use crate::void::tag::Cell;

/// A value in L1.
#[derive(Debug)]
pub struct Cached {
    /// The full key: the cache itself knows only its hash.
    pub key: Box<str>,
    /// The value's JSON; `None` if the row is known to be absent.
    pub value: Option<Bytes>,
    /// Hash of the value.
    pub etag: u64,
    /// The watermark before the value was fetched.
    pub as_of: Lsn,
    /// Nothing committed after here is in the value.
    pub hi: Lsn,
    /// The generation it belongs to.
    pub generation: Generation,
    /// When it is due by the wall clock of whoever made it: what stands in L2 under the same label has the same.
    pub due: Due,
    /// When it is due by the clock of this process, which does not jump.
    pub expires: Instant,
    /// When it is not served any more, marked or not.
    pub over: Instant,
    /// The cells of the tags that it bears.
    pub tags: Box<[Cell]>,
    /// It was compared with all patterns that were swept up to here.
    pub checked: AtomicU64,
    /// What it takes of L1's memory.
    pub charge: Charge,
}

impl Cached {
    /// Up to where no pattern that was swept concerns it: such as came after it was fetched were compared with it.
    pub fn seen(&self) -> Lsn {
        self.as_of.max(Lsn::from_u64(self.checked.load(Ordering::Acquire)))
    }
}

/// Why an entry is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unservable {
    /// It belongs to an older generation.
    Generation,
    /// Since it was fetched there was an event on its cell of the fence.
    Fenced,
    /// Its life is over.
    Expired,
}

/// Where a walk through an entity's entries goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The shard.
    pub shard: usize,
    /// The least hash that was not visited there.
    pub hash: u64,
}

/// The in-process tier of one instance: parts, behind one fence.
pub struct L1 {
    /// The part that entities share, then those that one has for itself.
    parts: Vec<Part>,
    /// By entity, the position of its part; the first where there is no such entity.
    by_entity: Vec<usize>,
    fence: Fence,
}

impl L1 {
    /// A tier that holds about `max_size` bytes for all entities together.
    pub fn new(max_size: u64) -> Self {
        L1::with_parts(max_size, &[])
    }

    /// A tier in which some entities have a part of their own, of the size that is given by entity; the others share one of
    /// `max_size` bytes.
    pub fn with_parts(max_size: u64, own: &[Option<u64>]) -> Self {
        let mut parts = vec![Part::new(max_size)];
        let mut by_entity = Vec::with_capacity(own.len());
        for size in own {
            by_entity.push(size.map_or(0, |size| {
                parts.push(Part::new(size));
                parts.len() - 1
            }));
        }
        L1 { parts, by_entity, fence: Fence::default() }
    }

    fn part(&self, entity: usize) -> &Part {
        &self.parts[self.by_entity.get(entity).copied().unwrap_or_default()]
    }

    /// The value of a key, if it may still be served in `generation`.
    pub fn get(&self, entity: usize, key: &EntryKey, generation: Generation) -> Option<Arc<Cached>> {
        let cached = self.peek(entity, key.hash)?;
        let servable = *cached.key == *key.redis() && self.judge(key.hash, &cached, generation).is_ok();
        servable.then_some(cached)
    }

    /// What is held under a hash, servable or not; of whichever key that has it.
    pub fn peek(&self, entity: usize, hash: u64) -> Option<Arc<Cached>> {
        self.part(entity).peek(hash)
    }

    /// Whether an entry may still be served in `generation`.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, hash: u64, cached: &Cached, generation: Generation) -> Result<(), Unservable> {
        if cached.generation < generation {
            return Err(Unservable::Generation);
        }
        if !self.fence.admits(hash, cached.as_of) && !failpoint::is_off(Rule::L1Fence) {
            return Err(Unservable::Fenced);
        }
        if cached.over <= Instant::now() { Err(Unservable::Expired) } else { Ok(()) }
    }

    /// Keeps a value of an entity, unless an event has overtaken it or the tier prefers others.
    pub fn insert(&self, entity: usize, hash: u64, cached: Cached) {
        if !self.fence.admits(hash, cached.as_of) {
            return;
        }
        self.part(entity).insert(entity, hash, cached);
    }

    /// Removes the entry of a hash, whatever it is worth.
    pub async fn remove(&self, entity: usize, hash: u64) {
        self.part(entity).remove(hash).await;
    }

    /// Makes the entry of a hash unservable, and with it every value of its cell that was fetched until now: also one
    /// that a reader is about to insert. `watermark` is what the watermark stands at now.
    ///
    /// Whoever fetched a value before now has read the watermark before that, so its `as_of` is at most `watermark`, and
    /// a fence of one more refuses it. Values that are fetched from here on are refused, too, until the watermark has
    /// moved: that costs reads of L2, which a heartbeat ends.
    pub async fn invalidate(&self, entity: usize, hash: u64, watermark: Lsn) {
        // Should it not be removed, it is fenced all the same.
        self.fence.raise(hash, Lsn::from_u64(watermark.as_u64().saturating_add(1)));
        self.part(entity).remove(hash).await;
    }

    /// Hashes of `count` entries of an entity by chance, each as likely as the next; some may have been evicted, and one
    /// may come twice.
    pub fn sample(&self, entity: usize, count: usize) -> Vec<u64> {
        let sizes: Vec<(&Shard, usize)> = self.part(entity).sizes(entity);
        let total: usize = sizes.iter().map(|(_, size)| size).sum();
        if total == 0 {
            return Vec::new();
        }
        let mut rng = rand::rng();
        let pick = |mut position: usize| {
            for (shard, size) in &sizes {
                if position < *size {
                    return shard.index.at(entity, position);
                }
                position -= size;
            }
            None
        };
        (0..count).filter_map(|_| pick(rng.random_range(0..total))).collect()
    }

    /// Up to `limit` hashes of an entity's entries from `from` on, and where to go on; `None` at the end. What is held
    /// during a whole walk is in it; some hashes may have been evicted.
    pub fn page(&self, entity: usize, from: Place, limit: usize) -> (Vec<u64>, Option<Place>) {
        self.part(entity).page(entity, from, limit)
    }

    /// The fence, for whoever applies events.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Number of entries held, servable or not.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How full each part is: first the one that is shared, then the others, with the entity that each belongs to.
    pub fn fullness(&self) -> Vec<(Option<usize>, Fullness)> {
        let entity = |part: usize| self.by_entity.iter().position(|of| *of == part && part > 0);
        self.parts.iter().enumerate().map(|(i, part)| (entity(i), part.fullness())).collect()
    }
}
