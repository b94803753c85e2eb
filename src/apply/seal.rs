//! The last step before a batch is written: its images are told when they are due, and take the form that they have in L2.

use std::sync::Arc;

use super::batch::Batch;
use crate::entity::Entity;
use crate::entry::{self, Due, packed};

impl Batch {
    /// Seals images that are whole: sets their due times and compresses large values. Those that are over already, or larger
    /// than what is cached, are dropped.
    pub(super) async fn seal(&mut self, entities: &[Arc<Entity>], max_value: usize, now: Due) {
        let mut large = Vec::new();
        for (position, op) in self.ops.values_mut().enumerate() {
            let entity = &entities[op.entity];
            let Some((_, text)) = op.image.as_mut().filter(|_| !op.gaps) else { continue };
            let value = text.len().checked_sub(1).and_then(|end| text.get(entry::HEAD..end)).unwrap_or_default();
            let size = value.len();
            let due = match value {
                b"null" => entity.due(None, now),
                value if size <= max_value => entity.due(Some(value), now),
                // Filling gaps has made it too large.
                _ => None,
            };
            let Some(due) = due else {
                op.image = None;
                continue;
            };
            text[entry::DUE].copy_from_slice(&due.digits());
            if let Some(above) = entity.compress_above.filter(|above| size > *above) {
                large.push((position, above, std::mem::take(text)));
            }
        }
        if large.is_empty() {
            return;
        }
        let positions: Vec<usize> = large.iter().map(|(position, ..)| *position).collect();
        // Milliseconds for each megabyte: not on a thread that serves readers, too.
        let pack = move || {
            for (_, above, text) in &mut large {
                if let Some(packed) = packed::pack_text(text, *above) {
                    *text = packed;
                }
            }
            large
        };
        match tokio::task::spawn_blocking(pack).await {
            Ok(packed) => {
                for (position, _, text) in packed {
                    if let Some((_, image)) = self.ops.get_index_mut(position).and_then(|(_, op)| op.image.as_mut()) {
                        *image = text;
                    }
                }
            }
            // The runtime is going down, and took the texts along.
            Err(_) => positions.into_iter().for_each(|position| {
                if let Some((_, op)) = self.ops.get_index_mut(position) {
                    op.image = None;
                }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::batch::{HashedKey, Op};
    use crate::entity::{Definition, Generation, Shape};
    use crate::entry::{Label, Stored};
    use crate::lsn::Lsn;

    fn entities() -> Vec<Arc<Entity>> {
        let definition = Definition { compress_above: Some(1000), ..Definition::rows("doc", "public", "docs") };
        vec![Arc::new(Entity::new(0, definition, "", Shape::unknown(0)))]
    }

    /// Entries with values of these sizes.
    fn batch(sizes: &[usize]) -> Batch {
        let mut batch = Batch::default();
        for (key, size) in sizes.iter().enumerate() {
            let label =
                Label { lo: Lsn::ZERO, hi: Lsn::ZERO, generation: Generation(1), split: false, due: Due::NEVER };
            let value = format!("{{\"x\":\"{}\"}}", "x".repeat(*size));
            let text = entry::encode(&label, Some(value.as_bytes()));
            let image = Some((Generation(1), text));
            let op = Op { entity: 0, lsn: Lsn::ZERO, image, gaps: false, since: Lsn::ZERO };
            batch.ops.insert(HashedKey { hash: key as u64, key: vec![key as u8] }, op);
        }
        batch
    }

    /// What each entry holds: how many bytes of value, and whether it is compressed.
    fn held(batch: &Batch) -> Vec<Option<(usize, bool)>> {
        let read = |text: &Vec<u8>| match entry::decode(text.clone().into(), 1 << 20) {
            Stored::Entry(label, value) => {
                assert_ne!(label.due, Due::NEVER);
                (value.unwrap().len(), text[entry::PACKED] == b'1')
            }
            other => panic!("{other:?}"),
        };
        batch.ops.values().map(|op| op.image.as_ref().map(|(_, text)| read(text))).collect()
    }

    #[tokio::test]
    async fn large_values_are_compressed_and_too_large_ones_dropped() {
        let mut batch = batch(&[10, 5000, 20_000, 30]);
        batch.seal(&entities(), 10_000, Due::now()).await;
        assert_eq!(held(&batch), [Some((18, false)), Some((5008, true)), None, Some((38, false))]);
    }

    /// A runtime that goes down carries nothing out any more: what it has taken along is dropped, never written half.
    #[test]
    fn what_cannot_be_compressed_is_dropped() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let handle = runtime.handle().clone();
        runtime.shutdown_timeout(std::time::Duration::from_secs(10));
        let mut batch = batch(&[10, 5000, 30]);
        handle.block_on(batch.seal(&entities(), 10_000, Due::now()));
        assert_eq!(held(&batch), [Some((18, false)), None, Some((38, false))]);
    }
}
