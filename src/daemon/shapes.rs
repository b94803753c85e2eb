//! Looks at the shapes of the configuration's entities.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::Client;

use crate::apply::LookUpShape;
use crate::catalog::{self, Signatures};
use crate::config::Config;
use crate::entity::{Entity, Resolved};
use crate::source::SourceError;

/// How often entities are looked at whose tables are locked: applying waits for each such look.
const LOCKED_PAUSE: Duration = Duration::from_secs(5);

/// Looks shapes up for the entities of the configuration.
#[derive(Clone)]
pub(super) struct Catalog {
    config: Config,
    /// When a look has met a lock.
    locked_at: Arc<Mutex<Option<Instant>>>,
}

impl Catalog {
    pub(super) fn new(config: Config) -> Self {
        Catalog { config, locked_at: Arc::default() }
    }

    /// The entities whose signature is not that of the last look, but for those that are locked, for a while: they are out
    /// of the tiers.
    pub(super) fn differing(&self, entities: &[Arc<Entity>], signatures: &[u64]) -> Vec<usize> {
        let pauses = self.locked_at.lock().is_some_and(|at| at.elapsed() < LOCKED_PAUSE);
        entities
            .iter()
            .zip(signatures)
            .filter(|(entity, now)| entity.seen() != **now && !(pauses && entity.standing().is_locked()))
            .map(|(entity, _)| entity.id)
            .collect()
    }
}

impl LookUpShape for Catalog {
    async fn look_up(&self, source: &Client, entities: &[usize]) -> Result<Vec<Resolved>, SourceError> {
        let looked = catalog::resolve(source, &self.config, entities).await?;
        let found: Vec<Resolved> = looked.into_iter().map(|(resolved, _)| resolved).collect();
        if found.iter().any(|found| found.standing.is_locked()) {
            *self.locked_at.lock() = Some(Instant::now());
        }
        Ok(found)
    }

    async fn changed(&self, source: &Client, entities: &[Arc<Entity>]) -> Result<Vec<usize>, SourceError> {
        let signatures = Signatures::prepare(source, &self.config).await?.read(source).await?;
        Ok(self.differing(entities, &signatures))
    }
}
