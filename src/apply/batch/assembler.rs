//! Making batches of transactions.
//!
//! Effects wait until their transaction's commit is seen, and are then labelled with its end LSN. A transaction too
//! big for that is handed on in pieces: they are labelled with the position after the first byte of its commit record,
//! which Begin tells; it lies after every earlier transaction's end and not after its own. Their entries carry a
//! mark, and are not served before the watermark has passed the whole transaction.

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use super::{Batch, Lookup, Op, forgets_images};
use crate::entry::{self, Due, Label};
use crate::lsn::Lsn;
use crate::plan::Effect;
use crate::void::Void;

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
    /// Entities that these discard without forgetting images: once is enough.
    discarded: HashSet<usize>,
    /// Entities that these raise, and of which there is no image since: once is enough.
    raised: HashSet<usize>,
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
        self.open = Some(Open {
            xid,
            piece_lsn,
            commit_micros,
            effects: Vec::new(),
            discarded: HashSet::new(),
            raised: HashSet::new(),
            bytes: 0,
            split: false,
            awaited: false,
        });
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
        // Every row of a transaction may say so, of very many entities.
        effects.retain(|effect| match effect {
            Effect::Discard { entity, cause } if !forgets_images(*cause) => open.discarded.insert(*entity),
            Effect::Raise { entity } => open.raised.insert(*entity),
            Effect::Put { entity, .. } | Effect::Merge { entity, .. } => {
                if !open.raised.is_empty() {
                    open.raised.remove(entity);
                }
                true
            }
            _ => true,
        });
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
        open.discarded.clear();
        open.raised.clear();
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
                    batch.raise.insert(entity);
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
