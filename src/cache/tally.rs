//! How much there is that an invalidation would make unservable: for people, before they say it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::Hierarchy;
use super::l1::Place;
use super::l2::L2Error;
use super::voids::full;
use crate::entity::{Entity, EntryKey, hash};
use crate::entry::{self, Stored};
use crate::void::Void;

/// Keys that are looked at by one step.
const STEP: usize = 1000;
/// Keys whose values are read to see what tags they bear, at most: each of them goes over the wire.
const MAX_VALUES: u64 = 100_000;
/// Keys that are looked at, at most.
const MAX_KEYS: u64 = 10_000_000;

/// What an invalidation names.
#[derive(Debug, Default)]
pub struct Named {
    /// Entries by their keys.
    pub keys: Vec<EntryKey>,
    /// Entries by what they have in common.
    pub voids: Vec<Void>,
}

/// What was found of it in one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Entries. In L2, where only keys were looked at, leases are among them.
    pub entries: u64,
    /// Keys that were looked at.
    pub looked_at: u64,
    /// Whether that was all of them. Else there may be more entries: values are read of so many keys only.
    pub complete: bool,
}

impl Named {
    fn matches_key(&self, entity: &Entity, key: &str) -> bool {
        self.voids.iter().any(|void| match void {
            Void::Entity { entity: id } => *id == entity.id,
            Void::Pattern { entity: id, glob } => *id == entity.id && glob.matches(full(entity, key)),
            Void::Tag(_) => false,
        })
    }

    fn has_tags(&self) -> bool {
        self.voids.iter().any(|void| matches!(void, Void::Tag(_)))
    }

    fn matches_tags(&self, entity: &Entity, key: &str, value: Option<&[u8]>) -> bool {
        let cells = entity.cells(key, value);
        self.voids.iter().any(|void| matches!(void, Void::Tag(cell) if cells.contains(cell)))
    }
}

impl Hierarchy {
    /// Counts what L1 holds of it; `None` if there is no L1.
    pub async fn tally_l1(&self, named: &Named) -> Option<Tally> {
        let l1 = self.l1.as_ref()?;
        let mut tally = Tally { complete: true, ..Tally::default() };
        if named.voids.is_empty() {
            for key in &named.keys {
                let held = |entity: &Arc<Entity>| {
                    l1.peek(entity.id, key.hash).is_some_and(|cached| *cached.key == *key.redis())
                };
                let held = self.entities.iter().any(held);
                tally.entries += u64::from(held);
                tally.looked_at += 1;
            }
            return Some(tally);
        }
        for entity in &self.entities {
            let mut place = Some(Place::default());
            while let Some(from) = place {
                let (hashes, next) = l1.page(entity.id, from, STEP);
                place = next;
                for cached in hashes.into_iter().filter_map(|hash| l1.peek(entity.id, hash)) {
                    tally.looked_at += 1;
                    let named = named.matches_key(entity, &cached.key)
                        || named.keys.iter().any(|key| *cached.key == *key.redis())
                        || named.matches_tags(entity, &cached.key, cached.value.as_deref());
                    tally.entries += u64::from(named);
                }
                tokio::task::yield_now().await;
            }
        }
        Some(tally)
    }

    /// Counts what L2 holds of it; `None` if there is no L2. Values are of up to `max_value` bytes.
    ///
    /// # Errors
    /// If L2 is away or not trusted.
    pub async fn tally_l2(&self, named: &Named, max_value: usize) -> Result<Option<Tally>, L2Error> {
        let Some(l2) = &self.l2 else { return Ok(None) };
        let mut tally = Tally { complete: true, ..Tally::default() };
        if named.voids.is_empty() {
            for keys in named.keys.chunks(STEP) {
                let names: Vec<&str> = keys.iter().map(EntryKey::redis).collect();
                let found = l2.texts(&names).await?;
                tally.looked_at += keys.len() as u64;
                tally.entries += found.into_iter().flatten().filter(|text| is_entry(text, max_value)).count() as u64;
            }
            return Ok(Some(tally));
        }
        let mut walk = l2.walk(l2.config.prefix.as_bytes())?;
        // A walk may give a key twice.
        let mut met = HashSet::new();
        let mut values = 0;
        loop {
            let (keys, more) = walk.step(STEP).await?;
            let mut unread: Vec<(&Entity, Bytes)> = Vec::new();
            for key in keys {
                let Ok(text) = std::str::from_utf8(&key) else { continue };
                let Some(entity) = self.entities.iter().find(|e| text.starts_with(&e.redis_prefix)) else { continue };
                if !met.insert(hash(&key)) {
                    continue;
                }
                tally.looked_at += 1;
                if named.matches_key(entity, text) || named.keys.iter().any(|key| key.redis() == text) {
                    tally.entries += 1;
                } else if named.has_tags() && !entity.tags.is_empty() {
                    unread.push((entity, key.clone()));
                }
            }
            values += unread.len() as u64;
            let names: Vec<Bytes> = unread.iter().map(|(_, key)| key.clone()).collect();
            for ((entity, key), text) in unread.into_iter().zip(walk.texts(&names).await?) {
                if let (Some(Stored::Entry(_, value)), Ok(key)) =
                    (text.map(|text| entry::decode(text, max_value)), std::str::from_utf8(&key))
                {
                    tally.entries += u64::from(named.matches_tags(entity, key, value.as_deref()));
                }
            }
            if !more {
                return Ok(Some(tally));
            }
            if values >= MAX_VALUES || tally.looked_at >= MAX_KEYS {
                return Ok(Some(Tally { complete: false, ..tally }));
            }
        }
    }
}

fn is_entry(text: &Bytes, max_value: usize) -> bool {
    matches!(entry::decode(text.clone(), max_value), Stored::Entry(..))
}
