//! What the routes of the `[http]` listener share.

use std::sync::Arc;

use super::problem::Problem;
use super::{Limits, Reads};
use crate::entity::Entity;
use crate::metrics::HttpMetrics;

/// What the routes share.
pub struct Api<R> {
    pub(super) reads: R,
    /// The entities' names, for those who ask for another.
    entities: Vec<String>,
    pub(super) limits: Limits,
    pub(super) metrics: HttpMetrics,
}

impl<R: Reads> Api<R> {
    /// An API over `reads`, which knows the entities of these names.
    pub fn new(reads: R, entities: Vec<String>, limits: Limits) -> Arc<Self> {
        Arc::new(Api { reads, entities, limits, metrics: HttpMetrics::default() })
    }

    /// The entity of this name.
    pub(super) fn entity(&self, name: &str) -> Result<&Arc<Entity>, Problem> {
        self.reads.entity(name).ok_or_else(|| Problem::unknown_entity(name, &self.entities))
    }

    /// Splits what follows `/v1/` into the entity's name and the rest. `note/` has the empty key, `note` has none.
    pub(super) fn split<'a>(&self, path: &'a str) -> Result<(&'a str, &'a str), Problem> {
        path.split_once('/').ok_or_else(|| match self.entity(path) {
            Ok(_) => Problem::no_route(format!("a key is missing: /v1/{path}/{{key}} or /v1/{path}/batch")),
            Err(unknown) => unknown,
        })
    }
}
