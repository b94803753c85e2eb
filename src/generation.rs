//! Generations: what makes older entries unservable, all at once.

use crate::lsn::Lsn;

/// A generation of an entity's entries: those of an older one than the entity's are never served. Drawn from the
/// sequence `walcache.epoch`, which outlives any Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The form in Redis, compared as a string.
    pub fn hex16(self) -> [u8; 16] {
        Lsn::from_u64(self.0).hex16()
    }

    /// Reads back what [`Generation::hex16`] wrote. What no sequence of Postgres can give is none.
    pub fn from_hex16(digits: &[u8]) -> Option<Self> {
        Lsn::from_hex16(digits).map(|n| Generation(n.as_u64())).filter(|n| i64::try_from(n.0).is_ok())
    }
}
