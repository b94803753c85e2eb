//! What outlives a restart, kept in L2: the hot sets, now and then and at the end; and which generations were warmed, so that
//! one that began while nothing ran, or with a start, is known to be new.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::hot::HotSets;
use crate::cache::l2::L2;
use crate::entity::{Entity, Generation};

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

/// The note of the generations.
const GENERATIONS: &str = "warm";

/// Keeps which generation each entity has.
pub(super) async fn keep_generations(l2: &L2, generations: impl Iterator<Item = (&str, Generation)>) {
    let generations: BTreeMap<&str, u64> = generations.map(|(name, generation)| (name, generation.0)).collect();
    // Strings and numbers always serialize.
    let text = serde_json::to_vec(&generations).unwrap_or_default();
    if let Err(error) = l2.keep_note(GENERATIONS, &text, TTL).await {
        tracing::debug!(%error, "keep the generations that were warmed");
    }
}

/// Which generation each entity had; none in a Redis that was emptied.
pub(super) async fn generations(l2: &L2) -> BTreeMap<String, u64> {
    let text = l2.note(GENERATIONS).await.ok().flatten();
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Adds what was kept. What is not of the form, or no key of the entity, is left out.
pub(super) async fn recall(l2: &L2, hot: &HotSets, entity: &Entity) {
    if !hot.counts(entity.id) {
        return;
    }
    let Ok(Some(text)) = l2.note(&name(entity)).await else { return };
    match serde_json::from_slice::<Memory>(&text) {
        Ok(memory) => {
            let keys = hot.learn(entity, memory.keys);
            tracing::debug!(entity = entity.name, keys, "the hot set is known");
        }
        Err(error) => tracing::debug!(%error, entity = entity.name, "what is kept as the hot set is none"),
    }
}
