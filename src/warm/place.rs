//! Where a walk through an entity's keys has come to, kept in L2: whoever applies changes after a crash goes on there.
//!
//! It is a hint. It names keys and no SQL, and the values that it gives Postgres are parameters; where it makes no sense,
//! the walk begins anew, and what is cached already costs a lookup.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Walk;
use crate::cache::l2::L2;
use crate::entity::{Entity, Generation};

/// A place that nobody has gone on from for so long is forgotten.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// A place in a walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The generation that was warmed.
    generation: u64,
    /// Which walk it is.
    walk: u64,
    /// The last key's columns, as texts.
    pub after: Vec<String>,
    /// How many keys were warmed.
    pub done: u64,
}

fn name(entity: &Entity) -> String {
    format!("warm:{}", entity.name)
}

/// Keeps a place. If that fails, a crash costs so much more.
pub(super) async fn keep(l2: &L2, entity: &Entity, generation: Generation, walk: &Walk, after: &[String], done: u64) {
    let place = Place { generation: generation.0, walk: walk.signature(), after: after.to_vec(), done };
    // A struct of strings and numbers always serializes.
    let text = serde_json::to_vec(&place).unwrap_or_default();
    if let Err(error) = l2.keep_note(&name(entity), &text, TTL).await {
        tracing::debug!(%error, entity = entity.name, "keep the place in warming");
    }
}

/// The place where this very walk was interrupted in this generation, if it was.
pub(super) async fn find(l2: &L2, entity: &Entity, generation: Generation, walk: &Walk) -> Option<Place> {
    let place: Place = serde_json::from_slice(&l2.note(&name(entity)).await.ok()??).ok()?;
    let same = place.generation == generation.0 && place.walk == walk.signature();
    (same && place.after.len() == entity.shape().key.len()).then_some(place)
}

/// Forgets the place: the walk has ended.
pub(super) async fn forget(l2: &L2, entity: &Entity) {
    if let Err(error) = l2.drop_note(&name(entity)).await {
        tracing::debug!(%error, entity = entity.name, "forget the place in warming");
    }
}
