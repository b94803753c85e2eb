//! Batches: the newest effect on each key of many transactions, labelled and bounded.
//!
//! Effects wait until their transaction's commit is seen, and are then labelled with its end LSN. A transaction too
//! big for that is handed on in pieces: they are labelled with the position after the first byte of its commit record,
//! which Begin tells; it lies after every earlier transaction's end and not after its own. Their entries carry a
//! mark, and are not served before the watermark has passed the whole transaction.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use indexmap::IndexMap;

use crate::entity::{EntryKey, Generation, hash};
use crate::entry::{self, Due, Label};
use crate::lsn::Lsn;
use crate::plan::{Cause, Effect};
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

/// Who asks for a [`Lookup`].
#[derive(Debug)]
pub struct Asked {
    /// The smallest label of a change that does.
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
    pub raise: Vec<usize>,
    /// Entities whose generation is to be raised for another reason than that the table is empty, and the reason.
    pub discard: Vec<(usize, Cause)>,
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

/// When a batch is full, and a transaction too big to wait for its commit.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Keys of a batch.
    pub max_batch_events: usize,
    /// Bytes of a batch's keys and texts.
    pub max_batch_bytes: usize,
    /// Bytes of one transaction's effects that wait for its commit.
    pub max_transaction_bytes: usize,
}

/// The transaction that is open.
struct Open {
    xid: u32,
    /// The label of its pieces, if it comes to that.
    piece_lsn: Lsn,
    commit_micros: i64,
    effects: Vec<Effect>,
    bytes: usize,
    split: bool,
    /// Whether it must be visible although it has no effects.
    awaited: bool,
}

/// Puts batches together.
pub struct Assembler {
    limits: Limits,
    batch: Batch,
    open: Option<Open>,
}

impl Assembler {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Assembler { limits, batch: Batch::default(), open: None }
    }

    /// A transaction begins.
    pub fn begin(&mut self, xid: u32, commit_lsn: Lsn, commit_micros: i64) {
        let piece_lsn = Lsn::from_u64(commit_lsn.as_u64() + 1);
        self.open =
            Some(Open { xid, piece_lsn, commit_micros, effects: Vec::new(), bytes: 0, split: false, awaited: false });
    }

    /// Takes the effects of a change of the transaction that is open.
    pub fn effects(&mut self, effects: &mut Vec<Effect>) {
        let Some(open) = &mut self.open else { return };
        if let ([effect @ Effect::Discard { .. }], Some(last)) = (&effects[..], open.effects.last())
            && effect == last
        {
            // Commands cost their author little: what one has just done is not done again.
            effects.clear();
            return;
        }
        open.bytes += effects.iter().map(size).sum::<usize>();
        open.effects.append(effects);
        if open.bytes >= self.limits.max_transaction_bytes {
            open.split = true;
            let (lsn, xid) = (open.piece_lsn, open.xid);
            self.seal(lsn, xid);
        }
    }

    /// The transaction that is open changed a table that may turn out to belong to an entity: it is confirmed only once
    /// it is visible, so that whatever is read after the entity's generation was raised contains it.
    pub fn await_visible(&mut self) {
        if let Some(open) = &mut self.open {
            open.awaited = true;
        }
    }

    /// The transaction that is open ends.
    pub fn commit(&mut self, end_lsn: Lsn) {
        if let Some(open) = &self.open {
            let lsn = if open.split { open.piece_lsn } else { end_lsn };
            let (xid, commit_micros) = (open.xid, open.commit_micros);
            self.seal(lsn, xid);
            self.batch.commits.push(commit_micros);
            // Transactions without effects count, too: else nothing would bound them while a batch is held up.
            self.batch.bytes += size_of::<i64>() + size_of::<u32>();
        }
        self.open = None;
        self.batch.progress = Some(end_lsn);
    }

    /// The server has sent everything up to `lsn`.
    pub fn keepalive(&mut self, lsn: Lsn) {
        // Within a transaction the position may already lie beyond changes that are still to come.
        if self.open.is_none() && self.batch.progress.is_none_or(|at| at <= lsn) {
            self.batch.progress = Some(lsn);
        }
    }

    /// Whether the batch must be handed on before more is added.
    pub fn is_full(&self) -> bool {
        self.batch.ops.len() + self.batch.lookups.len() >= self.limits.max_batch_events
            || self.batch.bytes >= self.limits.max_batch_bytes
    }

    /// Whether there is nothing to hand on.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Takes the batch.
    pub fn take(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// Labels the open transaction's effects and adds them to the batch.
    fn seal(&mut self, lsn: Lsn, xid: u32) {
        let Some(open) = &mut self.open else { return };
        let batch = &mut self.batch;
        if (open.awaited || !open.effects.is_empty()) && batch.xids.last() != Some(&xid) {
            batch.xids.push(xid);
        }
        if open.effects.is_empty() {
            return;
        }
        batch.high = batch.high.max(lsn);
        for effect in open.effects.drain(..) {
            match effect {
                Effect::Put { entity, generation, key, text } => {
                    // When it is due is told when it is written.
                    let label = Label { lo: lsn, hi: lsn, generation, split: open.split, due: Due::NEVER };
                    let image = Some((generation, labelled(text, &label)));
                    batch.add(key, Op { entity, lsn, image, gaps: false, since: lsn });
                }
                Effect::Merge { entity, generation, key, text } => {
                    // When it is due is told when it is written.
                    let label = Label { lo: lsn, hi: lsn, generation, split: open.split, due: Due::NEVER };
                    let image = Some((generation, labelled(text, &label)));
                    batch.merge(key, Op { entity, lsn, image, gaps: true, since: lsn });
                }
                Effect::Delete { entity, key, cause } => {
                    batch.invalidations.push((entity, cause));
                    batch.add(key, Op { entity, lsn, image: None, gaps: false, since: lsn });
                }
                Effect::Lookup { entity, rule, values } => batch.look_up(Lookup { entity, rule, values }, lsn, xid),
                Effect::Raise { entity } => {
                    batch.forget_images(entity);
                    if !batch.raise.contains(&entity) {
                        batch.raise.push(entity);
                    }
                }
                Effect::Discard { entity, cause } => batch.discard_entity(entity, cause),
                Effect::Void(void) => {
                    batch.bytes += void.held() + size_of::<(Void, Lsn)>();
                    // The newest, as the stream is in order.
                    batch.voids.insert(void, lsn);
                }
                Effect::Reshape { entity } if !batch.reshape.contains(&entity) => batch.reshape.push(entity),
                Effect::Moved { entity } if !batch.moved.contains(&entity) => batch.moved.push(entity),
                Effect::Reshape { .. } | Effect::Moved { .. } => {}
                Effect::LookAround => batch.look_around = true,
            }
        }
        open.bytes = 0;
    }
}

