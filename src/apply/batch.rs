//! Batches: the newest effect on each key of many transactions, labelled and bounded.

mod assembler;

use std::hash::{BuildHasherDefault, Hash, Hasher};

use indexmap::{IndexMap, IndexSet};

pub use self::assembler::{Assembler, Limits};
use crate::entity::{EntryKey, Generation, hash};
use crate::entry;
use crate::lsn::Lsn;
use crate::plan::Cause;
use crate::void::Void;

/// A full key with its hash, which is computed once.
#[derive(Debug, PartialEq, Eq)]
pub struct HashedKey {
    /// [`crate::entity::hash`] of the key.
    pub hash: u64,
    /// The full key in Redis.
    pub key: Vec<u8>,
}

impl Hash for HashedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Passes on what is a hash already.
#[derive(Default)]
pub struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash(bytes);
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

/// What is to be done to one key.
#[derive(Debug)]
pub struct Op {
    /// The entity.
    pub entity: usize,
    /// The newest change on the key.
    pub lsn: Lsn,
    /// The entry's new text, labelled, and the generation that it bears; `None` to drop it.
    pub image: Option<(Generation, Vec<u8>)>,
    /// Whether the text has gaps: it is not to be written before they are filled from what stands in L2.
    pub gaps: bool,
    /// The oldest change that the text has values from.
    pub since: Lsn,
}

/// A rule's lookup for a changed row: see [`crate::entity::query::Via::Lookup`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// The entity.
    pub entity: usize,
    /// The position of the rule among the query's.
    pub rule: usize,
    /// What it is given, in Postgres' text form; `None` for NULL.
    pub values: Vec<Option<Vec<u8>>>,
}

impl Lookup {
    /// Bytes that it takes in memory.
    pub fn held(&self) -> usize {
        self.values.iter().flatten().map(Vec::len).sum::<usize>() + size_of::<(Lookup, Asked)>()
    }
}

/// Who asks for a [`Lookup`].
#[derive(Debug)]
pub struct Asked {
    /// The smallest label of a change that does. What it finds is dropped with that, though others of them may be newer than
    /// entries that have it: so entries must be dropped whatever their labels, as `UNLINK` does, and W must stay below it.
    pub lsn: Lsn,
    /// The transactions that do.
    pub xids: Vec<u32>,
}

/// Many transactions' effects, the newest for each key.
#[derive(Debug, Default)]
pub struct Batch {
    /// By key, in the order of the stream: rows that were made together lie together in Redis' memory, too.
    pub ops: IndexMap<HashedKey, Op, BuildHasherDefault<Prehashed>>,
    /// What is to be looked up on the primary.
    pub lookups: IndexMap<Lookup, Asked>,
    /// Entities whose generation is to be raised.
    pub raise: IndexSet<usize>,
    /// Entities whose generation is to be raised for another reason than that the table is empty, and the reason.
    pub discard: IndexMap<usize, Cause>,
    /// What is voided by what entries have in common, and when.
    pub voids: IndexMap<Void, Lsn>,
    /// Entities whose shape is to be looked up.
    pub reshape: Vec<usize>,
    /// Entities whose table came under another name.
    pub moved: Vec<usize>,
    /// Whether to look which entities' shapes have changed.
    pub look_around: bool,
    /// Transactions that must be visible first.
    pub xids: Vec<u32>,
    /// Everything up to here is applied once this batch is.
    pub progress: Option<Lsn>,
    /// Commit times of the transactions that end in this batch, in microseconds since the Unix epoch.
    pub commits: Vec<i64>,
    /// The largest label in it.
    pub high: Lsn,
    /// Dropped entries, by entity and cause.
    pub invalidations: Vec<(usize, Cause)>,
    /// How many texts with gaps were added; some may have been filled, replaced or dropped since.
    pub gaps: usize,
    /// By entity: whether an image of it may be among the operations.
    has_images: Vec<bool>,
    bytes: usize,
}

impl Batch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let raises = !self.raise.is_empty() || !self.discard.is_empty();
        let looks = self.look_around || !self.reshape.is_empty() || !self.moved.is_empty();
        let voids = !self.lookups.is_empty() || !self.voids.is_empty();
        self.ops.is_empty() && !voids && !raises && !looks && self.progress.is_none()
    }
}

impl Batch {
    /// All of an entity's entries are to be voided.
    pub fn discard_entity(&mut self, entity: usize, cause: Cause) {
        if forgets_images(cause) {
            self.forget_images(entity);
        }
        self.discard.entry(entity).or_insert(cause);
    }

