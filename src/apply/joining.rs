//! Tables that have come into the publications, or of which others rows are published now.
//!
//! A change that was made before that is not in the stream, though its transaction may end only afterwards: no event will
//! ever tell of it. So nothing is cached of such a table before every transaction has ended that ran when the catalog
//! showed it as published. From then on every new snapshot has what the stream lacks.

use std::collections::HashMap;
use std::time::Duration;

use tracing::warn;

use super::{Applier, ApplyError, LookUpShape};
use crate::entity::Published;

/// How long batches are held up for it. What takes longer is looked at again with the next look at the catalog.
const PATIENCE: Duration = Duration::from_millis(100);

/// By entity, as what its table is published, and the transactions that ran when that was seen.
#[derive(Debug, Default)]
pub(super) struct Joining(HashMap<usize, (Published, Vec<u32>)>);

impl<L: LookUpShape> Applier<L> {
    /// Whether every transaction has ended that may have changed the table before it was published so.
    pub(super) async fn has_joined(&mut self, id: usize, published: &Published) -> Result<bool, ApplyError> {
        let seen = self.joining.0.remove(&id).filter(|(as_what, _)| as_what == published);
        let is_new = seen.is_none();
        let running = match seen {
            Some((_, running)) => running,
            None => self.gate.running().await?,
        };
        if let Ok(passed) = tokio::time::timeout(PATIENCE, self.gate.pass(&running)).await {
            passed?;
            return Ok(true);
        }
        if is_new {
            warn!(
                entity = self.hierarchy.entities[id].name,
                transactions = running.len(),
                "not cached before all transactions have ended that ran when its table was published"
            );
        }
        self.joining.0.insert(id, (published.clone(), running));
        Ok(false)
    }
}
