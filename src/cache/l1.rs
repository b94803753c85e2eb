//! L1: stretto in process, behind the fence.
//!
//! stretto scans its whole policy map on each eviction, so one large cache falls over; many small shards do not.

mod index;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use rand::Rng;
use stretto::{AsyncCacheBuilder, TokioCache, TransparentKeyBuilder};

use self::index::Index;
use super::fence::Fence;
use crate::entity::{EntryKey, Generation};
use crate::failpoint::{self, Rule};
use crate::lsn::Lsn;

/// Entries a shard is sized for. An eviction costs some 50 microseconds at this size, and 11 ms at a million; on the
/// other hand each shard has a thread of its own for evictions, and some 0.3 MB of fixed tables.
const SHARD_ENTRIES: usize = 8192;
/// Frequency counters for each entry. TinyLFU likes ten; four tell hot from cold keys, and cost less than half.
const COUNTERS: usize = 4;
/// Memory that an entry takes beside its key and value, in stretto (about 221 bytes) and here (its place in the index
/// included, up to two times), in bytes.
const OVERHEAD: usize = 221 + size_of::<Cached>() + 48 + 16;
/// The size of entry, in bytes, that the number of shards is laid out for; smaller ones only make fuller shards.
const TYPICAL_ENTRY: usize = 512;

type Cache = TokioCache<u64, Arc<Cached>, TransparentKeyBuilder<u64>>;

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
    /// When it is too old by its entity's ttl.
    pub expires: Instant,
}

/// Why an entry is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unservable {
    /// It belongs to an older generation.
    Generation,
    /// Since it was fetched there was an event on its cell of the fence.
    Fenced,
    /// It has outlived its entity's ttl.
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

struct Shard {
    cache: Cache,
    index: Index,
}

impl Shard {
    /// The lookup is async in name only; the value is cloned out, for a reference would hold the shard's lock.
    fn get(&self, hash: u64) -> Option<Arc<Cached>> {
        Some(self.cache.get(&hash).now_or_never()??.value().clone())
    }

    /// Drops from the index what is not held any more.
    ///
    /// Not asked by `get_ttl`, although it would leave the frequencies alone: it takes the lock for reading twice, and
    /// with a writer between the two both wait for ever.
    async fn compact(&self) {
        self.index.compact(|hash| self.get(hash).is_some()).await;
    }
}

/// The in-process tier of one instance.
pub struct L1 {
    /// Made when they are first needed: an empty one takes memory and a thread.
    shards: Vec<OnceLock<Arc<Shard>>>,
    shard_size: i64,
    fence: Fence,
}

impl L1 {
    /// A tier that holds about `max_size` bytes.
    pub fn new(max_size: u64) -> Self {
        let per_shard = (SHARD_ENTRIES * TYPICAL_ENTRY) as u64;
        let count = (max_size / per_shard).clamp(1, 4096);
        let shards = (0..count).map(|_| OnceLock::new()).collect();
        L1 { shards, shard_size: (max_size / count).max(1) as i64, fence: Fence::default() }
    }

    fn shard(&self, hash: u64) -> &OnceLock<Arc<Shard>> {
        // The fence uses the hash's low bits, the shards its high ones.
        &self.shards[(hash >> 32) as usize % self.shards.len()]
    }

    /// A new shard, whose upkeep runs on the tokio runtime and a thread. `None` if stretto refuses.
    fn make(&self) -> Option<Arc<Shard>> {
        let (counters, keys) = (SHARD_ENTRIES * COUNTERS, TransparentKeyBuilder::<u64>::default());
        let made = AsyncCacheBuilder::new_with_key_builder(counters, self.shard_size, keys).build();
        let cache = made.inspect_err(|error| tracing::error!(%error, "make a shard of L1")).ok()?;
        Some(Arc::new(Shard { cache, index: Index::default() }))
    }

    /// The value of a key, if it may still be served in `generation`.
    pub fn get(&self, key: &EntryKey, generation: Generation) -> Option<Arc<Cached>> {
        let cached = self.peek(key.hash)?;
        let servable = *cached.key == *key.redis() && self.judge(key.hash, &cached, generation).is_ok();
        servable.then_some(cached)
    }

    /// What is held under a hash, servable or not; of whichever key that has it.
    pub fn peek(&self, hash: u64) -> Option<Arc<Cached>> {
        self.shard(hash).get()?.get(hash)
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
        if cached.expires <= Instant::now() { Err(Unservable::Expired) } else { Ok(()) }
    }

    /// Keeps a value of an entity, unless an event has overtaken it or the tier prefers others.
    pub fn insert(&self, entity: usize, hash: u64, cached: Cached) {
        if !self.fence.admits(hash, cached.as_of) {
            return;
        }
        let cost = OVERHEAD + cached.key.len() + cached.value.as_ref().map_or(0, Bytes::len);
        let slot = self.shard(hash);
        if slot.get().is_none() {
            let Some(shard) = self.make() else { return };
            // Somebody else may have been faster; then theirs is used.
            let _ = slot.set(shard);
        }
        let Some(shard) = slot.get() else { return };
        // All is done at the first poll; what follows only lets others run. Not to be waited for: a reader that goes
        // away there would leave an entry that is not in the index.
        let _ = shard.cache.insert(hash, Arc::new(cached), cost as i64).now_or_never();
        if shard.index.note(entity, hash) {
            let shard = shard.clone();
            tokio::spawn(async move { shard.compact().await });
        }
    }

    /// Makes the entry of a hash unservable, and with it every value of its cell that was fetched until now: also one
    /// that a reader is about to insert. `watermark` is what the watermark stands at now.
    ///
    /// Whoever fetched a value before now has read the watermark before that, so its `as_of` is at most `watermark`, and
    /// a fence of one more refuses it. Values that are fetched from here on are refused, too, until the watermark has
    /// moved: that costs reads of L2, which a heartbeat ends.
    pub async fn invalidate(&self, hash: u64, watermark: Lsn) {
        self.fence.raise(hash, Lsn::from_u64(watermark.as_u64().saturating_add(1)));
        if let Some(shard) = self.shard(hash).get()
            && let Err(error) = shard.cache.try_remove(&hash).await
        {
            // It is fenced all the same.
            tracing::debug!(%error, "remove an entry from L1");
        }
    }

    /// Hashes of `count` entries of an entity by chance, each as likely as the next; some may have been evicted, and one
    /// may come twice.
    pub fn sample(&self, entity: usize, count: usize) -> Vec<u64> {
        let sizes: Vec<(&Shard, usize)> =
            self.shards.iter().filter_map(OnceLock::get).map(|s| (&**s, s.index.len(entity))).collect();
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
        let limit = limit.max(1);
        let mut least = from.hash;
        for shard in from.shard..self.shards.len() {
            let page = self.shards[shard].get().map(|s| s.index.page(entity, least, limit)).unwrap_or_default();
            least = 0;
            let Some(last) = page.last() else { continue };
            let next = match last.checked_add(1).filter(|_| page.len() == limit) {
                Some(hash) => Place { shard, hash },
                None => Place { shard: shard + 1, hash: 0 },
            };
            return (page, (next.shard < self.shards.len()).then_some(next));
        }
        (Vec::new(), None)
    }

    /// The fence, for whoever applies events.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Number of entries held, servable or not.
    pub fn len(&self) -> usize {
        self.shards.iter().filter_map(OnceLock::get).map(|shard| shard.cache.len()).sum()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
