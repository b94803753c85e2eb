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
