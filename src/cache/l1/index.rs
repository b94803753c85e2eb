//! Which hashes a shard of L1 holds: stretto cannot be iterated.
//!
//! A hash is appended whenever its entry is inserted, after it was; so whatever is in the shard is in here. What was
//! evicted or inserted again stays in here until the index has doubled; then it is compacted, beside the inserts.

use parking_lot::Mutex;

/// Hashes below which compacting is not worth its while; 8 KiB.
const SMALL: usize = 1024;
/// Hashes that are looked at before others may run.
const STRIDE: usize = 256;

/// The hashes of one shard's entries, by entity.
#[derive(Debug)]
pub(super) struct Index(Mutex<Hashes>);

#[derive(Debug)]
struct Hashes {
    by_entity: Vec<Vec<u64>>,
    total: usize,
    /// Compacted when `total` reaches it.
    limit: usize,
    compacting: bool,
}

impl Default for Index {
    fn default() -> Self {
        Index(Mutex::new(Hashes { by_entity: Vec::new(), total: 0, limit: SMALL, compacting: false }))
    }
}

impl Index {
    /// Notes that an entry was inserted. Says whether the index is to be compacted now, and then is to be: it says so
    /// only once.
    pub(super) fn note(&self, entity: usize, hash: u64) -> bool {
        let mut hashes = self.0.lock();
        if hashes.by_entity.len() <= entity {
            hashes.by_entity.resize_with(entity + 1, Vec::new);
        }
        hashes.by_entity[entity].push(hash);
        hashes.total += 1;
        let due = hashes.total >= hashes.limit && !hashes.compacting;
        hashes.compacting |= due;
        due
    }

    /// Drops duplicates, and what is not in the shard any more.
    pub(super) async fn compact(&self, is_present: impl Fn(u64) -> bool) {
        let entities = self.0.lock().by_entity.len();
        for entity in 0..entities {
            // Whatever is inserted from here on is appended behind these.
            let mut kept = self.0.lock().by_entity[entity].clone();
            let seen = kept.len();
            kept.sort_unstable();
            kept.dedup();
            let mut present = Vec::with_capacity(kept.len());
            for stride in kept.chunks(STRIDE) {
                present.extend(stride.iter().filter(|hash| is_present(**hash)));
                tokio::task::yield_now().await;
            }
            let mut hashes = self.0.lock();
            let since = hashes.by_entity[entity].split_off(seen);
            present.extend(since);
            hashes.by_entity[entity] = present;
        }
        let mut hashes = self.0.lock();
        hashes.total = hashes.by_entity.iter().map(Vec::len).sum();
        hashes.limit = (2 * hashes.total).max(SMALL);
        hashes.compacting = false;
    }

    /// Number of hashes of an entity, at least as many as it has entries.
    pub(super) fn len(&self, entity: usize) -> usize {
        self.0.lock().by_entity.get(entity).map_or(0, Vec::len)
    }

    #[cfg(test)]
    pub(super) fn is_compacting(&self) -> bool {
        self.0.lock().compacting
    }

    /// The hash at a position, if there still is one.
    pub(super) fn at(&self, entity: usize, position: usize) -> Option<u64> {
        self.0.lock().by_entity.get(entity)?.get(position).copied()
    }

    /// An entity's hashes from `least` on, in order, each once, at most `limit`.
    pub(super) fn page(&self, entity: usize, least: u64, limit: usize) -> Vec<u64> {
        let mut page: Vec<u64> = match self.0.lock().by_entity.get(entity) {
            Some(hashes) => hashes.iter().copied().filter(|hash| *hash >= least).collect(),
            None => Vec::new(),
        };
        page.sort_unstable();
        page.dedup();
        page.truncate(limit);
        page
    }
}