    /// An entry is to be dropped because of a change with this label.
    pub fn drop_found(&mut self, entity: usize, lsn: Lsn, key: &EntryKey, cause: Cause) {
        let hashed = HashedKey { hash: key.hash, key: key.redis().as_bytes().to_vec() };
        let lsn = self.ops.get(&hashed).map_or(lsn, |op| op.lsn.max(lsn));
        self.high = self.high.max(lsn);
        self.invalidations.push((entity, cause));
        self.insert(hashed, Op { entity, lsn, image: None, gaps: false, since: lsn });
    }

    fn look_up(&mut self, lookup: Lookup, lsn: Lsn, xid: u32) {
        self.bytes += size_of::<u32>();
        match self.lookups.get_mut(&lookup) {
            Some(asked) if asked.xids.last() == Some(&xid) => {}
            Some(asked) => asked.xids.push(xid),
            None => {
                self.bytes += lookup.held();
                self.lookups.insert(lookup, Asked { lsn, xids: vec![xid] });
            }
        }
    }

    /// The table was emptied: what it held before in the same transaction was never committed, and what it held after
    /// earlier ones is gone.
    fn forget_images(&mut self, entity: usize) {
        // Every row of a batch may say so: all of it is gone through only where there is something to forget.
        let Some(has_images) = self.has_images.get_mut(entity).filter(|has| **has) else { return };
        *has_images = false;
        for op in self.ops.values_mut().filter(|op| op.entity == entity) {
            op.image = None;
            op.gaps = false;
        }
    }

    fn add(&mut self, key: Vec<u8>, op: Op) {
        // An effect tells all there is to tell of its key, so the newest one replaces what waited before. Its generation
        // travels in its label: no order is needed between raised generations and what was planned before.
        self.insert(HashedKey { hash: hash(&key), key }, op);
    }

    /// Adds an image with gaps. Where the batch has changed that row before, what it says is what the row was: nothing lies
    /// between two changes of one key. Else the gaps stay, for L2 to fill.
    fn merge(&mut self, key: Vec<u8>, mut op: Op) {
        let key = HashedKey { hash: hash(&key), key };
        self.gaps += 1;
        if let Some(before) = self.ops.get(&key) {
            op.fill(before.image.as_ref(), before.gaps, before.since);
            if op.image.is_none() {
                self.invalidations.push((op.entity, Cause::Toast));
            }
        }
        self.insert(key, op);
    }

    fn insert(&mut self, key: HashedKey, op: Op) {
        let text = op.image.as_ref().map_or(0, |(_, text)| text.len());
        self.bytes += key.key.len() + text + size_of::<(HashedKey, Op)>();
        if op.image.is_some() {
            if self.has_images.len() <= op.entity {
                self.has_images.resize(op.entity + 1, false);
            }
            self.has_images[op.entity] = true;
        }
        self.ops.insert(key, op);
    }
}

impl Op {
    /// Fills the gaps of its text from the image before it, which may have `gaps`, too, and has values since `since`. Drops
    /// the entry where that image is of another generation, or none of this row.
    pub fn fill(&mut self, before: Option<&(Generation, Vec<u8>)>, gaps: bool, since: Lsn) {
        let filled = match (self.image.take(), before) {
            (Some((generation, text)), Some((same, before))) if generation == *same => {
                merged(&text, before).filter(|(_, left)| gaps || !left).map(|(text, left)| ((generation, text), left))
            }
            _ => None,
        };
        self.gaps = filled.as_ref().is_some_and(|(_, left)| *left);
        self.image = filled.map(|(image, _)| image);
        self.since = self.since.min(since);
    }
}

/// An entry's text with the gaps of its value filled from that of another entry; whether gaps are left.
fn merged(text: &[u8], before: &[u8]) -> Option<(Vec<u8>, bool)> {
    let value = |text: &'_ [u8]| text.len().checked_sub(1).filter(|end| *end >= entry::HEAD);
    let (value, left) = entry::gaps::fill(&text[entry::HEAD..value(text)?], &before[entry::HEAD..value(before)?])?;
    let mut whole = Vec::with_capacity(entry::HEAD + value.len() + 1);
    whole.extend_from_slice(&text[..entry::HEAD]);
    whole.extend_from_slice(&value);
    whole.push(b'}');
    Some((whole, left))
}

/// Whether images are among the entries that are voided so. The other causes are of queries, where it may be every row of a
/// table; they have no images.
fn forgets_images(cause: Cause) -> bool {
    matches!(cause, Cause::Command | Cause::Large)
}
