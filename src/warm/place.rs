//! Where a walk through an entity's keys has come to, kept in L2: whoever applies changes after a crash goes on there.
//!
//! It is a hint. It names keys and no SQL, and the values that it gives Postgres are parameters; where it makes no sense,
//! the walk begins anew, and what is cached already costs a lookup.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Walk;
use crate::cache::l2::{L2, L2Error};
use crate::config::MAX_RATE;
use crate::entity::{Entity, Generation};

/// A place that nobody has gone on from for so long is forgotten; or for the entity's ttl, if that is shorter: then what
/// was warmed before it is over, too.
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
    /// As [`Walk::limit`], of that walk.
    pub limit: u64,
    /// As [`Walk::rate`], of that walk.
    pub rate: u32,
}

fn name(entity: &Entity) -> String {
    format!("warm:{}", entity.name)
}

/// Keeps a place. If that fails, a crash costs so much more.
pub(super) async fn keep(l2: &L2, entity: &Entity, generation: Generation, walk: &Walk, after: &[String], done: u64) {
    let Walk { limit, rate, .. } = *walk;
    let place = Place { generation: generation.0, walk: walk.fingerprint(), after: after.to_vec(), done, limit, rate };
    // A struct of strings and numbers always serializes.
    let text = serde_json::to_vec(&place).unwrap_or_default();
    if let Err(error) = l2.keep_note(&name(entity), &text, TTL.min(entity.ttl)).await {
        tracing::debug!(%error, entity = entity.name, "keep the place in warming");
    }
}

/// The place where this very walk was interrupted in this generation, if it was; its limit and its rate may have been
/// others.
///
/// # Errors
/// If L2 is away or not trusted.
pub(super) async fn find(
    l2: &L2,
    entity: &Entity,
    generation: Generation,
    walk: &Walk,
) -> Result<Option<Place>, L2Error> {
    let place = l2.note(&name(entity)).await?.and_then(|text| serde_json::from_slice::<Place>(&text).ok());
    Ok(place.filter(|place| {
        let same = place.generation == generation.0 && place.walk == walk.fingerprint();
        same && place.after.len() == entity.shape().key.len() && place.limit > 0 && (1..=MAX_RATE).contains(&place.rate)
    }))
}

/// Forgets the place: the walk has ended.
pub(super) async fn forget(l2: &L2, entity: &Entity) {
    if let Err(error) = l2.drop_note(&name(entity)).await {
        tracing::debug!(%error, entity = entity.name, "forget the place in warming");
    }
}
