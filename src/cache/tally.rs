//! How much there is that an invalidation would make unservable: for people, before they say it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::Hierarchy;
use super::l1::Place;
use super::l2::{L2Error, Read, Walk};
use super::voids::full;
use crate::entity::{Entity, EntryKey, hash};
use crate::entry::{self, Stored};
use crate::void::Void;

/// Keys that are looked at by one step.
const STEP: usize = 1000;
/// Bytes of texts that are read at a time, but for one that is larger by itself.
const MAX_BYTES: usize = 16 << 20;
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
    /// Whether that was all of them. Else there may be more entries: values are read of so many keys only, and none that is
    /// larger than what is cached.
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
            for (n, key) in named.keys.iter().enumerate() {
                if n % STEP == 0 {
                    tokio::task::yield_now().await;
                }
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
        let mut walk = l2.walk(l2.config.prefix.as_bytes())?;
        if named.voids.is_empty() {
            for keys in named.keys.chunks(STEP) {
                let mut entries = 0;
                let keys: Vec<((), &[u8])> = keys.iter().map(|key| ((), key.redis().as_bytes())).collect();
                tally.looked_at += keys.len() as u64;
                let each = |(), _: &[u8], text: Bytes| {
                    entries += u64::from(matches!(entry::decode(text, max_value), Stored::Entry(..)));
                };
                tally.complete &= read(&walk, keys, max_value, each).await?;
                tally.entries += entries;
            }
            return Ok(Some(tally));
        }
        // A walk may give a key twice.
        let mut met = HashSet::new();
        let mut values = 0;
        loop {
            let (keys, more) = walk.step(STEP).await?;
            let mut unread: Vec<(&Entity, &[u8])> = Vec::new();
            for key in &keys {
                let Ok(text) = std::str::from_utf8(key) else { continue };
                let Some(entity) = self.entities.iter().find(|e| text.starts_with(&e.redis_prefix)) else { continue };
                if !met.insert(hash(key)) {
                    continue;
                }
                tally.looked_at += 1;
                if named.matches_key(entity, text) || named.keys.iter().any(|key| key.redis() == text) {
                    tally.entries += 1;
                } else if named.has_tags() && !entity.tags.is_empty() {
                    unread.push((entity, key));
                }
            }
            values += unread.len() as u64;
            let mut entries = 0;
            let each = |entity: &Entity, key: &[u8], text: Bytes| {
                if let (Stored::Entry(_, value), Ok(key)) = (entry::decode(text, max_value), std::str::from_utf8(key)) {
                    entries += u64::from(named.matches_tags(entity, key, value.as_deref()));
                }
            };
            tally.complete &= read(&walk, unread, max_value, each).await?;
            tally.entries += entries;
            if !more {
                return Ok(Some(tally));
            }
            if values >= MAX_VALUES || tally.looked_at >= MAX_KEYS {
                return Ok(Some(Tally { complete: false, ..tally }));
            }
        }
    }
}

/// Reads what stands at keys, in groups of bounded size, and gives each text with what came with its key. Says whether that
/// was all: what is too large by itself is left out.
async fn read<T: Copy>(
    walk: &Walk<'_>,
    mut keys: Vec<(T, &[u8])>,
    max_value: usize,
    mut each: impl FnMut(T, &[u8], Bytes),
) -> Result<bool, L2Error> {
    while !keys.is_empty() {
        let names: Vec<&[u8]> = keys.iter().map(|(_, key)| *key).collect();
        let texts = walk.texts(&names, MAX_BYTES, max_value + entry::HEAD + 1).await?;
        let mut left = Vec::new();
        let mut any = false;
        for ((with, key), found) in keys.into_iter().zip(texts) {
            match found {
                Read::Text(text) => {
                    any = true;
                    each(with, key, text);
                    // It may have been unpacked, which takes its time: let others run, and whoever asked give up.
                    tokio::task::yield_now().await;
                }
                Read::Nothing => {}
                Read::Left => left.push((with, key)),
            }
        }
        if !any && !left.is_empty() {
            return Ok(false);
        }
        keys = left;
    }
    Ok(true)
}
