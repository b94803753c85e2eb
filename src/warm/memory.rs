//! What outlives a restart, kept in L2: the hot sets, now and then and at the end; and which generation of each entity
//! was warmed to its end and when, so that one that was not is known to be new, and a schedule goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::hot::HotSets;
use crate::cache::l2::{L2, L2Error};
use crate::entity::Entity;

/// What nobody has renewed for so long is forgotten.
const TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// Keys with their weights, most read first.
#[derive(Serialize, Deserialize)]
struct Memory {
    keys: Vec<(String, f32)>,
}

fn name(entity: &Entity) -> String {
    format!("hot:{}", entity.name)
}

/// Keeps an entity's hot set, unless it is empty.
pub(super) async fn keep(l2: &L2, hot: &HotSets, entity: &Entity) {
    let keys: Vec<(String, f32)> = hot.most_read(entity.id).into_iter().map(|(key, w)| (key.into(), w)).collect();
    if keys.is_empty() {
        return;
    }
    // Strings and finite numbers always serialize.
    let text = serde_json::to_vec(&Memory { keys }).unwrap_or_default();
    if let Err(error) = l2.keep_note(&name(entity), &text, TTL).await {
        tracing::debug!(%error, entity = entity.name, "keep the hot set");
    }
}

/// The note of what was warmed.
const WARMED: &str = "warm";

/// How an entity was warmed last as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Warmed {
    /// The generation that was warmed to the end.
    pub generation: u64,
    /// When the walk ended, in milliseconds since 1970 by this machine's clock; 0 before the first one.
    pub ended: u64,
}

/// Keeps how each entity was warmed.
pub(super) async fn keep_warmed(l2: &L2, warmed: impl Iterator<Item = (&str, Warmed)>) {
    let warmed: BTreeMap<&str, Warmed> = warmed.collect();
    // Strings and numbers always serialize.
    let text = serde_json::to_vec(&warmed).unwrap_or_default();
    if let Err(error) = l2.keep_note(WARMED, &text, TTL).await {
        tracing::debug!(%error, "keep which generations were warmed");
    }
}

/// How each entity was warmed; none was where Redis was emptied, or something else stands there.
///
/// # Errors
/// If L2 is away or not trusted.
pub(super) async fn warmed(l2: &L2) -> Result<BTreeMap<String, Warmed>, L2Error> {
    let text = l2.note(WARMED).await?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default())
}

/// Adds what was kept. What is not of the form, or no key of the entity, is left out.
///
/// # Errors
/// If L2 is away or not trusted.
pub(super) async fn recall(l2: &L2, hot: &HotSets, entity: &Entity) -> Result<(), L2Error> {
    if !hot.counts(entity.id) {
        return Ok(());
    }
    let Some(text) = l2.note(&name(entity)).await? else { return Ok(()) };
    match serde_json::from_slice::<Memory>(&text) {
        Ok(memory) => {
            let keys = hot.learn(entity, memory.keys);
            tracing::debug!(entity = entity.name, keys, "the hot set is known");
        }
        Err(error) => tracing::debug!(%error, entity = entity.name, "what is kept as the hot set is none"),
    }
    Ok(())
}