impl Batch {
    /// All of an entity's entries are to be voided.
    pub fn discard_entity(&mut self, entity: usize, cause: Cause) {
        // The other causes are of queries, where it may be every row of a table; they have no images.
        if matches!(cause, Cause::Command | Cause::Large) {
            self.forget_images(entity);
        }
        if !self.discard.iter().any(|(id, _)| *id == entity) {
            self.discard.push((entity, cause));
        }
    }

    /// An entry is to be dropped because of a change with this label.
    pub fn void(&mut self, entity: usize, lsn: Lsn, key: &EntryKey, cause: Cause) {
        let hashed = HashedKey { hash: key.hash, key: key.redis().as_bytes().to_vec() };
        let lsn = self.ops.get(&hashed).map_or(lsn, |op| op.lsn.max(lsn));
        self.high = self.high.max(lsn);
        self.invalidations.push((entity, cause));
        self.insert(hashed, Op { entity, lsn, image: None, gaps: false, since: lsn });
    }

    fn look_up(&mut self, lookup: Lookup, lsn: Lsn, xid: u32) {
        let held: usize = lookup.values.iter().flatten().map(Vec::len).sum();
        self.bytes += size_of::<u32>();
        match self.lookups.get_mut(&lookup) {
            Some(asked) if asked.xids.last() == Some(&xid) => {}
            Some(asked) => asked.xids.push(xid),
            None => {
                self.bytes += held + size_of::<(Lookup, Asked)>();
                self.lookups.insert(lookup, Asked { lsn, xids: vec![xid] });
            }
        }
    }

    /// The table was emptied: what it held before in the same transaction was never committed, and what it held after
    /// earlier ones is gone.
    fn forget_images(&mut self, entity: usize) {
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

fn labelled(mut text: Vec<u8>, label: &Label) -> Vec<u8> {
    if let Some(head) = text.first_chunk_mut::<{ entry::HEAD }>() {
        entry::set_label(head, label);
    }
    text
}

fn size(effect: &Effect) -> usize {
    let held = match effect {
        Effect::Put { key, text, .. } | Effect::Merge { key, text, .. } => key.capacity() + text.capacity(),
        Effect::Delete { key, .. } => key.capacity(),
        Effect::Lookup { values, .. } => values.iter().flatten().map(Vec::capacity).sum(),
        Effect::Void(void) => void.held(),
        Effect::Raise { .. } | Effect::Discard { .. } | Effect::Reshape { .. } => 0,
        Effect::Moved { .. } | Effect::LookAround => 0,
    };
    size_of::<Effect>() + held
}

#[cfg(test)]
mod tests;
