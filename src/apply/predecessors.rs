//! Fills the gaps of a batch's texts from what stands in L2: see [`crate::entry::gaps`].
//!
//! An entry gives the row as it was just before a change `c`, as far as `c` has left it alone, if `hi < c` and it is of
//! the generation that the change was planned in. For then nothing after `hi` is in it, so `c` is not; and every earlier
//! change of that key is in it, or stands in the same batch as `c`. Those of earlier batches were all applied before
//! it is looked at, by this claim or by the one before whose work the fence shows: one that the entry did not certainly
//! contain would have replaced or dropped it. Those of this batch have been merged into one that leaves alone only what
//! each of them leaves alone, so it does not matter how many of them a fill has seen.
//!
//! The lookup is a script that checks the fence as every write does. What becomes of the entry until the batch is written
//! does not matter: the image that was made is the row's as of `c`, and the write obeys the rules of every other.

use bytes::Bytes;

use super::ApplyError;
use super::batch::{Batch, Op};
use super::writer::Writer;
use crate::cache::Hierarchy;
use crate::entry::{self, Label, Stored};
use crate::lsn::Lsn;
use crate::plan::Cause;

/// Bytes of entries that are looked up for one batch, at most. Whatever does not fit is dropped, and filled by the next
/// read.
const MAX_BYTES: usize = 16 << 20;

/// What an entry in L2 is to a change with gaps.
enum Stands {
    /// What the row was before it.
    Predecessor,
    /// It contains the change, which comes again.
    Contains,
    /// Nothing that can be relied on.
    Unknown,
}

impl Writer {
    /// Fills the gaps of a batch's texts, or drops the entries where that cannot be.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn fill_gaps(&mut self, hierarchy: &Hierarchy, batch: &mut Batch) -> Result<(), ApplyError> {
        let entities = &hierarchy.entities;
        // What is of an older shape is dropped in any case.
        let wanted = |op: &Op| op.gaps && op.since > entities[op.entity].images_after();
        let positions: Vec<usize> = (0..batch.ops.len()).filter(|i| wanted(&batch.ops[*i])).collect();
        let mut left = MAX_BYTES;
        let mut contained = Vec::new();
        for positions in positions.chunks(self.config.script_keys) {
            let found = self.look_up(batch, positions, left).await?;
            for (position, found) in positions.iter().zip(found) {
                let Some((key, op)) = batch.ops.get_index_mut(*position) else { continue };
                let text = found.unwrap_or_default();
                // What is compressed counts by its size before: it is held in full.
                let stored = entry::decode(text.clone(), left.min(self.config.max_value));
                let size = match &stored {
                    Stored::Entry(_, Some(value)) => value.len(),
                    _ => 0,
                };
                left = left.saturating_sub(size.max(text.len()));
                match &stored {
                    // What was voided is not to be read on in the next image: whoever voided it knows of more than rows.
                    Stored::Entry(label, value) if is_voided(hierarchy, op, &key.key, label, value) => {
                        op.fill(None, false, Lsn::ZERO);
                    }
                    Stored::Entry(label, value) => match standing(label, op, self.claim.takeover) {
                        Stands::Predecessor => {
                            let since = op.since;
                            let text = if text[entry::PACKED] == b'1' {
                                entry::encode(label, value.as_deref())
                            } else {
                                text.into()
                            };
                            op.fill(Some(&(label.generation, text)), false, since);
                        }
                        Stands::Contains => contained.push(*position),
                        Stands::Unknown => op.fill(None, false, Lsn::ZERO),
                    },
                    _ => op.fill(None, false, Lsn::ZERO),
                }
                if op.image.is_none() {
                    batch.invalidations.push((op.entity, Cause::Toast));
                }
            }
        }
        for position in contained.into_iter().rev() {
            batch.ops.swap_remove_index(position);
        }
        Ok(())
    }

    async fn look_up(
        &self,
        batch: &Batch,
        positions: &[usize],
        bytes: usize,
    ) -> Result<Vec<Option<Bytes>>, ApplyError> {
        let mut cmd = self.scripts.predecessors.command(positions.len() + 1);
        cmd.arg(&self.l2.fence_key);
        for (key, _) in positions.iter().filter_map(|position| batch.ops.get_index(*position)) {
            cmd.arg(&key.key);
        }
        cmd.arg(&self.claim.epoch).arg(&self.done.hex16()).arg(bytes);
        let mut connection = self.claim.connection.clone();
        let found = self.scripts.predecessors.run(&mut connection, &cmd).await?;
        let found: Vec<Option<Vec<u8>>> = redis::from_redis_value(found).map_err(|e| ApplyError::L2(e.into()))?;
        Ok(found.into_iter().map(|text| text.map(Bytes::from)).collect())
    }
}

fn is_voided(hierarchy: &Hierarchy, op: &Op, key: &[u8], label: &Label, value: &Option<Bytes>) -> bool {
    let entity = &hierarchy.entities[op.entity];
    // Keys are UTF-8, or no read can name them.
    std::str::from_utf8(key)
        .is_ok_and(|key| !hierarchy.stands(entity, key, label.lo, value.as_deref(), hierarchy.voids.swept(entity)))
}

fn standing(label: &Label, op: &Op, takeover: Lsn) -> Stands {
    let Some((generation, text)) = &op.image else { return Stands::Unknown };
    let piece = text.get(entry::SPLIT) == Some(&b'1');
    if label.generation != *generation {
        return Stands::Unknown;
    }
    // Written by an earlier piece of the same transaction; in a replay it cannot be told from a later one.
    let earlier_piece = label.split && piece && label.lo == op.lsn && op.lsn > takeover;
    if label.hi < op.lsn || earlier_piece {
        Stands::Predecessor
    } else if label.lo > op.lsn || (label.lo == op.lsn && !label.split) {
        Stands::Contains
    } else {
        Stands::Unknown
    }
}
