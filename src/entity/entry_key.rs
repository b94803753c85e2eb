//! The keys of entries in Redis.

use crate::key::{Key, hash};

/// The full key of an entry, with its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryKey {
    /// [`hash`] of the full key.
    pub hash: u64,
    redis: Box<str>,
    start: usize,
}

impl EntryKey {
    /// The key of an entity whose keys in Redis begin with `prefix`.
    pub(super) fn new(prefix: &str, key: &Key) -> Self {
        let mut redis = String::with_capacity(prefix.len() + key.as_str().len());
        redis.push_str(prefix);
        redis.push_str(key.as_str());
        EntryKey { hash: hash(redis.as_bytes()), redis: redis.into_boxed_str(), start: prefix.len() }
    }

    /// The key in Redis: `{prefix}{entity}:{key}`.
    pub fn redis(&self) -> &str {
        &self.redis
    }

    /// The key within its entity.
    pub fn key(&self) -> &str {
        &self.redis[self.start..]
    }
}
