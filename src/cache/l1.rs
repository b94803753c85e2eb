//! L1: stretto in process, behind the fence.
//!
//! stretto scans its whole policy map on each eviction, so one large cache falls over; many small shards do not.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use stretto::{AsyncCacheBuilder, TokioCache, TransparentKeyBuilder};

use super::fence::Fence;
use crate::entity::{EntryKey, Generation};
use crate::lsn::Lsn;

/// Entries a shard is sized for. An eviction costs some 50 microseconds at this size, and 11 ms at a million; on the
/// other hand each shard has a thread of its own for evictions, and some 0.3 MB of fixed tables.
const SHARD_ENTRIES: usize = 8192;
/// Frequency counters for each entry. TinyLFU likes ten; four tell hot from cold keys, and cost less than half.
const COUNTERS: usize = 4;
/// Memory that an entry takes beside its key and value, in stretto (about 221 bytes) and here, in bytes.
const OVERHEAD: usize = 221 + size_of::<Cached>() + 48;
/// The size of entry, in bytes, that the number of shards is laid out for; smaller ones only make fuller shards.
const TYPICAL_ENTRY: usize = 512;

type Shard = TokioCache<u64, Arc<Cached>, TransparentKeyBuilder<u64>>;

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

/// The in-process tier of one instance.
pub struct L1 {
    /// Made when they are first needed: an empty one takes memory and a thread.
    shards: Vec<OnceLock<Shard>>,
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

    fn shard(&self, hash: u64) -> &OnceLock<Shard> {
        // The fence uses the hash's low bits, the shards its high ones.
        &self.shards[(hash >> 32) as usize % self.shards.len()]
    }

    /// A new shard, whose upkeep runs on the tokio runtime and a thread. `None` if stretto refuses.
    fn make(&self) -> Option<Shard> {
        let (counters, keys) = (SHARD_ENTRIES * COUNTERS, TransparentKeyBuilder::<u64>::default());
        let made = AsyncCacheBuilder::new_with_key_builder(counters, self.shard_size, keys).build();
        made.inspect_err(|error| tracing::error!(%error, "make a shard of L1")).ok()
    }

    /// The value of a key, if it may still be served in `generation`.
    pub fn get(&self, key: &EntryKey, generation: Generation) -> Option<Arc<Cached>> {
        // The lookup is async in name only; the value is cloned out, for a reference would hold the shard's lock.
        let cached = self.shard(key.hash).get()?.get(&key.hash).now_or_never()??.value().clone();
        let servable = *cached.key == *key.redis()
            && cached.generation >= generation
            && self.fence.admits(key.hash, cached.as_of)
            && cached.expires > Instant::now();
        servable.then_some(cached)
    }

    /// Keeps a value, unless an event has overtaken it or the tier prefers others.
    pub async fn insert(&self, hash: u64, cached: Cached) {
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
        if let Some(shard) = slot.get() {
            shard.insert(hash, Arc::new(cached), cost as i64).await;
        }
    }

    /// The fence, for whoever applies events.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Number of entries held, servable or not.
    pub fn len(&self) -> usize {
        self.shards.iter().filter_map(OnceLock::get).map(Shard::len).sum()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
