//! A part of L1: shards of its own, so that what it holds and what other parts hold do not evict each other.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::FutureExt;
use stretto::{AsyncCacheBuilder, TokioCache, TransparentKeyBuilder};

use super::index::Index;
use super::{Cached, Place};

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

/// What a value takes of a part's memory, until nobody has it any more; nothing before it is put there.
#[derive(Debug, Default)]
pub struct Charge(Option<(i64, Arc<AtomicI64>)>);

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some((size, used)) = &self.0 {
            used.fetch_sub(*size, Ordering::Relaxed);
        }
    }
}

pub(super) struct Shard {
    pub(super) cache: Cache,
    pub(super) index: Index,
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
    pub(super) async fn compact(&self) {
        self.index.compact(|hash| self.get(hash).is_some()).await;
    }
}

/// How full a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fullness {
    /// Entries held, servable or not.
    pub entries: usize,
    /// Bytes that they take, bookkeeping included; also of those that a reader still holds.
    pub size: u64,
    /// Bytes that they may take.
    pub max_size: u64,
}

pub(super) struct Part {
    /// Made when they are first needed: an empty one takes memory and a thread.
    pub(super) shards: Vec<OnceLock<Arc<Shard>>>,
    shard_size: i64,
    max_size: u64,
    used: Arc<AtomicI64>,
}

impl Part {
    /// A part that holds about `max_size` bytes.
    pub(super) fn new(max_size: u64) -> Self {
        let per_shard = (SHARD_ENTRIES * TYPICAL_ENTRY) as u64;
        let count = (max_size / per_shard).clamp(1, 4096);
        let shards = (0..count).map(|_| OnceLock::new()).collect();
        Part { shards, shard_size: (max_size / count).max(1) as i64, max_size, used: Arc::default() }
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

    pub(super) fn peek(&self, hash: u64) -> Option<Arc<Cached>> {
        self.shard(hash).get()?.get(hash)
    }

    pub(super) fn insert(&self, entity: usize, hash: u64, mut cached: Cached) {
        let size = (OVERHEAD + cached.key.len() + cached.value.as_ref().map_or(0, Bytes::len)) as i64;
        let slot = self.shard(hash);
        if slot.get().is_none() {
            let Some(shard) = self.make() else { return };
            // Somebody else may have been faster; then theirs is used.
            let _ = slot.set(shard);
        }
        let Some(shard) = slot.get() else { return };
        self.used.fetch_add(size, Ordering::Relaxed);
        cached.charge = Charge(Some((size, self.used.clone())));
        // All is done at the first poll; what follows only lets others run. Not to be waited for: a reader that goes
        // away there would leave an entry that is not in the index.
        let _ = shard.cache.insert(hash, Arc::new(cached), size).now_or_never();
        if shard.index.note(entity, hash) {
            let shard = shard.clone();
            tokio::spawn(async move { shard.compact().await });
        }
    }

    pub(super) async fn remove(&self, hash: u64) {
        if let Some(shard) = self.shard(hash).get()
            && let Err(error) = shard.cache.try_remove(&hash).await
        {
            tracing::debug!(%error, "remove an entry from L1");
        }
    }

    pub(super) fn sizes(&self, entity: usize) -> Vec<(&Shard, usize)> {
        self.shards.iter().filter_map(OnceLock::get).map(|s| (&**s, s.index.len(entity))).collect()
    }

    pub(super) fn page(&self, entity: usize, from: Place, limit: usize) -> (Vec<u64>, Option<Place>) {
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

    pub(super) fn len(&self) -> usize {
        self.shards.iter().filter_map(OnceLock::get).map(|shard| shard.cache.len()).sum()
    }

    pub(super) fn fullness(&self) -> Fullness {
        let size = self.used.load(Ordering::Relaxed).max(0).unsigned_abs();
        Fullness { entries: self.len(), size, max_size: self.max_size }
    }
}
